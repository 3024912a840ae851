"""Seconds and peak memory of a day-long recording in 1 and in 12 leads: as shards, and scored by a small network.

python -m benchmarks.leads
"""

import resource
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from anyecg.kernels.prepare import preset_hash
from anyecg.loaders.lead_names import STANDARD_LEADS

HOURS, FS = 24, 500


def write_day(folder):
    """Write one WFDB record of 12 leads of noise with a spike every 0.8 s, a minute at a time."""
    rng = np.random.default_rng(0)
    with (folder / "day.dat").open("wb") as file:
        for _ in range(60 * HOURS):
            count_TL = (40 * rng.standard_normal((60 * FS, 12))).astype("<i2")
            count_TL[::400] += 800
            file.write(count_TL.tobytes())
    lines = [f"day.dat 16 1000/mV 16 0 0 0 0 {lead}\n" for lead in STANDARD_LEADS]
    (folder / "day.hea").write_text(f"day 12 {FS} {3600 * HOURS * FS}\n{''.join(lines)}")


def shard(folder, leads):
    from mpi4py import MPI

    from anyecg.loaders.cohort_config import CohortConfig
    from anyecg.loaders.folder import folder_cohort
    from anyecg.loaders.shard_config import ShardConfig
    from anyecg.loaders.shards import write_shards

    labels = folder / "labels.txt"
    labels.write_text("record,patient,t\nday,1,1\n")
    cohort = folder_cohort(CohortConfig(path=str(folder / "day"), labels=str(labels), split="all"), seed=1)
    config = ShardConfig(lead=list(leads))
    write_shards(folder / f"shards{len(leads)}", cohort, config, MPI.COMM_SELF, seed=1, stage_hash="")


def score(folder, leads):
    from anyecg.train.model import build_model, publish
    from anyecg.train.predict_files import predict_files

    card = {
        "model": "resnet", "head": "multilabel", "join": "logits", "windows_per_sample": 1, "targets": ["t"],
        "leads": list(leads), "fs": FS, "samples": 10 * FS, "preset": "ecgfounder",
        "preset_hash": preset_hash("ecgfounder", FS),
    }  # fmt: skip
    publish(folder / "model", build_model("resnet", n_leads=len(leads), n_targets=1, seed=1), card)
    predict_files(folder / "model", folder / "day" / "day.hea", folder / "scores.csv")


def measure(work, folder, leads):
    """Print what some work takes, in this process of its own."""
    start = time.perf_counter()
    work(folder, leads)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    seconds = time.perf_counter() - start
    print(f"{work.__name__}, {len(leads)} leads, {HOURS} h: {seconds:.0f} s, peak {peak:.2f} GB", flush=True)


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "day").mkdir()
        write_day(folder / "day")
        for work in (shard, score):
            for leads in (("II",), STANDARD_LEADS):
                child = get_context("spawn").Process(target=measure, args=(work, folder, leads))
                child.start()
                child.join()
                if child.exitcode:
                    sys.exit(child.exitcode)


if __name__ == "__main__":
    main()
