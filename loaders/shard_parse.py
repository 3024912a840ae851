"""What a shard must hold, and the parse that refuses all else: no link is followed, no filter started but ours."""

import base64
import contextlib
import json
import os
import stat
from pathlib import Path

import h5py
import numpy as np

from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import check_format
from anyecg.loaders.splits import SPLITS

CHUNK_WINDOWS = 64
CHUNK_ROWS = 16_384
CHECKSUM_BYTES = 4
SIGNAL = "windows/signal"
SETS = {
    SIGNAL: np.int16,
    "windows/scale": np.float32,
    "windows/visit": np.int32,
    "windows/start": np.int64,
    "windows/flags": np.uint8,
    "draws/labels": np.int8,
    "draws/values": np.float32,
    "draws/time": np.int64,
    "draws/visit": np.int32,
    "pairs/window": np.int32,
    "pairs/draw": np.int32,
    "pairs/offset": np.float32,
    "pairs/horizons": np.uint8,
    "visits/patient": np.uint64,
    "visits/visit": np.uint64,
    "visits/split": np.int8,
    "visits/age": np.float32,
    "visits/sex": np.int8,
}
ATTRIBUTES = {
    "format": str, "version": int, "code_version": str, "fs": int, "samples": int, "leads": str, "preset": str,
    "preset_hash": str, "filter": str, "targets": str, "target_hash": str, "components": str, "split": str,
    "plan_hash": str, "counts": str,
}  # fmt: skip
# HDF5's numbers of the filters of a signal, in order.
FILTERS = {"none": (h5py.h5z.FILTER_FLETCHER32,), "bitshuffle-lz4": (32008, h5py.h5z.FILTER_FLETCHER32)}
REMAKE = "remove it and run 'anyecg shard' again"
# What this code writes: no user block before it, and checksums in all that HDF5 keeps for itself.
_START = b"\x89HDF\r\n\x1a\n\x03"
MAX_SAMPLES, MAX_LEADS = 100_000, 12
_MAX_TEXT = 1_000_000
_RAISED = (
    OSError, LookupError, ValueError, ArithmeticError, RuntimeError, TypeError, AttributeError, MemoryError,
    SystemError,
)  # fmt: skip


def load_filter(name, where):
    """Make the filter of a shard known to HDF5; return the options with which h5py makes a set of it."""
    if name == "none":
        return {}
    try:
        import hdf5plugin
    except ImportError:
        raise ShardError(
            f"{where}: filter {name} needs the package hdf5plugin; pip install 'anyecg-lab[lz4]'"
        ) from None
    return dict(hdf5plugin.Bitshuffle(cname="lz4"))


def open_plain(path):
    """Open a plain file to read and return its descriptor; a link, a pipe or a device is refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as cause:
        raise ShardError(f"{path}: cannot be opened ({cause.strerror}); run 'anyecg shard' again") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ShardError(f"{path}: not a plain file; refuse files from elsewhere")
    return descriptor


@contextlib.contextmanager
def opened(path):
    """Open a shard to read; whatever HDF5 makes of a damaged file becomes one ShardError. A disk's error stays."""
    try:
        with os.fdopen(open_plain(path), "rb", buffering=0) as raw:
            if raw.read(len(_START)) != _START:
                raise ShardError(f"{path}: damaged, or not a shard: it begins as no file of this code; {REMAKE}")
            with h5py.File(raw, "r", rdcc_nbytes=0) as file:
                yield file, _attributes(file, path)
    except _RAISED as cause:
        if isinstance(cause, OSError) and cause.errno is not None:
            raise
        raise ShardError(f"{path}: damaged ({cause}); {REMAKE}") from None


def _attributes(file, path):
    """Return the attributes of a shard: these and no others, each of its type."""

    def read(name):
        stored = h5py.h5a.open(file.id, name.encode())
        kind, wanted = stored.get_type(), ATTRIBUTES[name]
        form = h5py.h5t.TypeStringID if wanted is str else h5py.h5t.TypeIntegerID
        if not isinstance(kind, form) or stored.shape != () or stored.get_storage_size() > _MAX_TEXT:
            raise ShardError(f"{path}: attribute {name} is not a short {wanted.__name__}; {REMAKE}")
        value = file.attrs[name]
        if wanted is int:
            return int(value)
        if not isinstance(value, str) or len(value) > _MAX_TEXT:
            raise ShardError(f"{path}: attribute {name} is not a text of at most {_MAX_TEXT} characters; {REMAKE}")
        return value

    check_format(path, "anyecg-shard", read("format"), read("version"), ShardError)
    n_found = h5py.h5a.get_num_attrs(file.id)
    if n_found != len(ATTRIBUTES):
        raise ShardError(f"{path}: {n_found} attributes, wanted {len(ATTRIBUTES)}; {REMAKE}")
    found = {name: read(name) for name in ATTRIBUTES}
    for name in ("leads", "targets", "components"):
        names = json.loads(found[name])
        if not (isinstance(names, list) and all(isinstance(each, str) for each in names)):
            raise ShardError(f"{path}: attribute {name} is no list of names; {REMAKE}")
    counts = json.loads(found["counts"])
    if not (isinstance(counts, dict) and all(type(n) is int and 0 <= n < 2**53 for n in counts.values())):
        raise ShardError(f"{path}: attribute counts holds no counts; {REMAKE}")
    n_leads = len(json.loads(found["leads"]))
    if not 1 <= n_leads <= MAX_LEADS:
        raise ShardError(f"{path}: windows of {n_leads} leads; wanted 1 to {MAX_LEADS}")
    if not 0 < found["samples"] <= MAX_SAMPLES:
        raise ShardError(f"{path}: windows of {found['samples']} samples; wanted 1 to {MAX_SAMPLES}")
    return found


