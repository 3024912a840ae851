"""ECGFounder's published weights: read without running anything they hold, and given back in the published form."""

import logging
import re
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import nn

from anyecg.loaders.errors import ModelError
from anyecg.loaders.files import file_hash
from anyecg.train.net1d import WIDTHS, Net1D
from anyecg.train.tensor_file import read_tensor_file, write_tensor_file

log = logging.getLogger(__name__)
# The published files hold one NumPy number, val_auroc; NumPy 2 writes its maker under another name than NumPy 1.
ALLOWED: list = [
    (scalar, "numpy._core.multiarray.scalar"), (scalar, "numpy.core.multiarray.scalar"), np.dtype,
    type(np.dtype(np.float64)),
]  # fmt: skip
IMPORTED = "anyecg-weights"
REMEDY = "give 1_lead_ECGFounder.pth or 12_lead_ECGFounder.pth as PKUDigitalHealth/ECGFounder publishes it"


def _batch_norm(name, width):
    """Return the entries of an untouched BatchNorm, as torch makes them."""
    return {f"{name}.{key}": value for key, value in nn.BatchNorm1d(width).state_dict().items()}


def published_state_dict(model):
    """Return a network's weights with every entry that the published class holds, in its order.

    Parameters
    ----------
    model : Net1D

    Returns
    -------
    dict of str -> tensor
        509 entries: the weights, and the BatchNorms that the published class never calls, as torch makes them
        (weight 1, bias 0, mean 0, variance 1, no batch seen), so that it loads them with ``strict=True``.
    """
    full: dict[str, torch.Tensor] = {}
    for key, value in model.state_dict().items():
        found = re.fullmatch(r"(stage_list\..*\.)conv([123])\.conv\.weight", key)
        if found:
            convolution = model.get_submodule(key.removesuffix(".weight"))
            full |= _batch_norm(f"{found[1]}bn{found[2]}", convolution.in_channels)
        full[key] = value
        if key == "first_conv.conv.bias":
            full |= _batch_norm("first_bn", WIDTHS[0])
    return full


def _check_archive(path):
    """Refuse a zip archive that would unpack to more than it is."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    n_bytes = sum(entry.file_size for entry in entries)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or n_bytes > path.stat().st_size:
        raise ModelError(f"{path}: its archive unpacks to {n_bytes} bytes; wanted one without compression; {REMEDY}")


def _read(path):
    """Return what a file of torch.save holds: tensors, plain values and the allowed NumPy number."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; {REMEDY}")
    try:
        # A mapped file gives only what is looked at: of a published one, not the optimiser's 250 MB.
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _check_archive(path)
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except ModelError:
        raise
    except UnpicklingError as cause:
        found = re.search(r"GLOBAL (\S+)|<class '([^']+)'>", str(cause))
        what = found[1] or found[2] if found else "a pickle that cannot be followed"
        raise ModelError(f"{path}: holds {what}, not only weights; none of it was run or kept; {REMEDY}") from None
    except Exception as cause:  # a damaged file fails in torch's reader in any way
        said = str(cause).split(".")[0].splitlines() or [type(cause).__name__]
        raise ModelError(f"{path}: damaged or not a file of weights ({said[0]}); {REMEDY}") from None


def _published_state(path):
    document = _read(path)
    state = document.get("state_dict") if isinstance(document, dict) else None
    if not isinstance(state, dict):
        raise ModelError(f"{path}: holds no 'state_dict'; {REMEDY}")
    return state


def _imported_state(path):
    document, state = read_tensor_file(path, IMPORTED)
    found = _sizes(state)
    said = tuple(document.get(key) for key in ("leads", "outputs"))
    if said != found:
        raise ModelError(f"{path}: says (leads, outputs) = {said}; its weights have {found}; {REMEDY}")
    return state


def _size_of(value, n_dims, axis, default, most):
    """Return a tensor's size along an axis; the default where it is no such tensor."""
    fits = isinstance(value, torch.Tensor) and value.ndim == n_dims and 0 < value.shape[axis] <= most
    return value.shape[axis] if fits else default


