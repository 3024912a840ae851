import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import medfilt

from anyecg.kernels.median import running_median

LARGEST = 32767


def scipy_median(x_T, width):
    """The reference, which warns where the window is shorter than the width."""
    return medfilt(np.pad(x_T, width // 2), width)[width // 2 :][: len(x_T)]


def awkward(kind, n):
    """Windows of whole numbers up to 32767, for which a step is 1 and the median is exact."""
    random = np.random.default_rng(7)
    time = np.arange(n)
    x_T = {
        "noise": random.integers(-LARGEST, LARGEST + 1, n),
        "walk": random.integers(-30, 31, n).cumsum(),
        "ties": random.integers(-3, 4, n),
        "extremes": random.choice([-LARGEST, 0, LARGEST], n),
        "both zeros": np.where(time % 3 == 0, -0.0, 0.0),
        "square": np.where(time // 37 % 2 == 0, 5 + time, -5 - time),
        "falling": -time,
        "largest throughout": np.full(n, LARGEST),
    }[kind].astype(float)
    x_T[n // 2] = LARGEST
    return x_T


KINDS = ("noise", "walk", "ties", "extremes", "both zeros", "square", "falling", "largest throughout")


@pytest.mark.parametrize("width", [15, 31, 41, 63, 101, 127, 129, 201, 255, 257, 401])
def test_the_running_median_is_that_of_scipy(width):
    # Eight kinds and one more: all lanes, and a second group that is not full.
    window_WT = np.stack([awkward(kind, 1500) for kind in (*KINDS, "noise")])
    wanted_WT = np.stack([scipy_median(x_T, width) for x_T in window_WT])
    np.testing.assert_array_equal(running_median(window_WT, width), wanted_WT)


pieces = st.tuples(
    st.sampled_from(["constant", "spike", "ramp", "noise"]), st.integers(-LARGEST, LARGEST), st.integers(1, 900)
)


@given(st.lists(pieces, min_size=1, max_size=8), st.integers(20, 2000), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_it_agrees_for_any_window_and_width(pieces, half, seed):
    random = np.random.default_rng(seed)
    made = {
        "constant": lambda level, n: np.full(n, level),
        "spike": lambda level, n: np.where(np.arange(n) == n // 2, level, 0),
        "ramp": lambda level, n: np.linspace(0, level, n).round(),
        "noise": lambda level, n: random.integers(-abs(level), abs(level) + 1, n),
    }
    x_T = np.concatenate([[LARGEST], *(made[kind](level, n) for kind, level, n in pieces)]).astype(float)
    np.testing.assert_array_equal(running_median(x_T[None], 2 * half + 1)[0], scipy_median(x_T, 2 * half + 1))


@given(st.lists(st.integers(-4, 4), max_size=60), st.integers(7, 40))
@settings(max_examples=100, deadline=None)
def test_short_windows_agree_too(values, half):
    # Beyond the edges lie zeros, also where the window is shorter than the width.
    x_T = np.array([LARGEST, *values], float)
    padded = np.pad(x_T, half)
    wanted = [np.median(padded[t : t + 2 * half + 1]) for t in range(len(x_T))]
    np.testing.assert_array_equal(running_median(x_T[None], 2 * half + 1)[0], wanted)


@pytest.mark.parametrize("size", [1e-280, 1e-3, 1.0, 1e280])
@pytest.mark.parametrize("width", [41, 201, 4001])
def test_other_numbers_are_off_by_at_most_half_a_step(size, width):
    window_WT = size * np.random.default_rng(8).standard_normal((3, 5000)).cumsum(1)
    wanted_WT = np.stack([scipy_median(x_T, width) for x_T in window_WT])
    half_step_W = abs(window_WT).max(1, keepdims=True) / LARGEST / 2
    assert (abs(running_median(window_WT, width) - wanted_WT) <= half_step_W * (1 + 1e-9)).all()


@pytest.mark.parametrize("value", [0.0, 1e-310])
def test_nothing_but_zeros_has_the_median_zero(value):
    np.testing.assert_allclose(running_median(np.full((2, 300), value), 201), 0, atol=1e-300)


@pytest.mark.parametrize(
    ("window_WT", "width"),
    [(np.zeros(50), 15), (np.zeros((1, 50)), 16), (np.zeros((1, 50)), 13), (np.full((1, 50), np.inf), 15)],
)
def test_unusable_input_is_refused(window_WT, width):
    with pytest.raises(ValueError, match=r"."):
        running_median(window_WT, width)
