import dataclasses
import itertools

import numpy as np
import pytest
from torch.utils.data import DataLoader

from anyecg.kernels.counter import permute, uniform
from anyecg.loaders.choice import run_starts
from anyecg.loaders.files import digest
from anyecg.loaders.slots import Slots
from anyecg.loaders.stream import batch, epoch_order, n_batches, open_index, order_of, rows_of_rank, slots_of_rank
from anyecg.loaders.stream_config import Choice
from benchmarks.index_scale import make_index

OPTIONS = {"seed": 5, "epoch": 2}
WORLD_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 64)


def slow_pairs(index, split, horizon_min):
    """Return the pairs of a split and horizon, found by looking at every pair."""
    tables, bit = index.tables, {60: 1, 30: 2, 15: 4}[horizon_min]
    of_split = [
        tables["visit_split"][tables["window_visit"][window]] == ("train", "val", "test").index(split)
        for window in tables["pair_window"]
    ]
    return [pair for pair, here in enumerate(of_split) if here and tables["pair_horizons"][pair] & bit]


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("horizon_min", [60, 30, 15])
def test_an_epoch_visits_each_pair_once(tiny_index, split, horizon_min):
    wanted = slow_pairs(tiny_index, split, horizon_min)
    order = epoch_order(tiny_index, **OPTIONS, split=split, horizon_min=horizon_min)
    assert np.sort(order).tolist() == wanted


def test_the_order_of_released_shards_never_changes(tiny_index):
    assert digest(epoch_order(tiny_index, **OPTIONS).tolist()) == "8f1bfa692da32d65"
    assert digest(epoch_order(tiny_index, **OPTIONS, choice=Choice(balance=0.5)).tolist()) == "5e09ba9fd06f7ee6"
    assert (
        digest(epoch_order(tiny_index, **OPTIONS, choice=Choice(windows_per_sample=3)).tolist()) == "aca5386f0c68f868"
    )