def _sizes(state):
    """Return the leads and the outputs of the network whose weights these seem to be."""
    n_leads = _size_of(state.get("first_conv.conv.weight"), 3, 1, 1, most=64)
    return n_leads, _size_of(state.get("dense.weight"), 2, 0, 150, most=10_000)


def _form(value):
    """Say what an entry is: shape and type, and where it is no plain array of numbers, how it is kept instead."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    plain = value.layout == torch.strided and value.device.type == "cpu"
    return f"{tuple(value.shape)} {value.dtype}{'' if plain else f' {value.layout} {value.device}'}"


def _named(what, names):
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{what} {', '.join(names[:3])}{more}"]


def _differences(state, model):
    """Return what keeps a state_dict from being the network's; the entries it never uses may be absent."""
    wanted, live = published_state_dict(model), model.state_dict()
    missing = [key for key in live if key not in state]
    unknown = [str(key) for key in state if key not in wanted]
    unlike = [
        f"{key} ({_form(state[key])} instead of {tuple(value.shape)} {value.dtype})"
        for key, value in wanted.items()
        if key in state and _form(state[key]) != f"{tuple(value.shape)} {value.dtype}"
    ]
    return _named("missing", missing) + _named("unknown", unknown) + _named("unlike", unlike)


def _new_head(model, n_targets, seed):
    """Replace the head by a fresh one, its weights a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.dense = nn.Linear(WIDTHS[-1], n_targets)


def load_ecgfounder(path, *, n_targets=None, seed=0):
    """Open ECGFounder's weights as a network in eval mode.

    Parameters
    ----------
    path : path
        A published file (.pth): a pickled dict of epoch, step, state_dict, optimizer, scheduler, val_auroc. Only
        tensors and plain values are read, and the one NumPy number. Or what ``import_weights`` made of it
        (.safetensors).
    n_targets : int, optional
        Outputs of a fresh head; by default the file's head stays.
    seed : int
        Decides the fresh head.

    Returns
    -------
    Net1D
        ``in_channels`` is what the file's stem takes: 1 (trained on lead I) or 12 leads.

    Raises
    ------
    ModelError
        No such file; damaged; anything but weights in it; entries missing, unknown or of another shape or type.
    """
    path = Path(path)
    state = _imported_state(path) if path.suffix == ".safetensors" else _published_state(path)
    with torch.device("meta"):
        model = Net1D(*_sizes(state))
        differences = _differences(state, model)
    if differences:
        raise ModelError(f"{path}: not the weights of Net1D: {'; '.join(differences)}; {REMEDY}")
    model.load_state_dict({key: state[key].clone() for key in model.state_dict()}, assign=True)
    if n_targets is not None:
        _new_head(model, n_targets, seed)
    head = "file" if n_targets is None else f"fresh targets={n_targets} seed={seed}"
    log.info("weights=%s sha256=%s leads=%d head=%s", path, file_hash(path), model.in_channels, head)
    return model.eval()


def import_weights(path, out, *, n_targets=None):
    """Make a safetensors file of a published one, to be read without any pickle from then on.

    It holds the entries that the network uses, under their published names; those that the published class never calls
    say nothing, and an export writes them again.

    Parameters
    ----------
    path, out : path
        The published file (.pth); what to write (.safetensors).
    n_targets : int, optional
        Outputs of a fresh head; by default the published head stays.

    Returns
    -------
    dict
        What the file says about itself: leads, outputs, entries, head, source_sha256.

    Raises
    ------
    ModelError
        As ``load_ecgfounder``; another suffix.
    """
    if Path(out).suffix != ".safetensors" or (n_targets is not None and not 1 <= n_targets <= 10_000):
        raise ModelError(f"{out}: wanted a path that ends in .safetensors, and 1 to 10000 targets")
    model = load_ecgfounder(path, n_targets=n_targets)
    state = model.state_dict()
    document = {
        "leads": model.in_channels, "outputs": model.dense.out_features, "entries": len(state),
        "head": "published" if n_targets is None else "fresh, seed 0", "source_sha256": file_hash(path),
    }  # fmt: skip
    write_tensor_file(out, state, IMPORTED, document)
    return document
