"""One shard: an HDF5 file that is written chunk by chunk, read back whole, and refused when it is of another make."""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from anyecg.kernels.checksum import fletcher32
from anyecg.loaders.apart import parse_apart
from anyecg.loaders.crc32 import crc32
from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import FORMATS, NewFile, code_version, digest
from anyecg.loaders.shard_parse import (
    CHECKSUM_BYTES,
    CHUNK_ROWS,
    CHUNK_WINDOWS,
    REMAKE,
    SETS,
    SIGNAL,
    load_filter,
    open_plain,
)
from anyecg.loaders.splits import SPLITS


class Chunk(NamedTuple):
    """Where a chunk of signal lies in its file, and the CRC-32 of its bytes there."""

    first_window: int
    n_windows: int
    offset: int
    n_bytes: int
    crc32: int


def shard_attributes(cohort, config, split, plan_hash):
    """Return the attributes of a shard: what it means, never where or by whom it was made."""
    # Both take SciPy's filters with them, a second that readers of shards can do without.
    from anyecg.kernels.prepare import preset_hash
    from anyecg.loaders.shard_config import SECONDS

    return {
        "format": "anyecg-shard",
        "version": FORMATS["anyecg-shard"],
        "code_version": code_version(),
        "fs": config.fs,
        "samples": SECONDS * config.fs,
        "leads": json.dumps(config.leads or ["first"]),
        "preset": config.preset,
        "preset_hash": preset_hash(config.preset, config.fs),
        "filter": config.filter,
        "targets": json.dumps(cohort.targets),
        "target_hash": digest([cohort.targets, cohort.definition]),
        "components": json.dumps(cohort.components),
        "split": SPLITS[split],
        "plan_hash": plan_hash,
    }


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
        self._shape = (CHUNK_WINDOWS, len(json.loads(attributes["leads"])), attributes["samples"])
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

    def append(self, signal_WLT):
        """Add int16 windows, shape (W, leads, samples)."""
        done = 0
        while done < len(signal_WLT):
            row = self._n_windows % CHUNK_WINDOWS
            n = min(CHUNK_WINDOWS - row, len(signal_WLT) - done)
            self._buffer[row : row + n] = signal_WLT[done : done + n]
            done, self._n_windows = done + n, self._n_windows + n
            if row + n == CHUNK_WINDOWS:
                self._write_chunk(self._n_windows - CHUNK_WINDOWS)

    def _write_chunk(self, first):
        """Write the buffer as the chunk of window ``first``; rows beyond the last window are zero."""
        self._signal.resize(self._n_windows, axis=0)
        if self._filter == "none":
            data = self._buffer.tobytes()
            data += fletcher32(data).to_bytes(CHECKSUM_BYTES, "little")
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
                chunks=(CHUNK_ROWS, *(max(1, n) for n in values.shape[1:])),
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._file.close()
        finally:
            self._disk.close()


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
        storage, an unknown filter, a shape that is not in the file, or anything that HDF5 crashes or loops on.
    """
    found = parse_apart(path)
    places = found.pop("places")
    chunks, sha256, damaged = read or read_through(path, places)
    if [list(chunk[:-1]) for chunk in chunks] != places:
        raise ShardError(f"{path}: its chunks lie elsewhere than index-chunks.npy says; {REMAKE}")
    if damaged:
        raise ShardError(f"{path}: windows {damaged[0][0]} to {damaged[0][1]} are damaged; {REMAKE}")
    own = {key: found["attributes"].pop(key) for key in ("split", "plan_hash")}
    return {"name": Path(path).name, "sha256": sha256, "chunks": chunks, **own, **found}


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
    with os.fdopen(open_plain(path), "rb", buffering=0) as file:
        for first, n_windows, offset, n_bytes in sorted(places, key=lambda place: place[2]):
            if offset < file.tell():
                raise ShardError(f"{path}: two chunks of {SIGNAL} share their bytes; {REMAKE}")
            _hash_up_to(whole, file, offset)
            stored = file.read(n_bytes)
            whole.update(stored)
            data, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:]
            if len(stored) < n_bytes or fletcher32(data) != int.from_bytes(checksum, "little"):
                damaged.append((first, first + n_windows - 1))
            chunks.append(Chunk(first, n_windows, offset, n_bytes, crc32(stored)))
        _hash_up_to(whole, file, None)
    return sorted(chunks), whole.hexdigest(), sorted(damaged)


def _hash_up_to(whole, file, offset):
    """Hash a file from where it stands up to ``offset``, or to its end."""
    while block := file.read(1_048_576 if offset is None else min(1_048_576, offset - file.tell())):
        whole.update(block)