def parse_shard(path):
    """Parse a shard in this process and check all that HDF5 says of it; the bytes of the signal are not looked at.

    Returns
    -------
    dict
        JSON-like: n_bytes, places (first window, windows, offset, bytes of every chunk of signal), lengths, horizons
        (pairs with each bit), counts and attributes.

    Raises
    ------
    ShardError, UpgradeNeeded
    """
    n_bytes = Path(path).stat().st_size
    with opened(path) as (file, attributes):
        found = {name: _checked(file, name, path, attributes) for name in SETS}
        signal_set = found.pop(SIGNAL)
        _check_size(found, path)
        places = _places(signal_set, attributes["filter"], path, n_bytes)
        sets = {name: dataset[...] for name, dataset in found.items()}
        if attributes["filter"] != "none":
            for first, n_windows, *_ in places:
                signal_set[first : first + n_windows]
    lengths = {name: len(sets[f"{name}/visit"]) for name in ("draws", "visits")}
    lengths |= {"windows": len(sets["windows/visit"]), "pairs": len(sets["pairs/window"])}
    _check_rows(sets, sum(n_windows for _, n_windows, *_ in places), lengths, attributes, path)
    return {
        "n_bytes": n_bytes,
        "places": places,
        "lengths": lengths,
        "horizons": [int((sets["pairs/horizons"] & bit > 0).sum()) for bit in (1, 2, 4)],
        "counts": json.loads(attributes.pop("counts")),
        "attributes": attributes,
    }


def parse_draws(path):
    """Parse the sets of a shard's draws in this process, and nothing else of it.

    Returns
    -------
    dict
        JSON-like: targets and components (lists of names), sets (name to the values as base64 of their bytes).

    Raises
    ------
    ShardError, UpgradeNeeded
    """
    with opened(path) as (file, attributes):
        found = {name: _checked(file, name, path, attributes) for name in SETS if name.startswith("draws/")}
        _check_size(found, path)
        sets = {name: base64.b64encode(dataset[...].tobytes()).decode() for name, dataset in found.items()}
    return {"sets": sets, **{name: json.loads(attributes[name]) for name in ("targets", "components")}}


def _check_size(found, path):
    """Refuse sets whose chunks cannot all be in the file: they would be read as zeros, as many as the shapes say."""
    n_raw = sum(dataset.size * dataset.dtype.itemsize for dataset in found.values())
    if n_raw > Path(path).stat().st_size:
        raise ShardError(f"{path}: its sets say {n_raw} bytes, more than the file holds; {REMAKE}")


def _own_set(file, name, path):
    """Return a set by hard links alone: looking a name up in h5py would open the file that a link names."""
    here = file.id
    for key in name.encode().split(b"/"):
        if not isinstance(here, h5py.h5g.GroupID) or not here.links.exists(key):
            raise ShardError(f"{path}: {name} is missing; make the shard again")
        if here.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise ShardError(f"{path}: {name} is linked from elsewhere; refuse files from elsewhere")
        here = h5py.h5o.open(here, key)
    if not isinstance(here, h5py.h5d.DatasetID):
        raise ShardError(f"{path}: {name} is not a set; make the shard again")
    return here


