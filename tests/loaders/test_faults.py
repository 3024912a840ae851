"""Faults of the shard stage, short forms; the long forms are in benchmarks/."""

import errno
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from anyecg.app.cli import main
from anyecg.app.run import LogFile
from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import NewFile, replacing
from anyecg.loaders.index import open_index
from anyecg.loaders.reader import WindowReader

from ..conftest import REPOSITORY, anyecg, write_small_config
from ..disk import Failing, Job, after_power_loss, found_harm, lose_power, power_losses, record, watched

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Return the folder of a cohort of eight real recordings."""
    folder = tmp_path_factory.mktemp("eight")
    done = anyecg("cohort", write_small_config(folder, 8))
    assert done.returncode == 0, done.stderr
    return folder / "run/cohort"


@pytest.fixture(scope="module")
def whole(cohort, tmp_path_factory):
    """Return the folder of shards of that cohort; tests read it and leave it as it is."""
    job = Job(cohort, tmp_path_factory.mktemp("whole") / "shards")
    job.run()
    return job.folder


@pytest.fixture
def job(cohort, tmp_path):
    """Return a job with an empty folder of its own."""
    return Job(cohort, tmp_path / "shards")


@pytest.fixture
def shards(whole, tmp_path):
    """Return a copy of the shards, to be damaged."""
    return shutil.copytree(whole, tmp_path / "shards")


def test_any_change_that_fails_is_one_typed_error_and_a_restart_gives_the_same_bytes(job, whole):
    wanted = {path.name: path.read_bytes() for path in whole.iterdir()}
    counting = Failing(None, 0)
    with watched(str(job.folder), counting):
        job.run()
    for number, k in enumerate(range(3, counting.n_calls, 29)):
        shutil.rmtree(job.folder)
        failing = Failing(k, ERRORS[number % 3])
        with pytest.raises(ShardError, match="free space or mend the disk"), watched(str(job.folder), failing):
            job.run()
        found = job.files()
        assert found.items() <= wanted.items(), failing.what
        assert "index.json" not in found or found == wanted, failing.what
        job.run()
        assert job.files() == wanted


def test_a_change_that_a_signal_interrupts_is_done_again(job, whole):
    # Python itself does so for what is not named here.
    wanted = {path.name: path.read_bytes() for path in whole.iterdir()}
    for name in ("rename", "unlink", "mkdir", "ftruncate"):
        shutil.rmtree(job.folder, ignore_errors=True)
        interrupted = set()

        def once(what, path, descriptor, arguments, call, name=name, interrupted=interrupted):
            if what == name and path not in interrupted:
                interrupted.add(path)
                raise InterruptedError(errno.EINTR, "interrupted", path)
            return call()

        with watched(str(job.folder), once):
            job.run()
        assert interrupted
        assert job.files() == wanted


def test_after_a_power_loss_a_folder_is_whole_or_has_no_index(job):
    job.run(seed=2)
    old = job.files()
    before, steps = record(job)
    wholes = (job.files(), old)
    assert wholes[0].keys() == old.keys()
    assert all(len(wholes[0][name]) == len(old[name]) for name in old if name.startswith("shard-"))
    outcomes = {
        after_power_loss(
            job, lose_power(before, steps[: round(at * len(steps))], str(job.folder), variant, rng), wholes
        )
        for at, variant, rng in [(0, "lost", None), (1, "lost", None), *power_losses(24, seed=5)]
    }
    assert outcomes == {"no index", "whole"}


def test_without_fsync_a_power_loss_would_break_a_folder(job):
    """The test above can fail: a disk that ignores fsync leaves a file that is there and empty."""
    before, steps = record(job)
    without = [step for step in steps if step[0] != "fsync"]
    state = lose_power(before, without, str(job.folder), "named", random.Random(1))
    with pytest.raises(ShardError):
        after_power_loss(job, state, (job.files(),))


def test_verify_and_training_find_every_flip_cut_and_zeroed_page(shards):
    files = sorted(path for path in shards.iterdir() if path.suffix in (".h5", ".npy") or path.name == "index.json")
    rng = random.Random(6)
    outcomes = Counter(found_harm(files[number % len(files)], rng) for number in range(120))
    assert min(outcomes[what] for what in ("flip", "flip in a chunk", "cut", "zero")) > 0


@pytest.mark.parametrize("name", ["index.json", "index-chunks.npy", "index-pair_draw.npy", "shard-00001.h5"])
def test_verify_says_as_json_what_is_wrong(shards, name, capsys):
    path = shards / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert main(["verify", str(shards), "--json"]) == 2
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["whole"] is False
    assert [problem["file"] for problem in found["problems"]] == [name]
    assert len(said.err.splitlines()) == 1


def test_verify_says_as_json_that_there_is_no_index_or_all_is_well(shards, capsys):
    assert main(["verify", str(shards), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"] is True
    (shards / "index.json").unlink()
    done = anyecg("verify", shards, "--json")
    assert done.returncode == 2
    assert "has no index" in json.loads(done.stdout)["problems"][0]["what"]


def test_a_chunk_table_that_changed_is_not_read_by(shards):
    path = shards / "index-chunks.npy"
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match="changed since it was written"):
        WindowReader(open_index(shards))


def test_an_index_without_its_digest_is_refused(shards):
    text = (shards / "index.json").read_text()
    (shards / "index.json").write_text(text.replace('"digest"', '"Digest"'))
    with pytest.raises(ShardError, match="its digest is another"):
        open_index(shards)


def test_a_file_that_hdf5_writes_keeps_the_first_error(tmp_path):
    def full(name, path, descriptor, arguments, call):
        if name == "pwrite":
            raise OSError(errno.ENOSPC, "full")
        return call()

    with watched(str(tmp_path), full):
        file = NewFile(tmp_path / "a")
        assert file.write(b"abc") == 3
        with pytest.raises(OSError, match=r"full: .*a'"):
            file.close()


def test_killed_ranks_and_a_killed_mpirun_lose_nothing():
    command = [sys.executable, "-m", "benchmarks.kill_shards", "--kills", "2", "--ranks", "2", "--records", "30"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_temporary_of_a_killed_process_with_our_number_is_no_obstacle(tmp_path):
    (tmp_path / f".a.{os.getpid()}.tmp").write_text("what a killed process left")
    with replacing(tmp_path / "a") as temporary, NewFile(temporary) as file:
        file.write(b"new")
        with pytest.raises(FileExistsError):
            NewFile(temporary)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "new")]


def test_a_full_disk_under_the_log_is_said_once_and_stops_nothing(tmp_path, capsys):
    handler = LogFile(tmp_path / "x.log", delay=True)
    for _ in range(2):
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError:
            handler.handleError(logging.makeLogRecord({}))
    assert capsys.readouterr().err == f"anyecg: {tmp_path}/x.log: full; lines are missing there\n"