@pytest.mark.parametrize("batch_size", [1, 7, 16, 1000])
def test_batches_and_their_parts_on_ranks_make_up_the_epoch(tiny_index, batch_size):
    order = epoch_order(tiny_index, **OPTIONS)
    n = n_batches(tiny_index, batch_size=batch_size, **OPTIONS)
    assert n == -(-len(order) // batch_size)
    batches = [batch(tiny_index, number, **OPTIONS, batch_size=batch_size) for number in range(n)]
    for n_ranks in WORLD_SIZES:
        parts = [[rows_of_rank(pairs, rank, n_ranks) for rank in range(n_ranks)] for pairs in batches]
        np.testing.assert_array_equal(np.concatenate([part for one in parts for part in one]), order)
        assert all(abs(len(part) - len(batches[0]) / n_ranks) < 1 for part in parts[0])


def test_each_of_500_steps_is_resumed_with_the_same_batch(tiny_index):
    options = {"seed": 9, "batch_size": 3}
    n = n_batches(tiny_index, epoch=0, **options)
    wanted = np.concatenate([epoch_order(tiny_index, seed=9, epoch=epoch) for epoch in range(-(-500 // n))])
    ends = len(epoch_order(tiny_index, seed=9, epoch=0))
    for step in range(500):
        epoch, number = divmod(step, n)
        # As in a new process, which has worked out nothing yet.
        tiny_index.orders.clear()
        n_ranks = (1, 2, 4, 8)[step % 4]
        pairs = batch(tiny_index, number, epoch=epoch, **options)
        parts = np.concatenate([rows_of_rank(pairs, rank, n_ranks) for rank in range(n_ranks)])
        first = epoch * ends + number * 3
        np.testing.assert_array_equal(parts, wanted[first : min(first + 3, (epoch + 1) * ends)])


PARTS = [
    (seed, epoch, n_ranks, rank, number)
    for seed in (0, 1, 77) for epoch in range(3) for n_ranks in WORLD_SIZES for number in range(21)
    for rank in range(n_ranks)
]  # fmt: skip


class Parts:
    """What every rank of every world size takes in every batch of nine epochs."""

    def __init__(self, folder):
        self.folder, self.index = folder, None

    def __getitem__(self, row):
        self.index = self.index or open_index(self.folder)
        seed, epoch, n_ranks, rank, number = PARTS[row]
        return rows_of_rank(batch(self.index, number, seed=seed, epoch=epoch, batch_size=16), rank, n_ranks)

    def __len__(self):
        return len(PARTS)


@pytest.mark.parametrize("n_workers", [0, 1, 4, 8])
def test_the_order_is_the_same_on_any_number_of_ranks_and_workers(tiny_index, n_workers):
    parts = iter(DataLoader(Parts(tiny_index.folder), batch_size=None, num_workers=n_workers, collate_fn=np.asarray))
    for seed, epoch in itertools.product((0, 1, 77), range(3)):
        wanted = epoch_order(tiny_index, seed=seed, epoch=epoch)
        assert len(wanted) == 336
        for n_ranks in WORLD_SIZES:
            found = np.concatenate([next(parts) for _ in range(21 * n_ranks)])
            np.testing.assert_array_equal(found, wanted)


def slow_order(index, choice, *, seed, epoch):
    """Return an epoch as the words of the design say it: shuffled runs, pools, lanes; all in plain lists."""
    window, key = index.tables["pair_window"], int(digest([seed, epoch, "train", 60]), 16)
    runs = []
    for _, chunks in itertools.groupby(index.tables["chunks"].tolist(), key=lambda row: row[0]):
        windows = [set(range(first, first + n_windows)) for _, first, n_windows, *_ in chunks]
        runs += [set().union(*windows[n : n + choice.run_chunks]) for n in range(0, len(windows), choice.run_chunks)]
    wanted = slow_pairs(index, "train", 60)
    of_run = [[pair for pair in wanted if window[pair] in run] for run in runs]
    of_run = [pairs for pairs in of_run if pairs]
    shuffled = [of_run[n] for n in permute(np.arange(len(of_run)), len(of_run), key)]
    sequence, n_pools = [], 0
    for first in range(0, len(shuffled), choice.pool_runs):
        n_pools += 1
        pool = [pair for pairs in shuffled[first : first + choice.pool_runs] for pair in pairs]
        of_window = {}
        for pair in sorted(pool, key=lambda pair: uniform(key + 1, [pair])[0]):
            of_window.setdefault(window[pair], []).append(pair)
        places = {
            pair: (turn + uniform(key + 2, [one])[0]) / len(pairs)
            for one, pairs in of_window.items()
            for turn, pair in enumerate(pairs)
        }
        sequence += sorted(places, key=places.get)
    n_lanes = choice.lanes
    while n_lanes > n_pools:
        n_lanes //= 2
    lanes = [lane[:: -1 if n % 2 else 1] for n, lane in enumerate(np.array_split(sequence, n_lanes))]
    return [int(lane[turn]) for turn in range(len(lanes[0])) for lane in lanes if turn < len(lane)]


@pytest.mark.parametrize("lanes", [1, 2, 3, 256])
@pytest.mark.parametrize(("run_chunks", "pool_runs"), [(1, 1), (1, 2), (2, 1), (3, 5)])
def test_the_order_is_that_of_a_slow_twin(tiny_index, lanes, run_chunks, pool_runs):
    choice = Choice(lanes=lanes, run_chunks=run_chunks, pool_runs=pool_runs)
    found = epoch_order(tiny_index, seed=4, epoch=1, choice=choice)
    assert found.tolist() == slow_order(tiny_index, choice, seed=4, epoch=1)


def test_the_pairs_of_a_window_lie_as_far_apart_as_their_pool_allows(tiny_index):
    order = epoch_order(tiny_index, **OPTIONS, choice=Choice(lanes=1))
    window = tiny_index.tables["pair_window"][order]
    pools = [len({*window.tolist()} & {*range(*edge)}) for edge in ((0, 150), (150, 220))]
    for one in np.unique(window):
        places = np.flatnonzero(window == one)
        assert len(places) == 1 or np.diff(places).min() >= min(pools) // 4


def test_repeated_samples_are_as_frequent_at_the_end_of_an_epoch_as_at_its_start(large_index):
    choice = Choice(balance=0.5, run_chunks=4, pool_runs=1024)
    pairs = epoch_order(large_index, seed=0, epoch=0, choice=choice)
    _, row, times = np.unique(pairs, return_inverse=True, return_counts=True)
    repeated = times[row] > 1
    assert 0.05 < repeated.mean() < 0.95
    parts = np.array([part.mean() for part in np.array_split(repeated, 20)])
    spread = np.sqrt(repeated.mean() * (1 - repeated.mean()) * 20 / len(repeated))
    assert np.abs(parts - repeated.mean()).max() < 5 * spread


def windows_read(index, choice, *, batch_size, n_ranks):
    """Return how many windows all ranks read in an epoch, and how many there are."""
    order = order_of(index, seed=0, epoch=0, choice=choice)
    pairs = epoch_order(index, seed=0, epoch=0, choice=choice)
    run = np.searchsorted(order.chosen.first_R, pairs, side="right") - 1
    n_windows = np.add.reduceat(index.tables["chunks"][:, 2], run_starts(index, choice.run_chunks)[:-1])
    n_windows = n_windows[order.chosen.runs_R]
    n_read, n_slots = 0, slots_of_rank(choice, batch_size=batch_size, n_ranks=n_ranks)
    for rank in range(n_ranks):
        slots = Slots(len(order.chosen.runs_R), n_slots)
        for first in range(0, len(pairs), batch_size):
            for some, _ in slots.parts(rows_of_rank(run[first : first + batch_size], rank, n_ranks)):
                n_read += sum(n_windows[missing] for missing, _ in slots.take(some))
    return n_read, n_windows.sum()


@pytest.fixture(scope="session")
def large_index(tmp_path_factory):
    """Return an index of 200,000 windows without any signal."""
    folder = tmp_path_factory.mktemp("large")
    make_index(folder, 200_000, 1_000)
    return open_index(folder)


@pytest.mark.parametrize(
    ("batch_size", "lanes", "n_ranks"),
    [(64, 64, 1), (64, 64, 64), (16, 64, 8), (64, 64, 3), (50, 64, 1), (256, 512, 1)],
)
def test_an_epoch_reads_its_runs_once(large_index, batch_size, lanes, n_ranks):
    choice = Choice(lanes=lanes, run_chunks=1)
    n_read, n_windows = windows_read(large_index, choice, batch_size=batch_size, n_ranks=n_ranks)
    assert n_windows <= n_read <= 1.1 * n_windows


def test_ranks_that_share_lanes_read_their_runs_again(large_index):
    n_read, n_windows = windows_read(large_index, Choice(lanes=64, run_chunks=1), batch_size=256, n_ranks=4)
    assert 3.5 * n_windows < n_read <= 4.2 * n_windows


def test_the_default_is_the_train_split_with_60_minutes(tiny_index):
    named = {"split": "train", "horizon_min": 60}
    assert (epoch_order(tiny_index, **OPTIONS) == epoch_order(tiny_index, **OPTIONS, **named)).all()
    assert n_batches(tiny_index, batch_size=9, **OPTIONS) == n_batches(tiny_index, batch_size=9, **OPTIONS, **named)
    first = batch(tiny_index, 0, **OPTIONS, batch_size=9)
    assert (first == batch(tiny_index, 0, **OPTIONS, batch_size=9, **named)).all()


def test_seed_and_epoch_change_the_order(tiny_index):
    order = epoch_order(tiny_index, seed=5, epoch=2)
    assert (epoch_order(tiny_index, seed=5, epoch=2) == order).all()
    assert (epoch_order(tiny_index, seed=5, epoch=3) != order).any()
    assert (epoch_order(tiny_index, seed=6, epoch=2) != order).any()


@pytest.mark.parametrize("number", [-1, -9999, 9999, "last + 1"])
def test_a_batch_beyond_the_epoch_is_refused(tiny_index, number):
    n_all = n_batches(tiny_index, batch_size=16, **OPTIONS)
    number = n_all if number == "last + 1" else number
    with pytest.raises(ValueError, match=f"batch {number} of an epoch with {n_all} batches"):
        batch(tiny_index, number, **OPTIONS, batch_size=16)


def test_a_split_without_pairs_has_an_empty_epoch(tiny_index):
    shards = [{**shard, "horizons": [0, 0, 0]} for shard in tiny_index.head["shards"]]
    tables = {**tiny_index.tables, "pair_horizons": np.zeros_like(tiny_index.tables["pair_horizons"])}
    empty = dataclasses.replace(tiny_index, head={**tiny_index.head, "shards": shards}, tables=tables)
    assert epoch_order(empty, **OPTIONS).dtype == np.int64
    assert len(epoch_order(empty, **OPTIONS)) == n_batches(empty, batch_size=4, **OPTIONS) == 0
