"""Jobs of two ranks of which one fails: the job ends, the culprit is named, nothing is left, and it can go on."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time

import psutil
import pytest

from anyecg.loaders.stop import Asked
from anyecg.train.checkpoint import Checkpoint
from anyecg.train.watch import Watch

from . import job

# Far over what the machine takes for a step, under what the tests wait.
OPTIONS = {"finetune": job.SHORT | {"save_every": 1, "validate_every": 3, "hang_seconds": 6}}
SHOWN = r"process (\d+) on \S+, in '.*' for \d+ s"


def fail(shards, folder, fault):
    """Run a job with a fault to its end; return (what was said, process ids of the ranks)."""
    with job.start(shards, folder, OPTIONS | {"fault": fault}, 2) as process:
        mpirun, ranks = psutil.Process(process.pid), {}
        while process.poll() is None and len(ranks) < 2:
            # Between mpirun and the ranks is a process that carries their command line.
            ranks |= {child.pid: child for child in mpirun.children(recursive=True) if child.cmdline()[1:2] == ["-m"]}
            time.sleep(0.05)
        said, _ = process.communicate(timeout=240)
    assert process.returncode not in (0, 75), said
    gone, left = psutil.wait_procs(ranks.values(), timeout=10)
    assert not left
    assert len(gone) == 2
    return said, set(ranks)


def goes_on(shards, folder):
    """Run the same again, undisturbed by what a fault has left, from the last state on."""
    step = Checkpoint(folder / "checkpoint/hash").load()[1]["step"]
    code, said = job.train(shards, folder, OPTIONS | {"steps": 1}, 2)
    assert code == 75, said
    assert Checkpoint(folder / "checkpoint/hash").load()[1]["step"] == step + 1


def test_a_rank_that_raises_ends_the_job_with_its_trace(tiny_set, tmp_path):
    said, _ = fail(tiny_set[0], tmp_path, [1, "step", 3, "raise"])
    assert "rank 1 failed" in said
    assert re.search(r"Traceback(.|\n)*RuntimeError: a fault of this rank", said)


def test_a_rank_that_hangs_ends_the_job_with_its_trace(tiny_set, tmp_path):
    said, _ = fail(tiny_set[0], tmp_path, [1, "batch", 3, "hang"])
    assert re.search(r"rank 1 has been in 'waiting for batch 2' for \d+ s; the job ends. Where it stands:", said)
    assert "in _hang" in said
    assert "run the same command again; a longer finetune.hang_seconds" in said
    goes_on(tiny_set[0], tmp_path)


@pytest.mark.parametrize(
    ("point", "call", "where"), [("batch", 3, "counting labels of batch 2"), ("saving", 2, "saving")]
)
def test_a_stopped_process_is_named_by_the_others(tiny_set, tmp_path, point, call, where):
    rank = 0 if point == "saving" else 1
    said, processes = fail(tiny_set[0], tmp_path, [rank, point, call, "stop"])
    found = re.search(
        rf"rank {1 - rank} has been in '{where}' for \d+ s, waiting for rank {rank} \({SHOWN}, which does not run\)",
        said,
    )
    assert found, said
    assert int(found[1]) in processes
    # Its trace follows, where it comes before the launcher ends all.
    assert f"where process {found[1]} stands:" in said


def test_a_rank_that_hangs_in_a_validation_is_named(tiny_set, tmp_path):
    said, _ = fail(tiny_set[0], tmp_path, [1, "validation", 1, "hang"])
    assert re.search(r"rank 1 has been in 'after step 2' for \d+ s; the job ends", said)


def test_a_killed_rank_is_named_with_its_signal(tiny_set, tmp_path):
    said, processes = fail(tiny_set[0], tmp_path, [1, "batch", 3, "kill"])
    assert int(re.search(r"PID (\d+) RUNNING AT", said)[1]) in processes
    assert "Killed (signal 9)" in said


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, to mount a small /dev/shm"
)
def test_a_full_shared_memory_ends_the_job(tiny_set, tmp_path):
    line = " ".join(f"'{part}'" for part in job.command(tiny_set[0], tmp_path, OPTIONS, 2))
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm && head -c 60000 /dev/zero > /dev/shm/full"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"({mount}) || exit 99; exec {line}"], cwd=job.REPOSITORY, capture_output=True,
        text=True, check=False, timeout=240, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode == 99:
        pytest.skip("no mounts here")
    assert done.returncode != 0
    assert "Bus error (signal 7)" in done.stdout or "error" in done.stderr


def test_a_rank_that_was_never_seen_is_named_and_no_process_is_sent_a_signal(tmp_path):
    watch = Watch(tmp_path / "beats", 0, 3, 1000.0)
    watch.phase("step", together=True)
    found, said = watch._behind(2)
    watch.close()
    assert said == "rank 1 (never seen, which does not run), rank 2 (never seen, which does not run)"
    assert [beat.n_shown for beat in found] == [0, 0]


def test_a_watch_of_no_seconds_starts_no_thread(tmp_path):
    before = threading.active_count()
    watch = Watch(tmp_path / "beats", 0, 1, 0.0)
    assert threading.active_count() == before
    watch.close()
    watch.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_while_one_listens_and_as_before_afterwards(number):
    before = signal.getsignal(number)
    with Asked().listening() as asked:
        assert asked.number == 0
        os.kill(os.getpid(), number)
        assert asked.number == number
    assert signal.getsignal(number) == before
