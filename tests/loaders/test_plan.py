from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from anyecg.loaders.plan import deal, plan_shards


def made_up_cohort(seconds, split, key):
    """Return a cohort whose visit v has recordings of ``seconds[v]`` seconds each, at several rates."""
    rates = (250, 300, 500, 125)
    rows = [(visit, second, rates[n]) for visit, of in enumerate(seconds) for n, second in enumerate(of)]
    records = pl.DataFrame(
        {
            "visit_row": [visit for visit, *_ in rows],
            "n_samples": [round(second * fs) for _, second, fs in rows],
            "fs": [float(fs) for *_, fs in rows],
        }
    )
    visits = pl.DataFrame({"visit": np.array(key, np.uint64), "split": np.array(split, np.int8)})
    return SimpleNamespace(records=records, visits=visits)


def test_visits_are_dealt_by_split_and_key_onto_shards_of_a_size():
    cohort = made_up_cohort(
        [[30, 20], [9.9], [100], [10], [45], [], [25.5]], [0, 0, 1, 0, 1, 2, 0], [9, 3, 5, 7, 4, 1, 8]
    )
    plans = plan_shards(cohort, windows_per_shard=3)
    found = [(plan.number, plan.split, plan.rows_V.tolist(), plan.windows_V.tolist()) for plan in plans]
    # Split 0 in the order of keys: 1 (0 windows), 3 (1), 6 (2), 0 (5); a shard begins where 3 more are before it.
    assert found == [
        (0, 0, [1, 3, 6], [0, 1, 2]), (1, 0, [0], [5]), (2, 1, [4], [4]), (3, 1, [2], [10]), (4, 2, [5], [0]),
    ]  # fmt: skip
    assert [plan.n_windows for plan in plans] == [3, 5, 4, 10, 0]
    assert len(plan_shards(cohort, windows_per_shard=1000)) == 3


def test_a_recording_holds_its_whole_windows_even_if_its_rate_is_no_binary_number():
    records = pl.DataFrame({"visit_row": [0, 0], "n_samples": [3 * 10 * 257, 2999], "fs": [257.0, 299.9]})
    visits = pl.DataFrame({"visit": np.array([1], np.uint64), "split": np.array([0], np.int8)})
    (plan,) = plan_shards(SimpleNamespace(records=records, visits=visits), windows_per_shard=10)
    assert plan.windows_V.tolist() == [3 + 1]


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8])
def test_each_shard_has_one_rank_and_the_loads_are_near(n_ranks):
    rng = np.random.default_rng(2)
    seconds = [[int(n)] for n in rng.integers(10, 2000, 60)]
    plans = plan_shards(made_up_cohort(seconds, [0] * 60, rng.permutation(60).tolist()), windows_per_shard=150)
    shares = deal(plans, n_ranks)
    assert len(shares) == n_ranks
    assert sorted(plan.number for share in shares for plan in share) == [plan.number for plan in plans]
    loads = [sum(plan.n_windows for plan in share) for share in shares]
    assert max(loads) <= sum(loads) / n_ranks + max(plan.n_windows for plan in plans)


def test_the_largest_shard_goes_first_and_each_to_the_rank_with_the_least_to_do():
    cohort = made_up_cohort([[50], [70], [30], [70], [10], [30]], [0, 0, 0, 1, 1, 2], [1, 2, 3, 4, 5, 6])
    plans = plan_shards(cohort, windows_per_shard=1)
    shares = [[(plan.number, plan.n_windows) for plan in share] for share in deal(plans, 2)]
    assert shares == [[(1, 7), (0, 5), (4, 1)], [(3, 7), (2, 3), (5, 3)]]
    assert deal([], 3) == [[], [], []]
