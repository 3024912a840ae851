"""R6, long form: a training that is stopped and resumed after each of its 500 steps, and on other numbers of ranks."""

import argparse
import logging
import os
import random
import shutil
import tempfile
from pathlib import Path

from anyecg.loaders.progress import Progress
from tests.loaders.tiny import write_tiny_set
from tests.train import job

REQUEUE = 75
NEXT_STEPS = 20


def options(n_steps, zero=0):
    """Return the config of a training of so many steps: the tiny set has six batches of 64 an epoch."""
    return {"finetune": job.EVERYTHING | {"epochs": -(-n_steps // 6), "validate_every": 25, "zero": zero}}


def undisturbed(warm, folder, wanted):
    """Run a training to its end; return {step: loss}."""
    folder.mkdir()
    code = warm.train(folder, wanted)
    if code:
        raise SystemExit(f"exit code {code}: {(folder / 'said.txt').read_text()}")
    return {step: loss for step, (loss,) in job.losses(folder).items()}


def step_by_step(warm, folder, wanted, whole):
    """Resume from each step for one further step; every loss and the model at the end are bit-equal."""
    folder.mkdir()
    n_steps = len(job.losses(whole))
    with Progress("resumptions", n_steps, " steps") as progress:
        for step in range(1, n_steps + 1):
            code = warm.train(folder, wanted | {"steps": 1})
            found = job.losses(folder)
            if code != REQUEUE or len(found) != step or found[step] != job.losses(whole)[step]:
                raise SystemExit(f"step {step}: code {code}, {found.get(step)}; {(folder / 'said.txt').read_text()}")
            progress.advance(1)
    code = warm.train(folder, wanted)
    if code or job.weights(folder) != job.weights(whole) or job.curve(folder) != job.curve(whole):
        raise SystemExit(f"code {code}: another model or curve at the end")
    return n_steps


def other_ranks(shards, base, wanted, whole, n_samples, rng):
    """Resume at random steps on another number of ranks; return the largest relative differences of the losses.

    Returns
    -------
    (float, float)
        Of the first loss; of the next 20.
    """
    first, rest = 0.0, 0.0
    sizes, at, number = [1, 2, 1, 4], 0, 0
    folder = base / "sizes"
    folder.mkdir()
    n_steps = len(whole)
    with Progress("other ranks", n_samples, " resumptions") as progress:
        while number < n_samples:
            if at + NEXT_STEPS + 2 > n_steps:
                shutil.rmtree(folder)
                folder.mkdir()
                at = 0
            n_ranks, n_more = sizes[number % 4], rng.randint(1, NEXT_STEPS + 1)
            code, said = job.train(shards, folder, wanted | {"steps": n_more}, n_ranks)
            if code != REQUEUE:
                raise SystemExit(f"{n_ranks} ranks: code {code}, {said}")
            found = {step: min(loss) for step, loss in job.losses(folder).items()}
            differences = [abs(found[step] / whole[step] - 1) for step in range(at + 1, at + n_more + 1)]
            first, rest = max(first, differences[0]), max([rest, *differences[1:]])
            print(f"{n_ranks} ranks, steps {at + 1} to {at + n_more}: {differences[0]:.1e} {max(differences):.1e}")
            at, number = at + n_more, number + 1
            progress.advance(1)
    return first, rest


def main():
    """Print how many resumptions were bit-equal, and how near those on other numbers of ranks came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--other-ranks", type=int, default=20, help="resumptions on 1, 2, 1, 4, 1, ... ranks")
    parser.add_argument("--zero", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryDirectory() as text:
        base = Path(text)
        write_tiny_set(base / "shards")
        warm, wanted = job.Warm(base / "shards"), options(arguments.steps, arguments.zero)
        whole = undisturbed(warm, base / "whole", wanted)
        n_equal = step_by_step(warm, base / "steps", wanted, base / "whole")
        print(f"{n_equal} of {n_equal} resumptions for one step: loss bit-equal; at the end the same model and curve")
        if arguments.other_ranks:
            found = other_ranks(
                base / "shards", base, wanted, whole, arguments.other_ranks, random.Random(arguments.seed)
            )
            print(f"{arguments.other_ranks} on other ranks: first loss within {found[0]:.1e}, next within {found[1]:.1e}")


if __name__ == "__main__":
    main()
