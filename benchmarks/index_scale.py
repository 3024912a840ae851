"""Make the index of 20 million windows over 118,000 visits, open it, and seek batches in it."""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from anyecg.kernels.prepare import preset_hash
from anyecg.loaders.files import write_document
from anyecg.loaders.index_form import CHUNK_COLUMNS, table_dtype
from anyecg.loaders.stream import batch, n_batches, open_index
from anyecg.loaders.stream_config import Choice
from benchmarks.kernels import processor

N_TARGETS = 108
N_SHARDS = {"train": 320, "val": 27, "test": 53}


def make_index(folder, n_windows, n_visits):
    """Write the tables of an index without its shards: six draws a visit, each window with one or two of them."""
    rng = np.random.default_rng(0)
    per_visit = n_windows // n_visits
    splits = np.repeat(np.arange(3, dtype=np.int8), list(N_SHARDS.values()))
    visits = np.array_split(np.arange(n_visits), len(splits))
    window_visit = np.repeat(np.arange(n_visits, dtype=np.int32), per_visit)
    n = len(window_visit)
    n_draws = 6 * n_visits
    pair_window = np.repeat(np.arange(n, dtype=np.int32), 1 + (np.arange(n) % 2))
    tables = {
        "window_scale": np.full(n, 1e-4, np.float32),
        "window_visit": window_visit,
        "window_start": np.tile(np.arange(per_visit) * 10_000_000, n_visits),
        "window_flags": np.zeros(n, np.uint8),
        "draw_labels": rng.integers(-1, 2, (n_draws, N_TARGETS), np.int8),
        "draw_time": np.tile(np.arange(6) * 3_600_000_000, n_visits),
        "draw_visit": np.repeat(np.arange(n_visits, dtype=np.int32), 6),
        "pair_window": pair_window,
        "pair_draw": 6 * window_visit[pair_window] + rng.integers(0, 6, len(pair_window), np.int32),
        "visit_patient": np.arange(n_visits, dtype=np.uint64),
        "visit_visit": np.arange(n_visits, dtype=np.uint64),
        "visit_split": np.concatenate([np.full(len(v), s, np.int8) for v, s in zip(visits, splits, strict=True)]),
    }
    train = tables["visit_split"][window_visit[pair_window]] == 0
    tables["pair_horizons"] = np.where(train, 1, rng.choice(np.array([1, 3, 7], np.uint8), len(train))).astype(np.uint8)
    shards, chunks = [], []
    for number, (here, split) in enumerate(zip(visits, splits, strict=True)):
        first, stop = here[0] * per_visit, (here[-1] + 1) * per_visit
        pairs = slice(*np.searchsorted(pair_window, (first, stop)))
        bits = tables["pair_horizons"][pairs]
        shards.append({
            "name": f"shard-{number:05d}.h5", "sha256": "0" * 64, "n_bytes": 10**9, "split": list(N_SHARDS)[split],
            "lengths": {"draws": 6 * len(here), "visits": len(here), "windows": int(stop - first), "pairs": len(bits)},
            "horizons": [int((bits & bit > 0).sum()) for bit in (1, 2, 4)],
        })  # fmt: skip
        starts = np.arange(first, stop, 64)
        chunk = np.zeros((len(starts), len(CHUNK_COLUMNS)), np.int64)
        chunk[:, 0], chunk[:, 1], chunk[:, 2] = number, starts, np.minimum(64, stop - starts)
        chunk[:, 3], chunk[:, 4] = np.arange(len(starts)) * 640_004 + 4096, 640_004
        chunks.append(chunk)
    tables["chunks"] = np.concatenate(chunks)
    for name, table in tables.items():
        np.save(folder / f"index-{name}.npy", table.astype(table_dtype(name), copy=False))
    write_document(folder / "index.json", "anyecg-index", {
        "fs": 500, "samples": 5000, "leads": '["II"]', "preset": "ecgfounder", "filter": "none",
        "preset_hash": preset_hash("ecgfounder", 500), "targets": json.dumps([f"t{c}" for c in range(N_TARGETS)]),
        "target_hash": "", "components": "[]", "stage_hash": "", "cohort_hash": "", "counts": {},
        "patients_in_two_splits": 0, "shards": shards, "hash": "",
        "tables": {name: {"sha256": "0" * 64, "n_bytes": 0, "shape": table.shape} for name, table in tables.items()},
    })  # fmt: skip


def main():
    """Print how long opening and seeking take, and the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=20_000_000)
    parser.add_argument("--visits", type=int, default=118_000)
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own, so that the memory taken to make it is not counted.
        maker = multiprocessing.get_context("spawn").Process(
            target=make_index, args=(Path(folder), arguments.windows, arguments.visits)
        )
        maker.start()
        maker.join()
        _measure(Path(folder), arguments)


def _measure(folder, arguments):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    opened = []
    for _ in range(5):
        start = time.perf_counter()
        index = open_index(folder)
        opened.append(time.perf_counter() - start)
    print(f"{processor()}; {len(index.tables['window_visit'])} windows, {len(index.tables['pair_window'])} pairs")
    print(f"opens in {1e3 * statistics.median(opened):.0f} ms, the first time {1e3 * opened[0]:.0f} ms")
    rng = np.random.default_rng(1)
    for split, horizon_min in (("train", 60), ("test", 60), ("test", 15)):
        _batches(index, rng, arguments.repeats, f"{split}, {horizon_min} min", split=split, horizon_min=horizon_min)
    for chosen in ({"windows_per_draw": 1}, {"windows_per_sample": 3}, {"balance": 0.5}, {"patients": 0.3}):
        said = ", ".join(f"{key} {value}" for key, value in chosen.items())
        _batches(index, rng, arguments.repeats, f"train, 60 min, {said}", choice=Choice(**chosen))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"memory taken by all this: {after - before:.0f} MB, mapped pages of the tables included")


def _batches(index, rng, n_repeats, said, **options):
    """Print how long the first batch of an epoch takes, and then any other one."""
    options |= {"batch_size": 256, "seed": 0}
    batch(index, 0, epoch=0, **options)  # loads compiled code
    first, later = [], []
    for epoch in range(1, 8):
        n = n_batches(index, epoch=0, **options)
        for seconds, repeats in ((first, 1), (later, n_repeats // 7)):
            for number in rng.integers(0, n - 1, repeats).tolist():
                start = time.perf_counter()
                batch(index, number, epoch=epoch, **options)
                seconds.append(time.perf_counter() - start)
    print(
        f"any of the {n} batches of 256 of {said}: median {1e3 * statistics.median(later):.1f} ms, "
        f"longest {1e3 * max(later):.1f} ms; the first of a new epoch {1e3 * statistics.median(first):.0f} ms"
    )


if __name__ == "__main__":
    main()
