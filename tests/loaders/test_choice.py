import numpy as np
import pytest
from pydantic import ValidationError

from anyecg.kernels.counter import uniform
from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import digest
from anyecg.loaders.stream import batch, epoch_order, n_batches, open_index, rows_of_rank
from anyecg.loaders.stream_config import Choice

from .test_stream import slow_pairs

OPTIONS = {"seed": 5, "epoch": 2}
PAIRS_KEY = int(digest(["pairs", 5, 2]), 16)


def draws_of(index, pairs):
    """Return draw -> its pairs."""
    found = {}
    for pair in pairs:
        found.setdefault(int(index.tables["pair_draw"][pair]), []).append(pair)
    return found


def by_hash(pairs):
    return sorted(pairs, key=lambda pair: uniform(PAIRS_KEY, [pair])[0])


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("horizon_min", [60, 15])
@pytest.mark.parametrize("n", [1, 3, 200])
def test_each_draw_gives_its_windows_of_smallest_hash(tiny_index, split, horizon_min, n):
    choice = Choice(windows_per_draw=n)
    found = epoch_order(tiny_index, **OPTIONS, split=split, horizon_min=horizon_min, choice=choice)
    draws = draws_of(tiny_index, slow_pairs(tiny_index, split, horizon_min))
    assert sorted(found.tolist()) == sorted(pair for pairs in draws.values() for pair in by_hash(pairs)[:n])


def test_another_epoch_takes_other_windows_of_a_draw(tiny_index):
    taken = [set(epoch_order(tiny_index, seed=1, epoch=e, choice=Choice(windows_per_draw=1))) for e in range(2)]
    assert len(taken[0]) == len(taken[1]) == 12
    assert len(taken[0] & taken[1]) < 4


def slow_weights(index, balance, largest):
    """Return draw -> weight, by the words of the docstring."""
    draws = draws_of(index, slow_pairs(index, "train", 60))
    labels = {draw: index.tables["draw_labels"][draw].tolist() for draw in draws}
    n = [sum(row[c] == 1 for row in labels.values()) for c in range(len(index.targets))]
    return {
        draw: max([1.0, *(min(largest, (max(n) / n[c]) ** balance) for c, label in enumerate(row) if label == 1)])
        for draw, row in labels.items()
    }


@pytest.mark.parametrize(("balance", "largest"), [(0.5, 16.0), (1.0, 16.0), (1.0, 1.2)])
def test_a_pair_occurs_as_often_as_its_weight_says(tiny_index, balance, largest):
    weights = slow_weights(tiny_index, balance, largest)
    found = epoch_order(tiny_index, **OPTIONS, choice=Choice(balance=balance, max_repeats=largest))
    times = np.bincount(found, minlength=len(tiny_index.tables["pair_draw"]))
    for pair in slow_pairs(tiny_index, "train", 60):
        weight = weights[int(tiny_index.tables["pair_draw"][pair])]
        u = uniform(PAIRS_KEY ^ (2**64 - 1), [pair])[0]
        assert times[pair] == int(weight + u)
        assert abs(times[pair] - weight) < 1
    assert times.sum() == len(found)
    assert max(weights.values()) > 1
    mean = np.mean([
        len(epoch_order(tiny_index, seed=5, epoch=e, choice=Choice(balance=balance, max_repeats=largest)))
        for e in range(30)
    ])  # fmt: skip
    assert mean == pytest.approx(
        sum(weights[int(d)] for d in tiny_index.tables["pair_draw"][np.unique(found)]), rel=0.02
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_share_of_the_patients_brings_all_their_pairs_and_lies_within_a_larger_share(tiny_index, seed):
    tables, before = tiny_index.tables, set()
    patient = tables["visit_patient"][tables["draw_visit"][tables["pair_draw"]]]
    for share in (0.3, 0.6, 1.0):
        pairs = set(epoch_order(tiny_index, seed=seed, epoch=1, choice=Choice(patients=share)).tolist())
        kept = {p for p in np.unique(patient) if uniform(int(digest(["patients", seed]), 16), [p])[0] < share}
        assert pairs == {pair for pair in slow_pairs(tiny_index, "train", 60) if patient[pair] in kept}
        assert pairs == set(epoch_order(tiny_index, seed=seed, epoch=2, choice=Choice(patients=share)).tolist())
        assert before <= pairs
        before = pairs


@pytest.mark.parametrize("k", [2, 5, 150])
def test_a_sample_is_the_next_windows_of_its_draw(tiny_index, k):
    samples = epoch_order(tiny_index, **OPTIONS, choice=Choice(windows_per_sample=k))
    draws = draws_of(tiny_index, slow_pairs(tiny_index, "train", 60))
    assert samples.shape == (len(draws), k)
    for sample in samples.tolist():
        pairs = by_hash(draws[int(tiny_index.tables["pair_draw"][sample[0]])])
        assert sample == [pairs[n % len(pairs)] for n in range(k)]


def test_the_samples_of_a_repeated_draw_are_different_windows(tiny_index):
    samples = epoch_order(tiny_index, **OPTIONS, choice=Choice(windows_per_sample=3, balance=1.0))
    draws = tiny_index.tables["pair_draw"][samples[:, 0]]
    (most,) = np.flatnonzero(np.bincount(draws) == np.bincount(draws).max())[:1]
    here = samples[draws == most]
    assert len(here) > 1
    assert len(np.unique(here)) == here.size


@pytest.mark.parametrize(
    "choice", [{"windows_per_draw": 2}, {"balance": 1.0}, {"patients": 0.5}, {"windows_per_sample": 4}]
)
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 6, 8, 12, 16, 64])
def test_what_is_chosen_is_the_same_on_any_number_of_ranks(tiny_index, choice, n_ranks):
    options = {**OPTIONS, "choice": Choice(**choice)}
    order = epoch_order(tiny_index, **options)
    parts = [
        rows_of_rank(batch(tiny_index, number, batch_size=5, **options), rank, n_ranks)
        for number in range(n_batches(tiny_index, batch_size=5, **options))
        for rank in range(n_ranks)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), order)


def test_samples_of_one_window_leave_no_draw_twice(tiny_index):
    with pytest.raises(ValidationError, match="leave windows_per_draw 0"):
        Choice(windows_per_sample=2, windows_per_draw=1)


def test_pairs_that_belong_to_draws_of_another_shard_are_refused(tiny_copy):
    path = tiny_copy / "index-pair_draw.npy"
    table = np.load(path)
    table[0] = 10**6
    np.save(path, table)
    with pytest.raises(ShardError, match="pairs of shard 0 belong to draws of another"):
        epoch_order(open_index(tiny_copy), **OPTIONS, choice=Choice(windows_per_draw=1))
