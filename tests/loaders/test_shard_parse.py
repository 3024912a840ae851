import signal
import threading
from collections import Counter

import numpy as np
import pytest

from anyecg.loaders import apart
from anyecg.loaders.errors import ShardError
from anyecg.loaders.shard_file import describe_shard

from .hostile import not_refused, run_all
from .mutants import make_seeds, mutate, outcome
from .tiny import write_tiny_shard


def test_every_hostile_shard_and_index_is_refused_within_its_means(tmp_path):
    tried = run_all(tmp_path)
    assert not_refused(tried["found"]) == {}
    assert len(tried["found"]) > 350
    assert max(tried["peak_mb"], tried["child_peak_mb"]) < 256
    assert not list(tmp_path.rglob("canary-fired"))


def test_mutated_shards_are_read_or_refused(tmp_path):
    seeds = make_seeds(tmp_path)
    path = tmp_path / "shard-00000.h5"
    outcomes = Counter()
    for number in range(150):
        rng = np.random.default_rng([13, number])
        path.write_bytes(mutate(seeds[int(rng.integers(len(seeds)))], rng))
        outcomes[outcome(path)] += 1
    assert outcomes["shard"] > 5
    assert outcomes["typed error"] > 50


def test_a_child_that_dies_gives_a_typed_error_and_the_next_file_another_child(tmp_path):
    path = tmp_path / "shard-00000.h5"
    write_tiny_shard(path)
    wanted = describe_shard(path)
    assert wanted["lengths"]["windows"] == 150
    (child,) = apart._idle
    child.kill()
    child.wait()
    assert describe_shard(path) == wanted
    (child,) = apart._idle
    child.send_signal(signal.SIGSTOP)
    threading.Timer(0.2, child.kill).start()
    with pytest.raises(ShardError, match=r"HDF5 could not parse it: Killed"):
        describe_shard(path)
    assert describe_shard(path) == wanted
