"""R6, long form: a training that is stopped and resumed after each of its 500 steps, and on other numbers of ranks."""

import argparse
import logging
import os
import shutil
import tempfile
from pathlib import Path

from anyecg.loaders.progress import Progress
from tests.loaders.tiny import write_tiny_set
from tests.train import job

REQUEUE = 75
NEXT_STEPS, SIZES = 20, (1, 2, 1, 4)
FIRST_WITHIN, NEXT_WITHIN = 1e-6, 1e-4


def options(n_steps, zero=0):
    """Return the config of a training of at least so many steps: the tiny set has six batches of 64 an epoch."""
    return {"finetune": job.EVERYTHING | {"epochs": -(-n_steps // 6), "validate_every": 25, "zero": zero}}


def undisturbed(warm, folder, wanted):
    """Run a training to its end; return {step: loss}."""
    folder.mkdir()
    code = warm.train(folder, wanted)
    if code:
        raise SystemExit(f"exit code {code}: {(folder / 'said.txt').read_text()}")
    return {step: loss for step, (loss,) in job.losses(folder).items()}


def step_by_step(warm, folder, wanted, whole, stride):
    """Resume for so many further steps each; every loss and the model at the end are bit-equal; return how often."""
    folder.mkdir()
    losses = job.losses(whole)
    with Progress("resumptions", len(losses), " steps") as progress:
        for step in range(stride, len(losses) + 1, stride):
            code = warm.train(folder, wanted | {"steps": stride})
            found = job.losses(folder)
            if code != REQUEUE or found != {at: losses[at] for at in range(1, step + 1)}:
                raise SystemExit(f"step {step}: code {code}, {found.get(step)}; {(folder / 'said.txt').read_text()}")
            progress.advance(stride)
    code = warm.train(folder, wanted)
    if code or job.weights(folder) != job.weights(whole) or job.curve(folder) != job.curve(whole):
        raise SystemExit(f"code {code}: another model or curve at the end")
    return len(losses) // stride


def other_ranks(warm, folder, wanted, whole, n_samples):
    """Resume on other numbers of ranks for 21 steps each; return the largest relative differences of the losses.

    They are those from the training that nobody disturbed, so what one resumption has changed counts in the next too.

    Returns
    -------
    (float, float)
        Of the first loss; of the next 20.
    """
    first, rest, at = 0.0, 0.0, 0
    n_more = min(NEXT_STEPS + 1, (len(whole) - 1) // len(SIZES))
    for number in range(n_samples):
        if at + n_more >= len(whole):
            shutil.rmtree(folder)
            at = 0
        n_ranks = SIZES[number % len(SIZES)]
        options = wanted | {"steps": n_more}
        if n_ranks == 1:
            folder.mkdir(exist_ok=True)
            code, said = warm.train(folder, options), folder / "said.txt"
        else:
            code, said = job.train(warm.shards, folder, options, n_ranks)
        if code != REQUEUE:
            raise SystemExit(f"{n_ranks} ranks: code {code}, {said}")
        found = {step: min(loss) for step, loss in job.losses(folder).items()}
        differences = [abs(found[step] / whole[step] - 1) for step in range(at + 1, at + n_more + 1)]
        first, rest = max(first, differences[0]), max([rest, *differences[1:]])
        print(f"{n_ranks} ranks, steps {at + 1} to {at + n_more}: {differences[0]:.1e} {max(differences[1:]):.1e}")
        at += n_more
    return first, rest


def main():
    """Print how many resumptions were bit-equal, and how near those on other numbers of ranks came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--stride", type=int, default=1, help="steps from one resumption to the next")
    parser.add_argument("--other-ranks", type=int, default=20, help="resumptions on 1, 2, 1, 4, 1, ... ranks")
    parser.add_argument("--zero", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryDirectory() as text:
        base = Path(text)
        write_tiny_set(base / "shards")
        warm, wanted = job.Warm(base / "shards"), options(arguments.steps, arguments.zero)
        whole = undisturbed(warm, base / "whole", wanted)
        n_equal = step_by_step(warm, base / "steps", wanted, base / "whole", arguments.stride)
        print(f"{n_equal} resumptions, {arguments.stride} steps apart: every loss bit-equal, same model and curve")
        if arguments.other_ranks:
            first, rest = other_ranks(warm, base / "ranks", wanted, whole, arguments.other_ranks)
            print(f"{arguments.other_ranks} on other ranks: first loss within {first:.1e}, the next within {rest:.1e}")
            if first > FIRST_WITHIN or rest > NEXT_WITHIN:
                raise SystemExit(f"wanted {FIRST_WITHIN} and {NEXT_WITHIN}")


if __name__ == "__main__":
    main()
