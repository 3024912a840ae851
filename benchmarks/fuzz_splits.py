"""R15, long form: 10,000 made-up cohorts, none with a patient in two splits unsaid."""

import argparse
import logging
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from anyecg.loaders.progress import Progress
from tests.loaders.test_splits import outcome


def main():
    """Print the count of each outcome."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=10_000)
    arguments = parser.parse_args()
    outcomes: Counter = Counter()
    with Progress("cohorts", arguments.cohorts, " cohorts") as progress:
        for seed in range(arguments.cohorts):
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder) / "mcmed"
                root.mkdir()
                outcomes[outcome(root, Path(folder) / "out", np.random.default_rng(seed))] += 1
            progress.advance(1)
    print(", ".join(f"{what} {n}" for what, n in sorted(outcomes.items())))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
