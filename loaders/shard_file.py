"""One shard: an HDF5 file that is written chunk by chunk, read back whole, and refused when it is of another make."""

import contextlib
import hashlib
import json
import zlib
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from anyecg.kernels.checksum import fletcher32
from anyecg.kernels.prepare import preset_hash
from anyecg.loaders.cohort import SPLITS
from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import FORMATS, NewFile, check_format, code_version, digest
from anyecg.loaders.windows import SECONDS

CHUNK_WINDOWS = 64
_CHUNK_ROWS = 16_384
_CHECKSUM_BYTES = 4
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
# HDF5's numbers of the filters of a signal, in order.
FILTERS = {"none": (h5py.h5z.FILTER_FLETCHER32,), "bitshuffle-lz4": (32008, h5py.h5z.FILTER_FLETCHER32)}
_REMAKE = "remove it and run 'anyecg shard' again"


class Chunk(NamedTuple):
    """Where a chunk of signal lies in its file, and the CRC-32 of its bytes there."""

    first_window: int
    n_windows: int
    offset: int
    n_bytes: int
    crc32: int


def shard_attributes(cohort, config, split, plan_hash):
    """Return the attributes of a shard: what it means, never where or by whom it was made."""
    return {
        "format": "anyecg-shard",
        "version": FORMATS["anyecg-shard"],
        "code_version": code_version(),
        "fs": config.fs,
        "samples": SECONDS * config.fs,
        "leads": json.dumps([config.lead or "first"]),
        "preset": config.preset,
        "preset_hash": preset_hash(config.preset, config.fs),
        "filter": config.filter,
        "targets": json.dumps(cohort.targets),
        "target_hash": digest([cohort.targets, cohort.definition]),
        "components": json.dumps(cohort.components),
        "split": SPLITS[split],
        "plan_hash": plan_hash,
    }


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


class ShardWriter:
    """Write one shard; a chunk of signal is in memory at a time.

    Parameters
    ----------
    path : Path
        A new file.
    attributes : dict
        As ``shard_attributes`` gives them.
    """

    def __init__(self, path, attributes):
        self._shape = (CHUNK_WINDOWS, 1, attributes["samples"])
        self._buffer = np.zeros(self._shape, np.int16)
        self._n_windows = 0
        self._filter = attributes["filter"]
        self._disk = NewFile(path)
        self._file = h5py.File(self._disk, "w", libver=("v110", "v110"))
        self._file.attrs.update(attributes)
        self._signal = self._file.create_dataset(
            SIGNAL, (0, *self._shape[1:]), SETS[SIGNAL], maxshape=(None, *self._shape[1:]), chunks=self._shape,
            fletcher32=True, **load_filter(self._filter, path),
        )  # fmt: skip

    def append(self, signal_WT):
        """Add int16 windows, shape (W, samples)."""
        done = 0
        while done < len(signal_WT):
            row = self._n_windows % CHUNK_WINDOWS
            n = min(CHUNK_WINDOWS - row, len(signal_WT) - done)
            self._buffer[row : row + n, 0] = signal_WT[done : done + n]
            done, self._n_windows = done + n, self._n_windows + n
            if row + n == CHUNK_WINDOWS:
                self._write_chunk(self._n_windows - CHUNK_WINDOWS)

    def _write_chunk(self, first):
        """Write the buffer as the chunk of window ``first``; rows beyond the last window are zero."""
        self._signal.resize(self._n_windows, axis=0)
        if self._filter == "none":
            data = self._buffer.tobytes()
            data += fletcher32(data).to_bytes(_CHECKSUM_BYTES, "little")
            self._signal.id.write_direct_chunk((first, 0, 0), data)
        else:
            self._signal[first:] = self._buffer[: self._n_windows - first]
        self._disk.check()

    def finish(self, sets, counts):
        """Write the other sets and the counts, and close the file."""
        rest = self._n_windows % CHUNK_WINDOWS
        if rest:
            self._buffer[rest:] = 0
            self._write_chunk(self._n_windows - rest)
        self._file.attrs["counts"] = json.dumps(counts, sort_keys=True)
        for name, values in sorted(sets.items()):
            self._file.create_dataset(
                name, data=values.astype(SETS[name], copy=False), maxshape=(None,) * values.ndim, fletcher32=True,
                chunks=(_CHUNK_ROWS, *(max(1, n) for n in values.shape[1:])),
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._file.close()
        finally:
            self._disk.close()


@contextlib.contextmanager
def opened(path):
    """Open a shard to read; whatever HDF5 makes of a damaged file becomes one ShardError. A disk's error stays."""
    try:
        with Path(path).open("rb", buffering=0) as raw, h5py.File(raw, "r", rdcc_nbytes=0) as file:
            attributes = {
                key: value.item() if isinstance(value, np.generic) else value for key, value in file.attrs.items()
            }
            found = attributes.get("format"), int(attributes.get("version", -1))
            check_format(path, "anyecg-shard", *found, ShardError)
            yield file, attributes
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError) as cause:
        if isinstance(cause, OSError) and cause.errno is not None:
            raise
        raise ShardError(f"{path}: damaged ({cause}); {_REMAKE}") from None


