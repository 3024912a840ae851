"""Other ways to shuffled batches of the same windows: how each stores them, and an epoch in its own best form.

Each way is a context manager that yields ``epoch(number)``, an iterator of int16 arrays or tensors (256, 5000). All
hold the windows uncompressed, as our shards do. DataLoader over rows gets a contiguous set in one file, opened in each
worker, because chunks of 64 windows would be read whole for each row.
"""

import importlib
import os
from contextlib import contextmanager

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

BATCH = 256


def batches_of(rows):
    """Cut row numbers into batches."""
    return [rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]


def write_rows(folder, signal):
    """Store the windows as one NPY file and as one contiguous HDF5 set."""
    np.save(folder / "rows.npy", signal)
    with h5py.File(folder / "rows.h5", "w") as file:
        file.create_dataset("signal", data=signal)


def write_blocks(folder, signal):
    """Store the windows in chunks of 64 and of 256 with Fletcher32."""
    for chunk in (64, 256):
        with h5py.File(folder / f"blocks{chunk}.h5", "w") as file:
            file.create_dataset("signal", data=signal, chunks=(chunk, signal.shape[1]), fletcher32=True)


def write_mosaic(folder, signal):
    """Store the windows as MosaicML's shards (MDS), each an array of known shape."""
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "mds"), columns={"signal": f"ndarray:int16:{signal.shape[1]}"}) as writer:
        for window in signal:
            writer.write({"signal": window})


def write_tars(folder, signal):
    """Store the windows as 16 tar files of raw bytes, the cheapest member to decode."""
    import webdataset

    (folder / "tars").mkdir()
    for number, part in enumerate(np.array_split(signal, 16)):
        with webdataset.TarWriter(str(folder / "tars" / f"train-{number:05d}.tar")) as writer:
            for row, window in enumerate(part):
                writer.write({"__key__": f"{number:05d}{row:07d}", "bin": window.tobytes()})


def write_all(folder, signal):
    """Store the windows for every peer that is installed; return a line for each that is not."""
    write_rows(folder, signal)
    write_blocks(folder, signal)
    missing = []
    for name, write in (("streaming", write_mosaic), ("webdataset", write_tars)):
        try:
            importlib.import_module(name)
        except ImportError as cause:
            missing.append(
                f"{name} is skipped ({cause}): pip install --no-deps --target PEERS "
                "-r benchmarks/requirements-peers.txt, then PYTHONPATH=PEERS"
            )
        else:
            write(folder, signal)
    return missing


@contextmanager
def memmap(folder):
    """Index a memory map by 256 shuffled rows."""
    signal = np.asarray(np.load(folder / "rows.npy", mmap_mode="r"))

    def epoch(number):
        order = np.random.default_rng(number).permutation(len(signal))
        return (signal[rows] for rows in batches_of(order))

    yield epoch


@contextmanager
def blocks(folder, chunk):
    """Read whole chunks in shuffled order through HDF5, which checks Fletcher32, into one batch."""
    out = np.empty((BATCH, 5000), np.int16)
    with h5py.File(folder / f"blocks{chunk}.h5") as file:
        signal = file["signal"]

        def epoch(number):
            order = np.random.default_rng(number).permutation(len(signal) // chunk)
            for first in range(0, len(order), BATCH // chunk):
                for place, block in enumerate(order[first : first + BATCH // chunk]):
                    signal.read_direct(
                        out, np.s_[block * chunk : (block + 1) * chunk], np.s_[place * chunk : (place + 1) * chunk]
                    )
                yield out

        yield epoch


class Rows(Dataset):
    """Windows of a contiguous HDF5 set, one row at a time; the file is opened in the process that reads it."""

    def __init__(self, path):
        self.path, self.signal = path, None
        with h5py.File(path) as file:
            self.n_windows = len(file["signal"])

    def __len__(self):
        return self.n_windows

    def _open(self):
        return h5py.File(self.path)["signal"]

    def __getitem__(self, row):
        if self.signal is None:
            self.signal = self._open()
        return self.signal[row]


class RowsTogether(Rows):
    """The same, a batch of rows in one call and without HDF5 reading 64 kB ahead: faster than what the manuals show."""

    def _open(self):
        access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
        access.set_sieve_buf_size(1)
        return h5py.File(h5py.h5f.open(os.fsencode(self.path), h5py.h5f.ACC_RDONLY, access))["signal"]

    def __getitems__(self, rows):
        out = np.empty((len(rows), 5000), np.int16)
        for place, row in enumerate(rows):
            out[place] = self[row]
        return torch.from_numpy(out)


def as_it_is(batch):
    """Collate nothing."""
    return batch


@contextmanager
def torch_rows(folder, n_workers, *, together=False):
    """Shuffle rows with torch's DataLoader."""
    rows, options = (RowsTogether, {"collate_fn": as_it_is}) if together else (Rows, {})
    loader = DataLoader(
        rows(folder / "rows.h5"), batch_size=BATCH, shuffle=True, num_workers=n_workers,
        persistent_workers=n_workers > 0, **options,
    )  # fmt: skip
    yield lambda number: iter(loader)


@contextmanager
def mosaic(folder, n_workers):
    """Shuffle with MosaicML's StreamingDataset, local, in its default algorithm."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    data = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    loader = DataLoader(data, batch_size=BATCH, num_workers=n_workers, persistent_workers=n_workers > 0)
    yield lambda number: (batch["signal"] for batch in loader)


@contextmanager
def tars(folder, n_workers):
    """Shuffle with WebDataset: the order of the tar files, then a buffer of 5,000 windows; batches made by workers."""
    import webdataset

    paths = sorted(str(path) for path in (folder / "tars").iterdir())
    data = (
        webdataset.WebDataset(paths, shardshuffle=len(paths))
        .shuffle(5000)
        .to_tuple("bin")
        .map_tuple(lambda stored: np.frombuffer(stored, np.int16))
        .batched(BATCH)
    )
    loader = webdataset.WebLoader(
        data, batch_size=None, num_workers=n_workers, persistent_workers=n_workers > 0
    )  # fmt: skip
    yield lambda number: (batch[0] for batch in loader)
