"""Rates, efficiencies, costs, the fitted law and the forecast, on experiments whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyecg.loaders.targets import read_targets
from anyecg.slurm.scale_numbers import (
    Full,
    Law,
    evaluation_steps,
    fit_law,
    forecast,
    half_width,
    is_precise,
    overlap_of_draws,
    points_of,
    rate_of,
    sample_laws,
    stored_pairs,
)

from .made_scale import LAWS, made_blocks, made_documents

COUNTS = [target.paper_windows for target in read_targets()]
PERFECT = Law(1e-5, 0.0, 0.0)


def of(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_perfect_scaling_has_efficiency_one_and_constant_cost():
    rows = points_of(made_documents(noise=0.0, laws=dict.fromkeys(LAWS, PERFECT)))
    assert [row["efficiency"] for row in rows] == pytest.approx([1.0] * len(rows))
    assert [row["speed_up"] for row in rows] == pytest.approx([row["n"] for row in rows])
    for key in ("node_seconds_per_million", "core_hours_per_million", "gpu_hours_per_million"):
        assert [row[key] for row in rows] == pytest.approx([rows[0][key]] * len(rows))
    assert rows[0]["node_seconds_per_million"] == pytest.approx(10.0)
    assert rows[0]["core_hours_per_million"] == pytest.approx(64 * 10 / 3600)
    assert rows[0]["gpu_hours_per_million"] == pytest.approx(8 * 10 / 3600)
    assert [row["waiting_share"] for row in rows] == pytest.approx([0.1] * len(rows))


def test_efficiency_is_the_rate_a_node_over_that_of_the_smallest_job():
    law = LAWS["finetune"]
    rows = of(points_of(made_documents((2, 4, 16), noise=0.0)), part="finetune", kind="weak")
    wanted = [law.rate(n) / n / (law.rate(2) / 2) for n in (2, 4, 16)]
    assert [row["efficiency"] for row in rows] == pytest.approx(wanted)


def test_on_one_machine_the_ranks_are_what_scales():
    rows = points_of(made_documents((1, 2), unit="ranks", ranks=1, gpus=0, cores=1))
    assert {row["unit"] for row in rows} == {"ranks"}
    assert sorted({row["n"] for row in rows}) == [1, 2]
    assert {row["gpu_hours_per_million"] for row in rows} == {0.0}


def test_the_error_of_a_rate_agrees_with_many_repetitions():
    rng = np.random.default_rng(0)
    found = [rate_of(made_blocks(100.0, 0.05, rng, n_blocks=20))[:2] for _ in range(500)]
    rates, errors = np.array(found).T
    assert np.mean(errors) == pytest.approx(np.std(rates) / 100.0, rel=0.1)


def test_the_interval_of_a_rate_holds_the_truth_95_times_in_100():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        rate, error, df = rate_of(made_blocks(100.0, 0.05, rng, n_blocks=5))
        held += abs(rate - 100.0) <= rate * half_width(error, df)
    assert 0.93 <= held / 1000 <= 0.97


def test_blocks_are_enough_when_five_agree():
    block = {"windows": 10.0, "seconds": 1.0}
    assert not is_precise([block] * 4)
    assert is_precise([block] * 5)
    assert not is_precise([*[block] * 4, {"windows": 10.0, "seconds": 1.2}])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(1e-6, 1.0), st.floats(0, 1), st.floats(0, 0.2), st.integers(1, 4))
def test_a_known_law_is_found_again(a, b, c, smallest):
    n = smallest * np.array([1, 2, 4, 8])
    law = Law(a, a * b, a * c)
    found = fit_law(n, [law.rate(one) for one in n])
    assert [found.rate(one) for one in (*n, 4 * n[-1])] == pytest.approx(
        [law.rate(one) for one in (*n, 4 * n[-1])], rel=1e-5
    )
    assert min(found) >= 0


@pytest.mark.parametrize("part", LAWS)
def test_the_interval_of_the_law_holds_the_truth_about_95_times_in_100(part):
    law, n_sets = LAWS[part], 100
    held = np.zeros(2)
    for seed in range(n_sets):
        rows = of(points_of(made_documents(noise=0.02, seed=seed)), part=part, kind="strong")
        _, drawn, reason = sample_laws(rows, seed=seed, n_samples=200)
        assert not reason
        for place, n in enumerate((8, 32)):
            low, high = np.quantile([one.rate(n) for one in drawn], (0.025, 0.975))
            held[place] += low <= law.rate(n) <= high
    assert (held / n_sets >= 0.9).all()


def test_a_law_that_does_not_fit_widens_the_interval():
    rows = of(points_of(made_documents(noise=0.001)), part="finetune", kind="strong")
    narrow = np.std([one.rate(8) for one in sample_laws(rows)[1]])
    rows[1]["windows_per_s"] *= 1.3
    assert np.std([one.rate(8) for one in sample_laws(rows)[1]]) > 10 * narrow


def test_two_points_give_a_forecast_by_amdahl_without_an_interval_and_say_why():
    found = forecast(made_documents((1, 2)), COUNTS)
    assert {row["c"] for row in found["laws"]} == {0.0}
    assert {row["reason"] for row in found["laws"]} == {"2 points; an interval wants 3 or more"}
    assert all(math.isnan(row["hours_low"]) and row["hours"] > 0 for row in found["rows"])


def test_the_forecast_is_the_work_over_the_rate_of_the_law():
    found = forecast(made_documents(noise=0.0), COUNTS)
    full = Full()
    hours = {row["n"]: row["hours"] for row in of(found["rows"], part="finetune", kind="strong")}
    assert hours == pytest.approx(
        {n: full.epochs * full.train_pairs / LAWS["finetune"].rate(n) / 3600 for n in (1, 2, 4, 8, 16, 32)}
    )
    for case, pairs in stored_pairs().items():
        row = of(found["storage"], case=case)[0]
        assert row["windows"] == pytest.approx(pairs / row["pairs_a_window"])
        assert row["gb"] == pytest.approx(row["windows"] * 1e4 / 1e9)
        assert row["gb_low"] < row["gb"] < row["gb_high"]


def test_the_whole_is_the_sum_of_its_parts_without_the_data_path_alone():
    rows = forecast(made_documents(), COUNTS)["rows"]
    for row in of(rows, part="all"):
        parts = [
            one
            for one in of(rows, kind=row["kind"], n=row["n"])
            if one["part"] in ("shard", "finetune", "evaluate") and one["case"] in ("", row["case"])
        ]
        assert len(parts) == 3
        for key in ("hours", "core_hours", "gpu_hours"):
            assert row[key] == pytest.approx(sum(one[key] for one in parts))
        assert row["hours_low"] < row["hours"] < row["hours_high"]
        assert row["core_hours"] == pytest.approx(row["hours"] * row["n"] * 64)


def test_sizes_that_were_not_measured_are_marked_and_those_far_off_warned_of():
    rows = of(forecast(made_documents(), COUNTS)["rows"], part="evaluate", kind="strong")
    assert [row["n"] for row in rows] == [1, 2, 4, 8, 16, 32]
    assert [row["measured"] for row in rows] == [True] * 4 + [False] * 2
    assert [bool(row["warning"]) for row in rows] == [False] * 5 + [True]


def test_more_ranks_than_shards_make_sharding_no_faster():
    rows = of(forecast(made_documents(ranks=128), COUNTS)["rows"], part="shard", kind="strong", case="cap binds")
    fast = [row for row in rows if "no more ranks than that are busy" in row["warning"]]
    assert [row["n"] for row in fast] == [2, 4, 8, 16, 32]
    assert len({round(row["hours"], 9) for row in fast}) == 1


def test_draws_apart_share_no_window_and_draws_at_one_time_share_all():
    hour = 3_600_000_000
    visit = np.array([0, 0, 1, 1])
    assert overlap_of_draws(visit, np.array([0, 5 * hour, 0, 9 * hour]), half_min=60)[0] == pytest.approx(1.0)
    assert overlap_of_draws(visit, np.array([0, 0, 7, 7]), half_min=60)[0] == pytest.approx(2.0)
    assert overlap_of_draws(visit, np.array([0, hour, 0, hour]), half_min=60)[0] == pytest.approx(4 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_overlap_agrees_with_counting_minutes(seed):
    rng = np.random.default_rng(seed)
    visit, minute = rng.integers(0, 6, 40), rng.integers(0, 400, 40)
    reached = np.zeros((6, 520), int)
    for one, start in zip(visit, minute, strict=True):
        reached[one, start : start + 120] += 1
    found, _ = overlap_of_draws(visit, minute * 60_000_000, half_min=60)
    assert found == pytest.approx(reached.sum() / (reached > 0).sum())


def test_samples_of_shorter_horizons_hold_new_windows_where_the_cap_binds():
    rng = np.random.default_rng(0)
    order = rng.random((200, 720)).argsort(axis=1)
    stored = 0
    for u in order:
        # Windows by their random number, which is the same at every horizon.
        of_horizon = [u[np.abs(u - 359.5) < n / 2][:200] for n in (720, 360, 180)]
        stored += len(set(np.concatenate(of_horizon).tolist()))
    full = Full(train_pairs=0, test_pairs=(200, 200, 180))
    assert stored_pairs(full)["cap binds"] == pytest.approx(stored / 200, rel=0.02)
    assert stored_pairs(full)["cap does not bind"] == 200


def test_the_steps_of_the_full_evaluation_grow_with_its_replicates():
    assert evaluation_steps(COUNTS) > 1e11
    once = evaluation_steps(COUNTS, Full(replicates=2))
    assert once < evaluation_steps(COUNTS) < 1000 * once
