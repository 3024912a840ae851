"""A set of real shards with an index for the benchmarks of the stream, and the reader that they measure."""

import json
import time
import zlib
from collections import deque

import numpy as np

from anyecg.kernels.prepare import prepare, preset_hash
from anyecg.kernels.segment import quantise
from anyecg.loaders.files import FORMATS
from anyecg.loaders.index import write_index
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.shard_file import ShardWriter, describe_shard
from anyecg.loaders.source import READ_AHEAD
from anyecg.loaders.stream import batch, n_batches, slots_of_rank
from anyecg.loaders.stream_config import Choice
from benchmarks.kernels import DEMO, real_windows
from benchmarks.page_cache import flush

N_TARGETS, N_SAMPLES = 108, 5000
WINDOWS_PER_SHARD, WINDOWS_PER_VISIT, DRAWS_PER_VISIT = 10_300, 640, 6
N_BASE = 512
# With 256 lanes the pools of a set as small as this one hold all of it, and an epoch reads it all at its beginning.
CHOICE = Choice(lanes=64)


def open_reader(index, *, batch_size=256, n_slots=None, check=True, threads=2):
    """Return the reader of one rank as training has it: the only place that says which reader is measured."""
    n_slots = n_slots or slots_of_rank(CHOICE, batch_size=batch_size, n_ranks=1)
    return WindowReader(index, run_chunks=CHOICE.run_chunks, n_slots=n_slots, check=check, threads=threads)


def read_batches(index, reader, epoch, out, *, batch_size=256):
    """Yield the int16 batches of an epoch as training reads them, later runs ahead, all in one buffer."""
    order = {"seed": 0, "epoch": epoch, "batch_size": batch_size, "choice": CHOICE}
    n_all = n_batches(index, **order)

    def rows(number):
        pairs = batch(index, number, **order) if number < n_all else []
        return index.tables["pair_window"][pairs]

    known = deque(rows(number) for number in range(READ_AHEAD))
    for number in range(n_all):
        known.append(rows(number + READ_AHEAD))
        here = known.popleft()
        yield reader.read(here, out[: len(here)], then=known[-1])


def make_signal(n_windows):
    """Return int16 (n_windows, 5000), no two alike: real windows, each time around turned by a little more."""
    base = quantise(prepare(real_windows(DEMO, N_BASE), zscore=False))[0]
    signal = np.empty((n_windows, N_SAMPLES), np.int16)
    for number, first in enumerate(range(0, n_windows, N_BASE)):
        part = signal[first : first + N_BASE]
        part[:] = np.roll(base, 23 * number, axis=1)[: len(part)]
    if len(np.unique(checksums(signal))) < n_windows:
        raise ValueError(f"two of {n_windows} windows are alike; take fewer")
    return signal


def checksums(windows):
    """Return CRC-32 and Adler-32 of each window in one uint64: by them an epoch shows that it had each window once."""
    return np.array([zlib.crc32(row) << 32 | zlib.adler32(row) for row in np.ascontiguousarray(windows)], np.uint64)


def make_set(folder, parts):
    """Write shards and an index into an existing folder.

    Parameters
    ----------
    folder : Path
    parts : list of (split, int16 (n, 5000))
        In the order of the global rows. Each window makes one pair, so that an epoch has each window once.
    """
    described = []
    for split, signal in parts:
        for first in range(0, len(signal), WINDOWS_PER_SHARD):
            path = folder / f"shard-{len(described):05d}.h5"
            _write_shard(path, split, signal[first : first + WINDOWS_PER_SHARD], seed=len(described))
            described.append(describe_shard(path))
    counts = {what: sum(shard["counts"][what] for shard in described) for what in ("pairs", "windows")}
    write_index(folder, described, {"stage_hash": "0", "cohort_hash": "0", "counts": counts})
    flush(sorted(folder.glob("*")))


def _write_shard(path, split, signal, *, seed):
    attributes = {
        "format": "anyecg-shard", "version": FORMATS["anyecg-shard"], "code_version": "0", "fs": 500,
        "samples": N_SAMPLES, "leads": '["II"]', "preset": "ecgfounder", "filter": "none", "split": split,
        "preset_hash": preset_hash("ecgfounder", 500), "targets": json.dumps([f"t{c}" for c in range(N_TARGETS)]),
        "target_hash": "0", "components": '["c"]', "plan_hash": "0",
    }  # fmt: skip
    sets = _sets(len(signal), split, np.random.default_rng(seed), first_patient=seed * 10_000)
    with ShardWriter(path, attributes) as writer:
        writer.append(signal[:, None])
        writer.finish(sets, {"windows": len(signal), "pairs": len(signal)})


def _sets(n, split, rng, *, first_patient):
    visit = np.arange(n) // WINDOWS_PER_VISIT
    n_visits = visit[-1] + 1
    n_draws = DRAWS_PER_VISIT * n_visits
    key = first_patient + np.arange(n_visits)
    return {
        "windows/scale": np.full(n, 1e-4), "windows/visit": visit, "windows/flags": np.zeros(n),
        "windows/start": np.arange(n) * 10_000_000, "draws/labels": rng.integers(-1, 2, (n_draws, N_TARGETS)),
        "draws/values": rng.random((n_draws, 1)), "draws/time": np.arange(n_draws) * 3_600_000_000,
        "draws/visit": np.arange(n_draws) // DRAWS_PER_VISIT, "pairs/window": np.arange(n),
        "pairs/draw": DRAWS_PER_VISIT * visit + rng.integers(0, DRAWS_PER_VISIT, n), "pairs/offset": np.zeros(n),
        "pairs/horizons": np.full(n, 1), "visits/patient": key, "visits/visit": key,
        "visits/split": np.full(n_visits, ("train", "val", "test").index(split)),
        "visits/age": np.full(n_visits, 50.0), "visits/sex": np.zeros(n_visits),
    }  # fmt: skip


def copy_seconds(signal, out):
    """Return the seconds that np.copyto takes for all windows, a batch at a time, into one buffer: the limit."""
    start = time.perf_counter()
    for first in range(0, len(signal) - len(out) + 1, len(out)):
        np.copyto(out, signal[first : first + len(out)])
    return time.perf_counter() - start
