"""R4, checkpoints: bits are flipped, files cut, pages zeroed in a checkpoint; `anyecg verify` finds all."""

import argparse
import contextlib
import io
import json
import os
import random
import tempfile
from collections import Counter
from pathlib import Path

from anyecg.app.cli import main as anyecg
from anyecg.loaders.progress import Progress
from tests.disk import harm
from tests.loaders.tiny import write_tiny_set
from tests.train import job


def found(folder):
    """Return the files that `anyecg verify --json` names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        code = anyecg(["verify", str(folder), "--json"])
    names = [problem["file"] for problem in json.loads(said.getvalue())["problems"]]
    if bool(code) != bool(names):
        raise SystemExit(f"exit code {code} with {names}")
    return names


def main():
    """Print the number of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    rng, counts = random.Random(arguments.seed), Counter()
    with tempfile.TemporaryDirectory() as text, Progress("harm", arguments.number, "") as progress:
        folder = Path(text)
        write_tiny_set(folder / "shards")
        if job.Warm(folder / "shards").train(folder, {"finetune": job.EVERYTHING}):
            raise SystemExit((folder / "said.txt").read_text())
        if found(folder / "checkpoint"):
            raise SystemExit("not whole before")
        files = [path for path in (folder / "checkpoint").rglob("*") if path.suffix in (".json", ".safetensors")]
        while sum(counts.values()) < arguments.number:
            path = rng.choice(files)
            data = path.read_bytes()
            kind, harmed = harm(data, rng, [])
            if harmed == data:
                continue
            path.write_bytes(harmed)
            names = found(folder / "checkpoint")
            path.write_bytes(data)
            if names != [str(path.relative_to(folder / "checkpoint"))]:
                raise SystemExit(f"{kind} in {path}: {names}")
            counts[f"{path.name}: {kind}"] += 1
            progress.advance(1)
    print(f"{arguments.number} of {arguments.number} found, each with its file")
    print(", ".join(f"{what} {n}" for what, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
