import random

import pytest

from .left_over import LOADERS, kill_readers


@pytest.mark.parametrize("loader", LOADERS)
def test_a_killed_reader_leaves_nothing_in_shared_memory_and_no_worker(tiny_set, loader):
    """Short form of benchmarks/kill_streams.py."""
    assert kill_readers(tiny_set[0], loader, n_cycles=5, rng=random.Random(8)) == []