def _checked(file, name, path, attributes):
    """Return a set, or refuse one that is not stored in the file itself as this code stores it."""
    stored = _own_set(file, name, path)
    plist = stored.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
        raise ShardError(f"{path}: {name} is not stored in the file itself; refuse files from elsewhere")
    dataset = h5py.Dataset(stored)
    wanted = np.dtype(SETS[name])
    filters = tuple(plist.get_filter(number)[0] for number in range(plist.get_nfilters()))
    kind = attributes["filter"] if name == SIGNAL else "none"
    if kind not in FILTERS or dataset.dtype != wanted or filters != FILTERS[kind]:
        raise ShardError(
            f"{path}: {name} has type {dataset.dtype} or other filters {filters}; wanted {wanted} with "
            f"{FILTERS.get(kind, 'those of this code')}"
        )
    load_filter(kind, path)
    n_leads = len(json.loads(attributes["leads"]))
    columns = {
        SIGNAL: (n_leads, attributes["samples"]),
        "windows/scale": scale_columns(n_leads),
        "draws/labels": (len(json.loads(attributes["targets"])),),
        "draws/values": (len(json.loads(attributes["components"])),),
    }.get(name, ())
    rows = CHUNK_WINDOWS if name == SIGNAL else CHUNK_ROWS
    if dataset.shape[1:] != columns or dataset.chunks != (rows, *(max(1, n) for n in columns)):
        raise ShardError(
            f"{path}: {name} has shape {dataset.shape} in chunks {dataset.chunks}; wanted (rows, *{columns}) in {rows}"
        )
    return dataset


def scale_columns(n_leads):
    """Return the columns of the scales: of windows of one lead, which has always been so, none."""
    return (n_leads,) if n_leads > 1 else ()


def chunk_sizes(kind, n_samples):
    """Return the least and the most bytes of a stored chunk of signal; ``n_samples`` are those of all leads."""
    n_raw = CHUNK_WINDOWS * n_samples * np.dtype(SETS[SIGNAL]).itemsize + CHECKSUM_BYTES
    # Without a filter a chunk has one size; LZ4 makes the worst data a little larger.
    return (n_raw, n_raw) if kind == "none" else (CHECKSUM_BYTES + 1, 2 * n_raw)


def _places(signal_set, kind, path, n_bytes):
    """Return (first window, windows, offset, bytes) of every chunk of signal, in order; all must be in the file."""
    n_windows = signal_set.shape[0]
    wanted = -(-n_windows // CHUNK_WINDOWS)
    places: list[tuple[int, int, int, int]] = []

    def take(info):
        first = info.chunk_offset[0]
        places.append((first, min(CHUNK_WINDOWS, n_windows - first), info.byte_offset, info.size))
        return len(places) > wanted or None  # anything but None ends the iteration

    if n_windows:
        signal_set.id.chunk_iter(take)
    places.sort()
    whole = len(places) == wanted and all(
        place[0] == number * CHUNK_WINDOWS for number, place in enumerate(places)
    )  # fmt: skip
    shortest, longest = chunk_sizes(kind, signal_set.shape[1] * signal_set.shape[2])
    sizes = [size for *_, size in places]
    fit = all(shortest <= size <= longest for size in sizes) and sum(sizes) <= n_bytes
    inside = all(offset + size <= n_bytes for *_, offset, size in places)
    if not (whole and fit and inside):
        raise ShardError(f"{path}: {SIGNAL} says {n_windows} windows, but its chunks are not all there; {REMAKE}")
    return places


def _check_rows(sets, n_windows, lengths, attributes, path):
    """Refuse rows that point beyond their sets, sets of unlike lengths, labels and splits out of their range."""
    alike: dict[str, set] = {name.split("/")[0]: set() for name in SETS}
    for name, values in sets.items():
        alike[name.split("/")[0]].add(len(values))
    alike["windows"].add(n_windows)
    if any(len(found) > 1 for found in alike.values()):
        raise ShardError(f"{path}: sets of one kind have several lengths {alike}; {REMAKE}")
    window, draw = sets["pairs/window"], sets["pairs/draw"]
    for name, limit in (
        ("windows/visit", lengths["visits"]), ("draws/visit", lengths["visits"]),
        ("pairs/window", lengths["windows"]), ("pairs/draw", lengths["draws"]),
    ):  # fmt: skip
        rows = sets[name]
        if len(rows) and not 0 <= rows.min() <= rows.max() < limit:
            raise ShardError(f"{path}: {name} holds rows {rows.min()} to {rows.max()} of {limit}; {REMAKE}")
    if (sets["windows/visit"][window] != sets["draws/visit"][draw]).any():
        raise ShardError(f"{path}: a window is paired with a draw of another visit; {REMAKE}")
    if attributes["split"] not in SPLITS or (sets["visits/split"] != SPLITS.index(attributes["split"])).any():
        raise ShardError(f"{path}: not every visit stands in split {attributes['split']!r}; {REMAKE}")
    if not ((sets["draws/labels"] >= -1) & (sets["draws/labels"] <= 1)).all():
        raise ShardError(f"{path}: a label is none of 1, 0 and -1; {REMAKE}")
    if not (np.isfinite(sets["windows/scale"]) & (sets["windows/scale"] > 0)).all():
        raise ShardError(f"{path}: a scale is not a positive number; {REMAKE}")
