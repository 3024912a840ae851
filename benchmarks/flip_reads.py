"""R4, the reading half: bit flips in the chunks of signal, each met by a training read that names the windows."""

import argparse
import os
import random
import re
import tempfile
from pathlib import Path

from anyecg.loaders.errors import ShardError
from anyecg.loaders.progress import Progress
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.stream import open_index
from tests.conftest import anyecg, write_small_config
from tests.disk import Job


def flip(path, place, bit):
    """Flip one bit of a file."""
    descriptor = os.open(path, os.O_RDWR)
    byte = os.pread(descriptor, 1, place)[0]
    os.pwrite(descriptor, bytes([byte ^ 1 << bit]), place)
    os.close(descriptor)


def is_found(index, row, rng):
    """Flip a bit of a chunk, read its windows as training does, mend it; say whether they were named."""
    shard, first, n_windows, offset, n_bytes, _ = index.tables["chunks"][row].tolist()
    harm = index.folder / index.head["shards"][shard]["name"], offset + rng.randrange(n_bytes), rng.randrange(8)
    flip(*harm)
    reader = WindowReader(index)
    try:
        reader.read([rng.randrange(first, first + n_windows)])
        return False
    except ShardError as cause:
        return re.search(f"windows {first} to {first + n_windows - 1} of the index are damaged", str(cause)) is not None
    finally:
        reader.close()
        flip(*harm)


def main():
    """Print how many flips were found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder, Progress("flips", arguments.flips, " flips") as progress:
        done = anyecg("cohort", write_small_config(Path(folder), 30))
        if done.returncode:
            raise SystemExit(done.stderr)
        job = Job(f"{folder}/run/cohort", Path(folder) / "shards")
        job.run()
        index, n_found = open_index(job.folder), 0
        for _ in range(arguments.flips):
            n_found += is_found(index, rng.randrange(len(index.tables["chunks"])), rng)
            progress.advance(1)
    print(f"{n_found} of {arguments.flips} flips found by a training read, their windows named")
    raise SystemExit(n_found != arguments.flips)


if __name__ == "__main__":
    main()