def describe_shard(path, read=None):
    """Read a whole shard, every checksum verified, and describe it for the index.

    Parameters
    ----------
    read : optional
        What ``read_through`` gave for the places of the index; the signal is not read again.

    Returns
    -------
    dict
        name, sha256, n_bytes, split, plan_hash, counts, chunks (list of Chunk), lengths, horizons (pairs with each
        bit) and attributes.

    Raises
    ------
    ShardError
        Damaged (with the windows, where they can be told), another version, a set that is missing, an external link or
        storage, an unknown filter, a shape that is not in the file.
    """
    n_bytes = Path(path).stat().st_size
    with opened(path) as (file, attributes):
        names = [name for name in SETS if name != SIGNAL]
        sets = {name: _checked(file, name, path, attributes, n_bytes)[...] for name in names}
        signal = _checked(file, SIGNAL, path, attributes, n_bytes)
        places = _places(signal, attributes["filter"], path, n_bytes)
        counts = json.loads(attributes["counts"])
        if attributes["filter"] != "none":
            for first, n_windows, *_ in places:
                signal[first : first + n_windows]
    chunks, sha256, damaged = read or read_through(path, places)
    if [chunk[:-1] for chunk in chunks] != places:
        raise ShardError(f"{path}: its chunks lie elsewhere than index-chunks.npy says; {_REMAKE}")
    if damaged:
        raise ShardError(f"{path}: windows {damaged[0][0]} to {damaged[0][1]} are damaged; {_REMAKE}")
    lengths = {name: len(sets[f"{name}/visit"]) for name in ("draws", "visits")}
    lengths |= {"windows": len(sets["windows/visit"]), "pairs": len(sets["pairs/window"])}
    _check_rows(sets, sum(chunk.n_windows for chunk in chunks), lengths, attributes, path)
    return {
        "name": Path(path).name,
        "sha256": sha256,
        "n_bytes": n_bytes,
        "split": attributes["split"],
        "plan_hash": attributes["plan_hash"],
        "counts": counts,
        "chunks": chunks,
        "lengths": lengths,
        "horizons": [int((sets["pairs/horizons"] & bit > 0).sum()) for bit in (1, 2, 4)],
        "attributes": {key: value for key, value in attributes.items() if key not in ("split", "plan_hash", "counts")},
    }


def _checked(file, name, path, attributes, n_bytes):
    """Return a set, or refuse one that is not stored in the file itself as this code stores it."""
    group, leaf = name.split("/")
    for where, key in ((file, group), (file.get(group, {}), leaf)):
        if key not in where:
            raise ShardError(f"{path}: {name} is missing; make the shard again")
        if not isinstance(where.get(key, getlink=True), h5py.HardLink):
            raise ShardError(f"{path}: {name} is linked from elsewhere; refuse files from elsewhere")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise ShardError(f"{path}: {name} is not stored in the file itself; refuse files from elsewhere")
    wanted = np.dtype(SETS[name])
    plist = dataset.id.get_create_plist()
    filters = tuple(plist.get_filter(number)[0] for number in range(plist.get_nfilters()))
    kind = attributes["filter"] if name == SIGNAL else "none"
    if kind not in FILTERS or dataset.dtype != wanted or filters != FILTERS[kind]:
        raise ShardError(
            f"{path}: {name} has type {dataset.dtype} or other filters {filters}; wanted {wanted} with "
            f"{FILTERS.get(kind, 'those of this code')}"
        )
    load_filter(kind, path)
    columns = {
        SIGNAL: (1, int(attributes["samples"])),
        "draws/labels": (len(json.loads(attributes["targets"])),),
        "draws/values": (len(json.loads(attributes["components"])),),
    }.get(name, ())
    rows = CHUNK_WINDOWS if name == SIGNAL else _CHUNK_ROWS
    if dataset.shape[1:] != columns or dataset.chunks != (rows, *(max(1, n) for n in columns)):
        raise ShardError(
            f"{path}: {name} has shape {dataset.shape} in chunks {dataset.chunks}; wanted (rows, *{columns}) in {rows}"
        )
    # Chunks that are not in the file would be read as zeros, and as many as the shape says.
    if kind == "none" and dataset.size * wanted.itemsize > n_bytes:
        raise ShardError(f"{path}: {name} has shape {dataset.shape}, more than the file holds; {_REMAKE}")
    return dataset


