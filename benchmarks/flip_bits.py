"""R4, long form: 10,000 bit flips, 1,000 cuts and 1,000 zeroed pages over shards and index, one at a time."""

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path

from anyecg.loaders.progress import Progress
from tests.conftest import anyecg, write_small_config
from tests.disk import Job, found_harm


def main():
    """Print how many of each kind were found: all, or this stops at the first that was not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--harms", type=int, default=12_000, help="ten in twelve are flips")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, counts = random.Random(arguments.seed), Counter()
    with tempfile.TemporaryDirectory() as folder, Progress("harms", arguments.harms, " harms") as progress:
        done = anyecg("cohort", write_small_config(Path(folder), 8))
        if done.returncode:
            raise SystemExit(done.stderr)
        job = Job(f"{folder}/run/cohort", Path(folder) / "shards")
        job.run()
        shards, others = sorted(job.folder.glob("*.h5")), sorted(job.folder.glob("index*"))
        for _ in range(arguments.harms):
            path = rng.choice(rng.choice([shards, others]))
            counts[f"{path.suffix[1:]}: {found_harm(path, rng)}"] += 1
            progress.advance(1)
    print(f"{arguments.harms} harms, all found; those of a chunk of signal by training too, with the windows:")
    print(", ".join(f"{what} {n}" for what, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
