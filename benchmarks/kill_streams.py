"""Kill processes that read with kill -9, each loader 100 times, and print what they left: files in /dev/shm, workers."""

import argparse
import random
import tempfile
import time
from pathlib import Path

from tests.loaders.left_over import LOADERS, kill_readers
from tests.loaders.tiny import write_tiny_set


def main():
    """Print one line a loader."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_set(Path(folder) / "shards")
        for loader in LOADERS:
            start = time.monotonic()
            left = kill_readers(Path(folder) / "shards", loader, n_cycles=options.cycles, rng=rng)
            seconds = time.monotonic() - start
            print(f"{loader}: {options.cycles} cycles in {seconds:.0f} s, {len(left)} left {left}", flush=True)


if __name__ == "__main__":
    main()
