import subprocess
import sys

import numpy as np
import pytest
import torch

from anyecg.loaders.augment import draw_changes
from anyecg.loaders.dali import DaliBatches
from anyecg.loaders.errors import ShardError
from anyecg.loaders.index import write_index
from anyecg.loaders.plain import TorchBatches
from anyecg.loaders.shard_file import describe_shard
from anyecg.loaders.source import Block, PairSource, WindowSource
from anyecg.loaders.stream import batch, open_index
from anyecg.loaders.stream_config import StreamConfig

from .changed import ALL
from .tiny import write_tiny_shard

ORDER = {"seed": 5, "batch_size": 16, "split": "train", "horizon_min": 60}
CONFIG = StreamConfig(**ALL)


def take(batches, n_batches):
    try:
        return [batches.next() for _ in range(n_batches)]
    finally:
        batches.close()


def source_of(index, config=CONFIG, **options):
    return PairSource(index, config, ORDER, **options)


def assert_equal(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a.x_BLT, b.x_BLT)
        assert torch.equal(a.label_BC, b.label_BC)
        assert a[2:] == b[2:]


@pytest.mark.parametrize("config", [StreamConfig(), CONFIG], ids=["plain", "augmented"])
def test_dali_and_torch_give_the_same_batches_over_an_epoch_and_on(tiny_index, config):
    n_batches = source_of(tiny_index).n_batches(0) + 3
    dali = take(DaliBatches(source_of(tiny_index, config), prefetch=2), n_batches)
    plain = take(TorchBatches(source_of(tiny_index, config), workers=0, prefetch=2), n_batches)
    for a, b in zip(dali, plain, strict=True):
        np.testing.assert_allclose(a.x_BLT.numpy(), b.x_BLT.numpy(), atol=1e-3)
        assert torch.equal(a.label_BC, b.label_BC)
        assert a[2:] == b[2:]


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_the_ranks_together_get_the_rows_of_one(tiny_index, n_ranks):
    (alone,) = take(TorchBatches(source_of(tiny_index), workers=0, prefetch=1), 1)
    parts = [
        take(TorchBatches(source_of(tiny_index, rank=rank, n_ranks=n_ranks), workers=0, prefetch=1), 1)[0]
        for rank in range(n_ranks)
    ]
    assert torch.equal(torch.cat([part.label_BC for part in parts]), alone.label_BC)
    np.testing.assert_allclose(torch.cat([part.x_BLT for part in parts]).numpy(), alone.x_BLT.numpy(), atol=1e-6)
    assert {part.n_pairs for part in parts} == {16}


@pytest.fixture(scope="module")
def packed_index(tmp_path_factory):
    """Return the index of a set that HDF5 has to unpack."""
    folder = tmp_path_factory.mktemp("packed")
    write_tiny_shard(folder / "shard-00000.h5", form="bitshuffle-lz4")
    described = [describe_shard(folder / "shard-00000.h5")]
    write_index(folder, described, {"stage_hash": "3", "cohort_hash": "4", "counts": described[0]["counts"]})
    return open_index(folder)


STARTED = """
import sys, torch
from anyecg.loaders.plain import TorchBatches
from anyecg.loaders.source import PairSource
from anyecg.loaders.stream import open_index
from anyecg.loaders.stream_config import StreamConfig

order = {"seed": 5, "batch_size": 16, "split": "train", "horizon_min": 60}
source = PairSource(open_index(sys.argv[1]), StreamConfig(noise_mv=0.1, shift_seconds=2.0), order)
source(0)  # opens files in this process before the others start
wanted, found = TorchBatches(source, workers=0, prefetch=2, first_step=4), []
wanted = [wanted.next() for _ in range(9)]
workers = TorchBatches(source, workers=2, prefetch=2, first_step=4, start_method=sys.argv[2])
for whole in wanted:
    batch = workers.next()
    assert torch.equal(batch.x_BLT, whole.x_BLT) and torch.equal(batch.label_BC, whole.label_BC)
    assert batch[2:] == whole[2:]
workers.close()
"""


