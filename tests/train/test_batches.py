from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wfdb
from mpi4py import MPI

from anyecg.loaders.cohort import build_cohort
from anyecg.loaders.cohort_config import CohortConfig
from anyecg.loaders.counters import Counters
from anyecg.loaders.index import open_index
from anyecg.loaders.shard_config import ShardConfig
from anyecg.loaders.shards import write_shards
from anyecg.loaders.stream import epoch_order, n_batches
from anyecg.loaders.stream_config import StreamConfig
from anyecg.train.batches import PairBatches, WindowBatches

ORDER = {"seed": 5, "batch_size": 100, "split": "train", "horizon_min": 60}
AUGMENTED = {"noise_mv": 0.1, "shift_seconds": 2.0, "mask_seconds": 1.0}


def epoch(index, config, *, rank=0, n_ranks=1, first=0, last=0, counters=None):
    """Return the Batches of one rank in the epochs from ``first`` to ``last``."""
    comm = SimpleNamespace(rank=rank, size=n_ranks)
    first_step = sum(n_batches(index, epoch=number, choice=config, **ORDER) for number in range(first))
    batches = PairBatches(index, config, ORDER, comm, first_step=first_step, counters=counters)
    found = [batches.next() for number in range(first, last + 1) for _ in range(batches.n_batches(number))]
    batches.close()
    return found


@pytest.mark.parametrize("loader", ["dali", "torch"])
def test_an_epoch_carries_the_labels_and_counts_of_its_order(tiny_index, loader):
    found = epoch(tiny_index, StreamConfig(loader=loader))
    pairs, tables = epoch_order(tiny_index, seed=5, epoch=0), tiny_index.tables
    label_BC = np.concatenate([batch.label_BC.numpy() for batch in found])
    np.testing.assert_array_equal(label_BC, tables["draw_labels"][tables["pair_draw"][pairs]])
    assert sum(batch.n_pairs for batch in found) == len(pairs)
    assert not any(batch.n_substituted for batch in found)


@pytest.fixture(scope="module")
def faulty_index(tmp_path_factory):
    """Return the index of recordings of which one window in a hundred each is torn, flat or huge."""
    folder, rng = tmp_path_factory.mktemp("faulty"), np.random.default_rng(8)
    faults = rng.permutation(400)[:12].reshape(3, 4)
    for number in range(20):
        mv = rng.standard_normal((20, 2500)).cumsum(1)
        mv = 0.5 * (mv - mv.mean(1, keepdims=True)) / mv.std(1, keepdims=True)
        torn, flat, huge = (kind[kind // 20 == number] % 20 for kind in faults)
        mv[torn, 1000:1100], mv[flat], mv[huge, 7] = np.nan, 0.25, 25.0
        wfdb.wrsamp(
            f"r{number}", 250, ["mV"], ["I"], mv.reshape(-1, 1), fmt=["16"], adc_gain=[1000], baseline=[0],
            write_dir=str(folder),
        )  # fmt: skip
    (folder / "labels.csv").write_text("record,patient,t\n" + "".join(f"r{n},p{n},{n % 2}\n" for n in range(20)))
    config = CohortConfig(path=str(folder), labels=str(folder / "labels.csv"))
    cohort = build_cohort(config, seed=0)
    write_shards(folder / "shards", cohort, ShardConfig(preset="none"), MPI.COMM_SELF, seed=0, stage_hash="")
    return open_index(folder / "shards")


def test_faulty_windows_are_counted_by_reason(faulty_index):
    counts = faulty_index.head["counts"]
    assert (counts["windows cut"], counts["windows kept"]) == (400, 388)
    dropped = {what: n for what, n in counts.items() if what.startswith("windows dropped")}
    assert dropped == {"windows dropped: flat": 4, "windows dropped: not finite": 4, "windows dropped: over 20 mV": 4}


@pytest.mark.parametrize("loader", ["dali", "torch"])
def test_no_faulty_window_is_in_a_batch(faulty_index, loader):
    found = torch.cat([batch.x_BLT for batch in epoch(faulty_index, StreamConfig(loader=loader))])
    assert len(found) == len(faulty_index.windows_of("train"))
    assert found.isfinite().all()
    # Each is standardised: one that is flat would have no spread.
    torch.testing.assert_close(found.std(2), torch.ones_like(found[:, :, 0]), atol=1e-3, rtol=0)
    assert found.abs().max() < 20


@pytest.mark.parametrize("loader", ["dali", "torch"])
@pytest.mark.parametrize("n_ranks", [2, 3, 64])
def test_the_ranks_share_the_rows_and_the_measured_labels_of_each_batch(tiny_index, loader, n_ranks):
    config = StreamConfig(loader=loader, **AUGMENTED)
    alone = epoch(tiny_index, config)
    ranks = [epoch(tiny_index, config, rank=rank, n_ranks=n_ranks) for rank in range(n_ranks)]
    for number, whole in enumerate(alone):
        parts = [batches[number] for batches in ranks]
        assert {part.n_pairs for part in parts} == {whole.n_pairs}
        # A rank without rows carries one that has no label.
        if whole.n_pairs >= n_ranks:
            assert torch.equal(torch.cat([part.label_BC for part in parts]), whole.label_BC)
            torch.testing.assert_close(torch.cat([part.x_BLT for part in parts]), whole.x_BLT, atol=1e-5, rtol=0)
        else:
            assert all(len(part.x_BLT) == 1 for part in parts)
            assert sum((part.label_BC == -1).all() for part in parts) >= n_ranks - whole.n_pairs


@pytest.mark.parametrize("loader", ["dali", "torch"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_is_arithmetic_whatever_prepares_the_batches(tiny_index, loader, workers):
    whole = epoch(tiny_index, StreamConfig(loader=loader, **AUGMENTED), last=1)
    later = epoch(tiny_index, StreamConfig(loader=loader, workers=workers, prefetch=5, **AUGMENTED), first=1, last=1)
    for found, wanted in zip(later, whole[len(whole) // 2 :], strict=True):
        assert torch.equal(found.x_BLT, wanted.x_BLT)
        assert torch.equal(found.label_BC, wanted.label_BC)


@pytest.mark.parametrize("loader", ["dali", "torch"])
def test_windows_come_once_a_pass_in_order_without_augmentation(tiny_set, tiny_index, loader):
    rows = np.array([5, 70, 3, 200, 286])
    batches = WindowBatches(tiny_index, rows, StreamConfig(loader=loader, **AUGMENTED), batch_size=2)
    signal_WT = tiny_set[1][rows].astype(float)
    wanted = (signal_WT - signal_WT.mean(1, keepdims=True)) / signal_WT.std(1, keepdims=True)
    for _ in range(3):
        np.testing.assert_allclose(np.concatenate([x_BLT.numpy() for x_BLT in batches])[:, 0], wanted, atol=1e-3)
    batches.close()


def test_waiting_is_counted(tiny_index):
    counters = Counters()
    found = epoch(tiny_index, StreamConfig(), counters=counters)
    totals = counters.totals()
    assert (totals["wait"].events, totals["wait"].n_windows) == (len(found), sum(batch.n_pairs for batch in found))
    assert totals["wait"].seconds >= totals["dali"].seconds > 0
