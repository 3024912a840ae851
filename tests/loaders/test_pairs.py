import numpy as np
import pytest

from anyecg.kernels.counter import uniform
from anyecg.loaders.files import digest
from anyecg.loaders.pairs import WINDOW_US, pair_windows

MINUTE = 60_000_000


def windows(minutes=180):
    return np.arange(0, minutes * MINUTE, WINDOW_US, dtype=np.int64)


@pytest.mark.parametrize("before_only", [False, True])
def test_pairs_lie_wholly_in_their_horizons_and_none_is_missing_below_the_cap(before_only):
    start, time = windows(), np.array([20 * MINUTE + 3, 90 * MINUTE, 500 * MINUTE])
    window, draw, bits = pair_windows(start, time, 7, seed=1, cap=10_000, before_only=before_only)
    found = set(zip(window.tolist(), draw.tolist(), bits.tolist(), strict=True))
    wanted = set()
    for w, s in enumerate(start.tolist()):
        for d, t in enumerate(time.tolist()):
            inside = [
                t - h * MINUTE <= s and s + WINDOW_US <= (t if before_only else t + h * MINUTE) for h in (60, 30, 15)
            ]
            if any(inside):
                wanted.add((w, d, sum(bit for bit, yes in zip((1, 2, 4), inside, strict=True) if yes)))
    assert found == wanted
    assert 2 not in draw


def test_each_horizon_takes_at_most_the_cap_and_exactly_it_where_there_is_enough():
    _, draw, bits = pair_windows(windows(), np.array([90 * MINUTE, 5 * MINUTE]), 7, seed=1)
    for number, n_wanted in ((0, (200, 200, 180)), (1, (200, 200, 120))):
        assert tuple(int(((bits[draw == number] & bit) > 0).sum()) for bit in (1, 2, 4)) == n_wanted


def test_the_sample_depends_on_seed_visit_draw_and_window_alone():
    start, time = windows(), np.array([60 * MINUTE, 90 * MINUTE])
    window, draw, bits = pair_windows(start, time, 7, seed=1)
    some = np.sort(np.random.default_rng(1).choice(len(start), 900, replace=False))
    alone = pair_windows(start, time[1:], 7, seed=1)
    np.testing.assert_array_equal(alone[0], window[draw == 1])
    np.testing.assert_array_equal(alone[2], bits[draw == 1])
    kept = set(pair_windows(start[some], time[1:], 7, seed=1, horizons=(60,))[0].tolist())
    before = {w for w in window[(draw == 1) & ((bits & 1) > 0)] if w in set(some.tolist())}
    assert {int(some[w]) for w in kept} >= {int(w) for w in before}
    for other in ({"seed": 2}, {"seed": 1}):
        key = 7 if other["seed"] == 2 else 8
        assert not np.array_equal(pair_windows(start, time, key, **other)[0], window)


def test_the_sample_spreads_evenly_over_the_horizon():
    start = windows()
    window, _, bits = pair_windows(start, np.array([90 * MINUTE]), 11, seed=5)
    minutes = start[window[(bits & 1) > 0]] / MINUTE
    assert abs(minutes.mean() - 90) < 7
    assert np.histogram(minutes, 4, (30, 150))[0].min() > 30


def test_lists_will_do_and_the_sample_is_the_smallest_of_the_hash():
    start, time = windows(30), 15 * MINUTE
    u = uniform(int(digest([1, 7, time]), 16), start.view(np.uint64))
    window, _, bits = pair_windows(start.tolist(), [time], 7, seed=1, cap=5, horizons=(15,))
    assert window.tolist() == sorted(np.argsort(u)[:5].tolist())
    assert set(bits.tolist()) == {4}