def _places(signal, kind, path, n_bytes):
    """Return (first window, windows, offset, bytes) of every chunk of signal, in order; all must be in the file."""
    wanted = -(-len(signal) // CHUNK_WINDOWS)
    places: list[tuple[int, int, int, int]] = []

    def take(info):
        first = info.chunk_offset[0]
        places.append((first, min(CHUNK_WINDOWS, len(signal) - first), info.byte_offset, info.size))
        return len(places) > wanted or None  # anything but None ends the iteration

    if len(signal):
        signal.id.chunk_iter(take)
    places.sort()
    whole = [first for first, *_ in places] == list(range(0, len(signal), CHUNK_WINDOWS))
    n_raw = CHUNK_WINDOWS * signal.shape[2] * signal.dtype.itemsize + _CHECKSUM_BYTES
    # Without a filter a chunk has one size; LZ4 makes the worst data a little larger.
    shortest = n_raw if kind == "none" else _CHECKSUM_BYTES + 1
    longest = n_raw if kind == "none" else 2 * n_raw
    sizes = [size for *_, size in places]
    fit = all(shortest <= size <= longest for size in sizes) and sum(sizes) <= n_bytes
    inside = all(offset + size <= n_bytes for *_, offset, size in places)
    if not (whole and fit and inside):
        raise ShardError(f"{path}: {SIGNAL} says {len(signal)} windows, but its chunks are not all there; {_REMAKE}")
    return places


def read_through(path, places):
    """Read a shard once, from start to end.

    Parameters
    ----------
    places : list of (first window, windows, offset, bytes)
        Chunks of signal.

    Returns
    -------
    (list of Chunk, SHA-256 of the file, list of (first, last) window of the chunks that are damaged)
    """
    whole, chunks, damaged = hashlib.sha256(), [], []
    with Path(path).open("rb", buffering=0) as file:
        for first, n_windows, offset, n_bytes in sorted(places, key=lambda place: place[2]):
            if offset < file.tell():
                raise ShardError(f"{path}: two chunks of {SIGNAL} share their bytes; {_REMAKE}")
            _hash_up_to(whole, file, offset)
            stored = file.read(n_bytes)
            whole.update(stored)
            data, checksum = stored[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
            if len(stored) < n_bytes or fletcher32(data) != int.from_bytes(checksum, "little"):
                damaged.append((first, first + n_windows - 1))
            chunks.append(Chunk(first, n_windows, offset, n_bytes, zlib.crc32(stored)))
        _hash_up_to(whole, file, None)
    return sorted(chunks), whole.hexdigest(), sorted(damaged)


def _hash_up_to(whole, file, offset):
    """Hash a file from where it stands up to ``offset``, or to its end."""
    while block := file.read(1_048_576 if offset is None else min(1_048_576, offset - file.tell())):
        whole.update(block)


def _check_rows(sets, n_windows, lengths, attributes, path):
    """Refuse rows that point beyond their sets, sets of unlike lengths, labels and splits out of their range."""
    alike: dict[str, set] = {name.split("/")[0]: set() for name in SETS}
    for name, values in sets.items():
        alike[name.split("/")[0]].add(len(values))
    alike["windows"].add(n_windows)
    if any(len(found) > 1 for found in alike.values()):
        raise ShardError(f"{path}: sets of one kind have several lengths {alike}; {_REMAKE}")
    window, draw = sets["pairs/window"], sets["pairs/draw"]
    for name, limit in (
        ("windows/visit", lengths["visits"]), ("draws/visit", lengths["visits"]),
        ("pairs/window", lengths["windows"]), ("pairs/draw", lengths["draws"]),
    ):  # fmt: skip
        rows = sets[name]
        if len(rows) and not 0 <= rows.min() <= rows.max() < limit:
            raise ShardError(f"{path}: {name} holds rows {rows.min()} to {rows.max()} of {limit}; {_REMAKE}")
    if (sets["windows/visit"][window] != sets["draws/visit"][draw]).any():
        raise ShardError(f"{path}: a window is paired with a draw of another visit; {_REMAKE}")
    if attributes["split"] not in SPLITS or (sets["visits/split"] != SPLITS.index(attributes["split"])).any():
        raise ShardError(f"{path}: not every visit stands in split {attributes['split']!r}; {_REMAKE}")
    if len(sets["draws/labels"]) and not np.isin(sets["draws/labels"], (-1, 0, 1)).all():
        raise ShardError(f"{path}: a label is none of 1, 0 and -1; {_REMAKE}")
    if not (np.isfinite(sets["windows/scale"]) & (sets["windows/scale"] > 0)).all():
        raise ShardError(f"{path}: a scale is not a positive number; {_REMAKE}")
