import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from anyecg.loaders import apart
from anyecg.loaders.apart import end_children, parse_apart
from anyecg.loaders.errors import ShardError, UpgradeNeeded
from anyecg.loaders.shard_parse import parse_draws, parse_shard

from .hostile import of_text
from .tiny import write_tiny_shard


@pytest.fixture
def shard(tmp_path):
    """A tiny shard, and no child at work."""
    end_children()
    path = tmp_path / "shard-00000.h5"
    write_tiny_shard(path)
    yield path
    end_children()


def as_lists(found):
    return {**found, "places": [list(place) for place in found["places"]]}


def test_a_child_finds_what_this_process_finds(shard, monkeypatch):
    wanted = as_lists(parse_shard(shard))
    assert parse_apart(shard) == wanted
    assert parse_apart(str(shard)) == wanted
    monkeypatch.chdir(shard.parent)
    assert parse_apart(shard.name) == wanted
    assert len(apart._idle) == 1


def test_a_child_reads_the_draws_as_this_process_does(shard):
    assert parse_apart(shard, parse_draws) == parse_draws(shard)
    assert parse_apart(shard) == as_lists(parse_shard(shard))


def test_its_error_is_raised_here_with_the_path_as_given(shard, monkeypatch):
    monkeypatch.chdir(shard.parent)
    of_text("version", 1)(shard)
    with pytest.raises(UpgradeNeeded, match=r"^shard-00000\.h5: upgrade needed"):
        parse_apart("shard-00000.h5")
    shard.write_bytes(b"")
    with pytest.raises(ShardError, match=r"^shard-00000\.h5: damaged"):
        parse_apart(Path("shard-00000.h5"))
    with pytest.raises(ShardError, match="No such file"):
        parse_apart("none.h5")
    assert len(apart._idle) == 1


def test_a_child_that_dies_gives_a_typed_error_and_the_next_file_another_child(shard):
    wanted = parse_apart(shard)
    (child,) = apart._idle
    child.kill()
    child.wait()
    assert parse_apart(shard) == wanted
    (child,) = apart._idle
    child.send_signal(signal.SIGSTOP)
    threading.Timer(0.2, child.kill).start()
    with pytest.raises(ShardError, match=r"HDF5 could not parse it: Killed\); remove it"):
        parse_apart(shard)
    assert apart._idle == []
    assert child.returncode == -signal.SIGKILL
    assert parse_apart(shard) == wanted


def test_a_child_that_sleeps_on_is_ended_and_one_that_computes_is_not(shard, monkeypatch):
    monkeypatch.setattr(apart, "_SECONDS_ASLEEP", 0.5)
    wanted = parse_apart(shard)
    (child,) = apart._idle
    child.send_signal(signal.SIGSTOP)
    with pytest.raises(ShardError, match="Killed"):
        parse_apart(shard)
    assert child.returncode == -signal.SIGKILL
    assert parse_apart(shard) == wanted
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    asleep = subprocess.Popen(["sleep", "60"])
    try:
        # Between its start and its loop a program may sleep for a moment.
        assert any(apart._asleep(busy.pid) is None for _ in range(100) if not time.sleep(0.02))
        assert any(apart._asleep(asleep.pid) is not None for _ in range(100) if not time.sleep(0.02))
    finally:
        for process in (busy, asleep):
            process.kill()
            process.wait()


def test_threads_have_a_child_each(shard):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(parse_apart, [shard] * 6))
    assert found == [found[0]] * 6
    assert 1 <= len(apart._idle) <= 3
    assert len({child.pid for child in apart._idle}) == len(apart._idle)


def test_ended_children_leave_nothing_behind(shard):
    before = len(list(os.scandir("/proc/self/fd")))
    parse_apart(shard)
    (child,) = apart._idle
    end_children()
    assert apart._idle == []
    assert child.returncode == 0
    assert len(list(os.scandir("/proc/self/fd"))) == before


def in_child(body):
    """Run ``body`` in place of the parse, in a child of this test's own; return how it ended and what it wrote."""
    code = f"import anyecg.loaders.apart as apart\n{body}\napart.main()\n"
    lines = f'["parse_shard", "{__file__}"]\n' * 2
    done = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()


def test_a_loop_is_ended_by_the_system():
    assert in_child("def loop(path):\n    while True: pass\napart.parse_shard = loop") == (-signal.SIGPROF, [])


def test_time_between_files_does_not_count():
    status, said = in_child(
        "import time\ndef busy(path):\n    end = time.process_time() + 0.7\n"
        "    while time.process_time() < end: pass\n    return {}\napart.parse_shard = busy"
    )
    assert (status, said) == (0, ["{}", "{}"])


def test_memory_beyond_the_bound_is_refused_within_python_and_little_more_is_allowed():
    body = (
        "from anyecg.loaders.errors import ShardError\ndef take(path):\n    try:\n        bytearray({} << 20)\n"
        "    except MemoryError: raise ShardError('no memory') from None\n    return {{}}\napart.parse_shard = take"
    )
    assert in_child(body.format(130))[1] == ['{"error": "ShardError", "said": "no memory"}'] * 2
    assert in_child(body.format(80))[1] == ["{}"] * 2


def test_the_bounds_grow_with_the_file(monkeypatch):
    limits, seconds = [], []
    monkeypatch.setattr(apart.resource, "setrlimit", lambda which, pair: limits.append((which, pair)))
    monkeypatch.setattr(apart.signal, "setitimer", lambda which, after: seconds.append((which, after)))
    for n_bytes in (0, 100_000_000, 10**12):
        apart._bound(n_bytes)
    assert seconds == [(signal.ITIMER_PROF, 1), (signal.ITIMER_PROF, 6), (signal.ITIMER_PROF, 50_001)]
    assert {which for which, _ in limits} == {resource.RLIMIT_DATA}
    assert {high for _, (_, high) in limits} == {resource.RLIM_INFINITY}
    first, second, third = (low for _, (low, _) in limits)
    assert abs(second - first - 400_000_000) < 30_000_000
    assert abs(third - first - 2**30) < 30_000_000


def test_the_child_looks_for_no_plugins_leaves_no_core_and_heeds_no_interrupt():
    status, said = in_child(
        "import h5py, os, resource, signal\n"
        "def tell(path):\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return [h5py.h5pl.size(), resource.getrlimit(resource.RLIMIT_CORE)[0]]\napart.parse_shard = tell"
    )
    assert (status, said) == (0, ["[0, 0]"] * 2)
