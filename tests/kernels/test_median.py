import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import medfilt

from anyecg.kernels.median import running_median


def awkward(kind, n):
    """Windows on which a sort by rounded keys, or a search for the next rank, could go wrong."""
    random = np.random.default_rng(7)
    time = np.arange(n)
    return {
        "noise": random.standard_normal(n),
        "walk": random.standard_normal(n).cumsum(),
        "ties": random.integers(-3, 4, n).astype(float),
        "equal in float32": 1.0 + 1e-12 * random.permutation(n),
        "beyond float32": 1e300 * random.standard_normal(n),
        "denormal": 1e-310 * random.standard_normal(n),
        "both zeros": np.where(time % 3 == 0, -0.0, 0.0),
        "square": np.where(time // 37 % 2 == 0, 5.0 + time, -5.0 - time),
        "falling": -time.astype(float),
    }[kind]


KINDS = (
    "noise", "walk", "ties", "equal in float32", "beyond float32", "denormal", "both zeros", "square", "falling"
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 3, 101, 201, 401])
def test_the_running_median_is_that_of_scipy(kind, width):
    x_T = awkward(kind, 1500)
    np.testing.assert_array_equal(running_median(x_T[None], width)[0], medfilt(x_T, width))


@given(st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=60), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_short_windows_agree_too(values, half):
    # Beyond the edges lie zeros, also where the window is shorter than the width.
    padded = np.pad(values, half)
    wanted = [np.median(padded[t : t + 2 * half + 1]) for t in range(len(values))]
    np.testing.assert_array_equal(running_median(np.array([values]), 2 * half + 1)[0], wanted)


@pytest.mark.parametrize(("shape", "width"), [((5,), 3), ((1, 5), 2), ((1, 5), 0)])
def test_unusable_input_is_refused(shape, width):
    with pytest.raises(ValueError, match=r"."):
        running_median(np.zeros(shape), width)
