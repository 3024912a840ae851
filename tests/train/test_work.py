import subprocess
import sys
import textwrap

import numpy as np
import pytest
from mpi4py import MPI

from anyecg.loaders.errors import ModelError
from anyecg.slurm.launch import find_mpirun
from anyecg.train.work import Measured, Task, pieces_of, run_tasks, share_of

JOB = """
import os, signal, sys
import numpy as np
from mpi4py import MPI
from anyecg.loaders.errors import ModelError
from anyecg.train import work
from anyecg.train.work import Measured, Task, run_tasks

work._SECONDS_BETWEEN_FILES = 0
ends = {"kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "go": lambda: None}[sys.argv[2]]

def build(number):
    with open(f"{sys.argv[1]}.{sys.argv[2]}", "a") as file:
        print(number, file=file)
    if number == 7:
        ends()
    return Measured({"number": number}, np.array([float(number)]),
                    lambda first, last: number + np.arange(first, last)[:, None] / 1000)

tasks = [Task(("t", n), 250_000 if n == 3 else 10, 0, lambda n=n: build(n)) for n in range(12)]
done, forget = run_tasks(tasks, sys.argv[1], n_replicates=600, comm=MPI.COMM_WORLD)
if done is not None:
    for n, one in enumerate(done):
        assert one.facts == {"number": n} and one.value[0] == n
        np.testing.assert_array_equal(one.replicates[:, 0], n + np.arange(600) / 1000)
    print("whole", flush=True)
"""


def tasks_of(built, *, fails=None):
    """Return ten tasks, one big; those that are built are noted; one may fail."""

    def build(number):
        if number == fails:
            raise ModelError("no such thing")
        built.append(number)
        return Measured({}, np.array([number]), lambda first, last: np.arange(first, last) + 1000.0 * number)

    return [Task(("a", n), 300_000 if n == 4 else n, 5, lambda n=n: build(n)) for n in range(10)]


def run(tasks, folder, n_replicates=300):
    return run_tasks(tasks, folder, n_replicates=n_replicates, comm=MPI.COMM_SELF)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8, 128])
def test_every_piece_is_one_ranks_and_ranks_have_about_the_same_cost(n_ranks):
    rng = np.random.default_rng(1)
    tasks = [Task((n,), int(10 ** rng.uniform(2, 6)), 1000, lambda: None) for n in range(900)]
    pieces = pieces_of(tasks, 1000)
    shares = [share_of(pieces, rank, n_ranks) for rank in range(n_ranks)]
    assert [piece for share in shares for piece in share] == pieces
    costs = [sum(piece[3] for piece in share) for share in shares]
    assert max(costs) <= sum(costs) / n_ranks + max(piece[3] for piece in pieces)


def test_results_are_whole_and_in_the_order_of_the_tasks(tmp_path):
    done, forget = run(tasks_of([]), tmp_path / "store")
    for number, one in enumerate(done):
        assert (one.key, one.value.tolist()) == (("a", number), [number])
        np.testing.assert_array_equal(one.replicates, np.arange(300) + 1000.0 * number)
    forget()
    assert not (tmp_path / "store").exists()


def test_what_was_finished_before_an_error_is_not_made_again(tmp_path):
    first, second = [], []
    with pytest.raises(ModelError, match="no such thing"):
        run(tasks_of(first, fails=6), tmp_path / "store")
    assert first == [0, 1, 2, 3, 4, 5]
    done, _ = run(tasks_of(second), tmp_path / "store")
    assert second == [6, 7, 8, 9]
    np.testing.assert_array_equal(done[2].replicates, np.arange(300) + 2000.0)


def test_a_damaged_file_of_finished_pieces_counts_as_missing(tmp_path):
    run(tasks_of([]), tmp_path / "store")
    (path,) = (tmp_path / "store").iterdir()
    for text in (path.read_bytes()[:-100], b"", b"PK\x03\x04" + b"x" * 100):
        path.write_bytes(text)
        built = []
        done, _ = run(tasks_of(built), tmp_path / "store")
        assert built == list(range(10))
        assert len(done) == 10


def test_pieces_that_vanish_before_they_are_collected_are_one_line(tmp_path):
    tasks = tasks_of([])
    last = tasks[-1].build

    def build():
        for path in (tmp_path / "store").iterdir():
            path.unlink()
        return last()

    with pytest.raises(ModelError, match="no such thing"):
        run(tasks_of([], fails=9), tmp_path / "store")
    with pytest.raises(ModelError, match="10 of 11 finished pieces cannot be read back; run 'anyecg evaluate' again"):
        run([*tasks[:-1], Task(tasks[-1].key, 9, 5, build)], tmp_path / "store")


def test_a_killed_job_goes_on_where_it_stopped_on_any_number_of_ranks(tmp_path):
    (tmp_path / "job.py").write_text(textwrap.dedent(JOB))

    def job(n_ranks, how):
        command = [find_mpirun(), "-n", str(n_ranks), sys.executable, tmp_path / "job.py", tmp_path / "store", how]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)

    killed = job(2, "kill")
    assert killed.returncode
    assert "whole" not in killed.stdout
    again = job(3, "go")
    assert again.returncode == 0, again.stderr
    assert "whole" in again.stdout
    before, after = (set(map(int, (tmp_path / f"store.{how}").read_text().split())) for how in ("kill", "go"))
    assert 7 in after
    assert before - after
    # The other rank ends with mpirun, wherever it is: what it was at is made again, and nothing else.
    assert len((before & after) - {3, 7}) <= 1
