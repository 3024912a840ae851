"""R7, long form: kill -9 while a training saves, 200 times; each time it goes on from a whole state."""

import argparse
import logging
import os
import random
import signal
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from anyecg.loaders.progress import Progress
from anyecg.train.checkpoint import Checkpoint
from tests.disk import watched
from tests.loaders.tiny import write_tiny_set
from tests.train import job

OPTIONS = {"finetune": job.EVERYTHING | {"save_every": 1, "epochs": 4}}
# Changes of files of one save.
N_CHANGES = 32
# Those before the one in which it is killed, and that one.
MOST_SAVES = 3


class Dying:
    """Ends this process at the k-th change of a file from the start of its n-th save on, or in the midst of it."""

    def __init__(self, n, k, said):
        self.n_saves, self.k, self.said, self.left = n, k, said, None

    def __call__(self, name, path, descriptor, arguments, call):
        if name == "mkdir" and ".step-" in path:
            self.n_saves -= 1
            self.left = self.k if self.n_saves == 0 else self.left
        if self.left is not None:
            if self.left == 0:
                self.said.write_text(f"{name} {Path(path).name.lstrip('.').split('.')[0].rstrip('-0123456789')}")
                if name == "pwrite":
                    os.pwrite(descriptor, bytes(arguments[0])[: len(arguments[0]) // 2], arguments[1])
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
        return call()


def die_at_a_change(warm, folder, rng):
    """Train until it kills itself at a random change of one of the first saves; return (code, which change)."""
    said = folder / "change.txt"
    said.unlink(missing_ok=True)
    k = rng.randrange(N_CHANGES)

    # Entered by the forked process, for the rest of its life.
    changes = watched(str(folder / "checkpoint"), Dying(rng.randint(1, MOST_SAVES), k, said))
    code = warm.train(folder, OPTIONS, changes.__enter__)
    return code, said.read_text() if said.exists() else "none"


def killed_while_saving(warm, folder, rng):
    """Train until, a random while after the start of one of the first saves, it is killed; return (code, where)."""
    seen, n_saves = set(), rng.randint(1, MOST_SAVES)
    child = warm.start(folder, OPTIONS)
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        seen |= {path.name for path in (folder / "checkpoint/hash").glob(".step-*")}
        if len(seen) >= n_saves:
            time.sleep(rng.uniform(0, 0.5))
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.0005)
    return job.wait(child), "a random moment"


def check(folder, counts):
    """Load what a kill left; at most one save is lost."""
    steps = [line["step"] for line in job.journal(folder) if line["event"] == "step"]
    found = Checkpoint(folder / "checkpoint/hash").load()
    step = found[1]["step"] if found else 0
    last = steps[-1] if steps else 0
    if not last - 1 <= step <= last:
        raise SystemExit(f"the last step was {last}, the state is of step {step}")
    counts["nothing lost" if step == last else "one step lost"] += 1


def until_whole(warm, folder, rng, n_kills, counts, progress):
    """Kill and resume until a training ends by itself; return the number of kills."""
    folder.mkdir()
    for number in range(10_000):
        if number == n_kills:
            code, where = warm.train(folder, OPTIONS), ""
        else:
            code, where = rng.choice([die_at_a_change, killed_while_saving])(warm, folder, rng)
        if code == 0:
            return number
        if code != -signal.SIGKILL:
            raise SystemExit(f"exit code {code}: {(folder / 'said.txt').read_text()}")
        counts[where] += 1
        check(folder, counts)
        progress.advance(1, str(dict(counts)))
    raise SystemExit("without end")


def main():
    """Print at which changes was killed, and that every training ended as the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    rng, counts, n_runs, left = random.Random(arguments.seed), Counter(), 0, arguments.kills
    with tempfile.TemporaryDirectory() as text, Progress("kills", arguments.kills, " kills") as progress:
        base = Path(text)
        write_tiny_set(base / "shards")
        warm = job.Warm(base / "shards")
        (base / "whole").mkdir()
        if warm.train(base / "whole", OPTIONS):
            raise SystemExit((base / "whole/said.txt").read_text())
        while left > 0:
            folder = base / f"killed-{n_runs}"
            n_kills = until_whole(warm, folder, rng, left, counts, progress)
            left, n_runs = left - n_kills, n_runs + 1
            if job.losses(folder) != job.losses(base / "whole"):
                raise SystemExit(f"{folder}: other losses than undisturbed")
            if job.weights(folder) != job.weights(base / "whole") or job.curve(folder) != job.curve(base / "whole"):
                raise SystemExit(f"{folder}: another model or curve than undisturbed")
            left_over = {path.name.split("-")[0] for path in (folder / "checkpoint/hash").iterdir()}
            if left_over - {"pointer.json", "step", "best"} - {".store"}:
                raise SystemExit(f"{folder}: left over {left_over}")
    print(f"{arguments.kills - left} kills in {n_runs} trainings: every state whole, at most one save lost,")
    print("every loss, the curve and the model at the end as undisturbed;")
    print(", ".join(f"{what} {n}" for what, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
