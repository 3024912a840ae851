"""Safetensors files that say themselves what they are: a JSON document, and the hash of their numbers."""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from anyecg.loaders.errors import ModelError
from anyecg.loaders.files import FORMATS, NewFile, check_format, code_version, replacing
from anyecg.train.tensors import tensor_bytes

# Key of the document in the file's metadata.
KEY = "anyecg"
_MOST_HEADER, _MOST_BYTES = 1 << 20, 1 << 30


def _header(path):
    """Return the header of a safetensors file and where its numbers begin."""
    try:
        n_bytes = path.stat().st_size
        if not path.is_file() or n_bytes > _MOST_BYTES:
            raise ModelError(f"{path}: wanted a file of safetensors of at most {_MOST_BYTES >> 20} MB")
        with path.open("rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            if not 2 <= n_header <= min(_MOST_HEADER, n_bytes - 8):
                raise ModelError(f"{path}: not a file of safetensors, or damaged; give one, or make it again")
            header = json.loads(file.read(n_header))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as cause:
        raise ModelError(f"{path}: cannot be read ({cause}); make it again") from None
    return header, 8 + n_header


def _data_hash(path, start):
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def document_of(path):
    """Return the document of a safetensors file, unchecked; None where it carries none.

    Raises
    ------
    ModelError
        No such file, no safetensors, or a document that is no JSON object.
    """
    path = Path(path)
    header = _header(path)[0]
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    text = metadata.get(KEY) if isinstance(metadata, dict) else None
    if text is None:
        return None
    try:
        document = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ModelError(f"{path}: its metadata {KEY!r} is no JSON object; make it again")
    return document


def write_tensor_file(path, state, form, document):
    """Write named tensors and a document as one safetensors file, whole or absent.

    The document gets the format's name and version, and ``data_sha256``, the hash of the numbers as they lie in it.
    """
    plain = tensor_bytes(state)
    sha256 = hashlib.sha256(plain[8 + int.from_bytes(plain[:8], "little") :]).hexdigest()
    head = {"format": form, "version": FORMATS[form], "code_version": code_version()}
    data = tensor_bytes(state, {KEY: json.dumps({**head, **document, "data_sha256": sha256})})
    with replacing(path) as temporary, NewFile(temporary) as file:
        file.write(data)


def read_tensor_file(path, form):
    """Read such a file.

    Returns
    -------
    (dict, dict of str -> tensor)
        The document and the tensors.

    Raises
    ------
    ModelError, UpgradeNeeded
        Missing, damaged, changed since it was written, or of another format or version.
    """
    path = Path(path)
    document = document_of(path)
    if document is None:
        raise ModelError(f"{path}: says nowhere what it is; wanted a file of {form}")
    check_format(path, form, document.get("format"), document.get("version"), ModelError)
    if _data_hash(path, _header(path)[1]) != document.get("data_sha256"):
        raise ModelError(f"{path}: its numbers changed since it was written; make it again")
    try:
        return document, load_file(path)
    except (OSError, SafetensorError) as cause:
        raise ModelError(f"{path}: damaged ({cause}); make it again") from None
