"""R3, long form: power is lost at 200 moments of sharding, and what was not fsynced with it."""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from anyecg.loaders.progress import Progress
from tests.conftest import anyecg, write_small_config
from tests.disk import Job, after_power_loss, lose_power, power_losses, record


def main():
    """Print how many folders were whole or had no index, into an empty folder and over another run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        done = anyecg("cohort", write_small_config(Path(folder), 8))
        if done.returncode:
            raise SystemExit(done.stderr)
        for what, first in (("into an empty folder", None), ("over another run", 2)):
            job = Job(f"{folder}/run/cohort", Path(folder) / what.replace(" ", "-"))
            if first is not None:
                job.run(first)
            old = job.files()
            before, steps = record(job)
            wholes = (job.files(), old) if old else (job.files(),)
            with Progress(what, arguments.points, " points") as progress:
                for at, variant, rng in power_losses(arguments.points, arguments.seed):
                    state = lose_power(before, steps[: round(at * len(steps))], str(job.folder), variant, rng)
                    counts[f"{what}, {variant}: {after_power_loss(job, state, wholes)}"] += 1
                    progress.advance(1)
    print(f"{2 * arguments.points} points: a whole folder or no index; each restart gave the same bytes")
    print("\n".join(f"{what} {n}" for what, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
