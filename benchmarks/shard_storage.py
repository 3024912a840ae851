"""Compare chunk sizes and filters for the signal of a shard, as training reads it: whole chunks, in random order."""

import argparse
import os
import statistics
import tempfile
import time
import zlib
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

from anyecg.kernels.prepare import prepare
from anyecg.kernels.segment import quantise
from benchmarks.kernels import DEMO, processor, real_windows

FILTERS = {
    "none": {},
    "gzip-1 + shuffle": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
    "LZF + shuffle": {"compression": "lzf", "shuffle": True},
    "bit-shuffled LZ4": dict(hdf5plugin.Bitshuffle(cname="lz4")),
}


def write(path, signal, chunk, options):
    """Write windows chunk by chunk, flushed to the disk; return the seconds taken."""
    start = time.perf_counter()
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        shape = (chunk, *signal.shape[1:])
        data = file.create_dataset(
            "signal", signal.shape, signal.dtype, maxshape=(None, *signal.shape[1:]), chunks=shape, fletcher32=True,
            **options,
        )  # fmt: skip
        for first in range(0, len(signal), chunk):
            data[first : first + chunk] = signal[first : first + chunk]
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - start


def read_plain(path, order, chunk, shape):
    """Read unfiltered chunks with plain reads at offsets known beforehand, each checked, into one batch buffer."""
    with h5py.File(path) as file:
        data = file["signal"]
        infos = [data.id.get_chunk_info(number) for number in range(data.id.get_num_chunks())]
    checks = {}
    with path.open("rb") as file:
        for info in infos:
            checks[info.chunk_offset[0] // chunk] = zlib.crc32(os.pread(file.fileno(), info.size, info.byte_offset))
        out = np.empty((chunk, *shape[1:]), np.int16)
        start = time.perf_counter()
        for number in order:
            stored = os.pread(file.fileno(), infos[number].size, infos[number].byte_offset)
            assert zlib.crc32(stored) == checks[number]
            np.copyto(out, np.frombuffer(stored, "<i2", out.size).reshape(out.shape))
        return time.perf_counter() - start


def read_hdf5(path, order, chunk, shape):
    """Read chunks through HDF5, which checks Fletcher32 and unpacks, into one batch buffer."""
    out = np.empty((chunk, *shape[1:]), np.int16)
    with h5py.File(path) as file:
        data = file["signal"]
        start = time.perf_counter()
        for number in order:
            data.read_direct(out, np.s_[number * chunk : (number + 1) * chunk])
        return time.perf_counter() - start


def main():
    """Print size, writing and reading rate of each chunk size and filter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    signal = quantise(prepare(real_windows(DEMO, min(arguments.windows, 2048)), zscore=False))[0][:, None]
    signal = np.concatenate([signal] * -(-arguments.windows // len(signal)))[: arguments.windows]
    print(f"{processor()}; HDF5 {h5py.version.hdf5_version}, hdf5plugin {hdf5plugin.version}")
    print(
        f"{len(signal)} windows of real recordings, {signal.nbytes / 1e6:.0f} MB; medians of {arguments.repeats} turns"
    )
    rng = np.random.default_rng(0)
    ways = {}
    for chunk in (16, 64, 256):
        for name, options in FILTERS.items():
            readers = {"HDF5": read_hdf5} if options else {"plain reads": read_plain, "HDF5": read_hdf5}
            for how, read in readers.items():
                ways[chunk, name, how] = (options, read)
    written, taken, sizes = ({key: [] for key in ways} for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signal.h5"
        for _ in range(arguments.repeats):
            for key, (options, read) in ways.items():
                chunk = key[0]
                written[key].append(write(path, signal, chunk, options))
                sizes[key].append(path.stat().st_size)
                taken[key].append(read(path, rng.permutation(len(signal) // chunk), chunk, signal.shape))
    print("chunk  filter             read by      size   write MB/s   read windows/s")
    for key in ways:
        chunk, name, how = key
        size = sizes[key][0] / signal.nbytes
        write_rate = signal.nbytes / 1e6 / statistics.median(written[key])
        read_rate = len(signal) / statistics.median(taken[key])
        print(f"{chunk:5d}  {name:<18} {how:<11} {size:5.2f}   {write_rate:8.0f}   {read_rate:14.0f}")


if __name__ == "__main__":
    main()
