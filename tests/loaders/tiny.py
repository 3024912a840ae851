"""A hand-written set of four tiny shards with an index, made in a tenth of a second."""

import json

import numpy as np

from anyecg.loaders.files import FORMATS
from anyecg.loaders.index import write_index
from anyecg.loaders.shard_file import ShardWriter, describe_shard

SAMPLES = 50
# Split and number of windows of each shard; the windows of 64 make a chunk.
SHARDS = (("train", 150), ("train", 70), ("val", 64), ("test", 3))


def attributes(split, form="none"):
    """Return the attributes of a tiny shard."""
    return {
        "format": "anyecg-shard", "version": FORMATS["anyecg-shard"], "code_version": "0", "fs": 5, "samples": SAMPLES,
        "leads": json.dumps(["I"]), "preset": "none", "preset_hash": "0", "filter": form,
        "targets": json.dumps(["a", "b"]), "target_hash": "1", "components": json.dumps(["c"]), "split": split,
        "plan_hash": "2",
    }  # fmt: skip


def tiny_sets(n_windows, split, rng, *, n_visits=4, first_patient=0, missing=0.0):
    """Return the sets of a tiny shard: each window is paired with every draw of its visit; a share has no values."""
    n_draws = n_visits + 2
    window_visit = np.sort(rng.integers(0, n_visits, n_windows))
    draw_visit = np.concatenate([np.arange(n_visits), [0, 1]])
    window, draw = np.nonzero(window_visit[:, None] == draw_visit)
    key = first_patient + np.arange(n_visits)
    sets = {
        "windows/scale": rng.random(n_windows) + 0.5, "windows/visit": window_visit,
        "windows/start": np.arange(n_windows) * 10_000_000, "windows/flags": rng.integers(0, 4, n_windows),
        "draws/labels": rng.integers(-1, 2, (n_draws, 2)), "draws/values": rng.random((n_draws, 1)),
        "draws/time": rng.integers(0, 10**9, n_draws), "draws/visit": draw_visit,
        "pairs/window": window, "pairs/draw": draw, "pairs/offset": rng.random(len(window)),
        # A horizon holds the shorter ones; every pair has the longest in the first split.
        "pairs/horizons": np.array([1, 3, 7] if split == "train" else [0, 1, 3, 7])[
            rng.integers(0, 3 if split == "train" else 4, len(window))
        ],
        "visits/patient": key, "visits/visit": key + 1000, "visits/split": np.full(n_visits, split_number(split)),
        "visits/age": rng.random(n_visits), "visits/sex": rng.integers(-1, 2, n_visits),
    }  # fmt: skip
    sets["draws/values"][rng.random(n_draws) < missing] = np.nan
    return sets


def split_number(split):
    """Return the number that stands for a split."""
    return ("train", "val", "test").index(split)


def write_tiny_shard(path, split="train", n_windows=150, *, seed=0, form="none", **options):
    """Write one tiny shard; return its signal, int16 (windows, samples)."""
    rng = np.random.default_rng(seed)
    signal_WT = rng.integers(-999, 999, (n_windows, SAMPLES)).astype(np.int16)
    sets = tiny_sets(n_windows, split, rng, **options)
    with ShardWriter(path, attributes(split, form)) as writer:
        for some in np.array_split(signal_WT, 3):
            writer.append(some[:, None])
        writer.finish(sets, {"windows": n_windows, "pairs": len(sets["pairs/window"])})
    return signal_WT


def write_tiny_set(folder):
    """Write the four shards and their index into a new folder; return the signal of all windows."""
    folder.mkdir()
    paths = [folder / f"shard-{number:05d}.h5" for number in range(len(SHARDS))]
    signals = [
        write_tiny_shard(path, split, n_windows, seed=number, first_patient=10 * number)
        for number, (path, (split, n_windows)) in enumerate(zip(paths, SHARDS, strict=True))
    ]
    described = [describe_shard(path) for path in paths]
    counts = {what: sum(shard["counts"][what] for shard in described) for what in ("pairs", "windows")}
    write_index(folder, described, {"stage_hash": "3", "cohort_hash": "4", "counts": counts})
    return np.concatenate(signals)
