"""R12 for configs, long form: 100,000 mutated configs, each a config or one typed error within two seconds."""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from anyecg.app.config import load_config, render_config
from anyecg.loaders.errors import ConfigError
from tests.app.test_config import mutate


def main():
    """Print the count of each outcome, the slowest file and the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    accepted = refused = 0
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.toml"
        for _ in range(arguments.files):
            path.write_bytes(mutate(rng))
            start = time.perf_counter()
            try:
                render_config(load_config(path))
                accepted += 1
            except ConfigError:
                refused += 1
            slowest = max(slowest, time.perf_counter() - start)
            if slowest > 2:
                raise SystemExit(f"{slowest:.1f} s for one config, wanted at most 2: {path.read_bytes()!r}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    if memory > 512:
        raise SystemExit(f"peak memory {memory:.0f} MB, wanted at most 512")
    print(f"{arguments.files} files: {accepted} configs, {refused} typed errors, 0 others; ", end="")
    print(f"slowest {slowest * 1e3:.0f} ms; peak memory {memory:.0f} MB")


if __name__ == "__main__":
    main()
