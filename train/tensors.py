"""Tensors as a safetensors file, written through the functions that every other file goes through."""

import hashlib

from anyecg.loaders.files import NewFile


def tensor_bytes(tensors, metadata=None):
    """Return the bytes of a safetensors file of named tensors."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)


def write_tensors(path, tensors):
    """Write tensors into a new file; return its SHA-256, of what was meant and not of what a disk made of it.

    ``safetensors.torch.save_file`` leaves a file of a random name when it is killed, and its error has no number.
    """
    data = tensor_bytes(tensors)
    with NewFile(path) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()