# In a process of its own: a fork takes with it the locks that threads of this one may hold.
@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("form", ["none", "bitshuffle-lz4"])
def test_worker_processes_give_the_batches_of_none(tiny_index, packed_index, start_method, form):
    index = {"none": tiny_index, "bitshuffle-lz4": packed_index}[form]
    command = [sys.executable, "-W", "ignore", "-c", STARTED, str(index.folder), start_method]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


class Large:
    """A source of blocks that take long to hand over."""

    config, fs = StreamConfig(), 500.0

    def __call__(self, _):
        return Block(np.zeros((2000, 1, 5000), np.int16), *[np.zeros(2000, np.float32)] * 3, 2000, 0)


def test_workers_that_are_ended_while_they_hand_over_a_batch_end_in_order():
    batches = TorchBatches(Large(), workers=2, prefetch=4)
    workers = batches._blocks._workers
    next(batches._blocks)
    batches.close()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_source_keeps_its_type_and_its_line(tiny_copy, workers):
    index = open_index(tiny_copy)
    for number in (0, 1):
        (tiny_copy / f"shard-0000{number}.h5").unlink()
    with pytest.raises(ShardError, match=r"^[^\n]*cannot be opened \(No such file or directory\)[^\n]*$"):
        take(TorchBatches(source_of(index), workers=workers, prefetch=2), 1)


def test_an_idle_rank_takes_a_row_that_counts_for_nothing(tiny_index):
    order = {**ORDER, "batch_size": len(tiny_index.pairs_of("train", 60)) - 1}
    last = [PairSource(tiny_index, CONFIG, order, rank=rank, n_ranks=3)(1) for rank in range(3)]
    assert [len(block.signal_BLT) for block in last] == [1, 1, 1]
    assert [block.n_pairs for block in last] == [1, 1, 1]
    idle = [block for block in last if (block.label_BC == -1).all()]
    assert len(idle) >= 2
    assert all((block.label_BC == -1).all() for block in idle)
    (pair,) = batch(tiny_index, 1, epoch=0, **order)
    labels = tiny_index.tables["draw_labels"][tiny_index.tables["pair_draw"][pair]]
    assert sum((block.label_BC >= 0).sum() for block in last) == (labels >= 0).sum()


def test_a_source_gives_each_pair_its_own_changes_whatever_the_batch(tiny_index):
    for step, epoch in ((0, 0), (3, 0), (source_of(tiny_index).n_batches(0) + 2, 1)):
        block = source_of(tiny_index)(step)
        pairs = batch(tiny_index, step % source_of(tiny_index).n_batches(0), epoch=epoch, **ORDER)
        wanted = draw_changes(pairs, seed=5, epoch=epoch, config=CONFIG, fs=5, n_samples=50)
        np.testing.assert_array_equal(block.changes_Bn, wanted)


def test_wander_for_filtered_shards_is_refused(tiny_copy):
    index = open_index(tiny_copy)
    index.head["preset"] = "ecgfounder"
    source_of(index, StreamConfig(noise_mv=0.1))
    with pytest.raises(ShardError, match=r"stream\.wander_mv = 0\.3"):
        source_of(index)


def test_windows_come_in_order_once_a_pass(tiny_set, tiny_index):
    rows = np.array([5, 70, 3, 200, 286])
    source = WindowSource(tiny_index, rows, batch_size=2)
    found = take(TorchBatches(source, workers=0, prefetch=2), 6)
    signal_WT = tiny_set[1][rows].astype(float)
    wanted = (signal_WT - signal_WT.mean(1, keepdims=True)) / signal_WT.std(1, keepdims=True)
    np.testing.assert_allclose(torch.cat([b.x_BLT for b in found])[:, 0].numpy(), np.tile(wanted, (2, 1)), atol=1e-3)
    assert [len(b.x_BLT) for b in found] == [2, 2, 1] * 2
