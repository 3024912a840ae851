"""Documents of a made-up scaling experiment whose law is known."""

import numpy as np

from anyecg.slurm.scale_numbers import KINDS, PARTS, Law

LAWS = {
    "shard": Law(3.0e-6, 2.0e-8, 0.0), "stream": Law(5.0e-6, 0.0, 0.0), "finetune": Law(4.0e-4, 1.0e-6, 2.0e-7),
    "evaluate": Law(2.0e-5, 3.0e-7, 1.0e-8),
}  # fmt: skip


def made_blocks(rate, noise, rng, *, n_blocks=6, ranks=1, waiting=0.1):
    """Return blocks of one size around a rate, with relative noise."""
    seconds = 3.0 * (1 + noise * rng.standard_normal(n_blocks))
    return [
        {
            "windows": 3.0 * rate, "n_bytes": 3e4 * rate, "waited_data": waiting * one * ranks,
            "waited_others": 0.0, "seconds": float(one), "rank_seconds": float(one) * ranks,
        }
        for one in seconds
    ]  # fmt: skip


def made_documents(sizes=(1, 2, 4, 8), *, noise=0.01, seed=0, laws=None, unit="nodes", ranks=8, gpus=8, cores=64):
    """Return one document for each number of nodes, of ``ranks`` ranks each."""
    rng, laws = np.random.default_rng(seed), laws or LAWS
    return [
        {
            "nodes": n if unit == "nodes" else 1, "ranks": n * ranks, "cores": n * cores, "gpus": n * gpus,
            "largest": max(sizes) * ranks, "seconds": 60.0,
            "setting": {"model": "resnet", "batch_size": 256}, "versions": {"python": "3.11"},
            "machine": [
                {"cpu": "made up", "cores_of_rank": 8, "memory_gb": 512, "gpu": "made-up GPU", "ranks": n * ranks}
            ],
            "data": {
                "index_hash": "1", "windows": 1000, "pairs": 1800, "n_bytes": 10_000_000, "bytes_a_window": 10_000.0,
                "pairs_a_window": {"cap binds": [1.8, 0.01], "cap does not bind": [2.4, 0.02]},
                "overlap_from": "made-up draws", "windows_per_shard": 50_000,
            },
            "measured": [
                {
                    "part": part, "kind": kind, "note": "", "stopped": "precise", "calls_a_block": 1,
                    "batch": 256 if part in ("stream", "finetune") else None,
                    "learning_rate": 1e-3 if part == "finetune" else None,
                    "warmup_steps": 500 if part == "finetune" else None,
                    "replicates": 1000 if part == "evaluate" else None,
                    "steps_per_window": 2e6 if part == "evaluate" else None,
                    "blocks": made_blocks(laws[part].rate(n), noise, rng, ranks=n * ranks),
                }
                for part in PARTS
                for kind in KINDS
            ],
        }
        for n in sizes
    ]  # fmt: skip
