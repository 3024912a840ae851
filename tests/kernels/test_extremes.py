"""Extremes of blocks, against an obvious slow twin."""

import numpy as np
import pytest

from anyecg.kernels.extremes import extremes, halved


def slow(signal_T, step):
    """Return the extremes of blocks, by NumPy's own functions that leave NaN out."""
    pairs = []
    for first in range(0, len(signal_T), step):
        block = signal_T[first : first + step]
        block = block[~np.isnan(block)]
        pairs.append((block.min(), block.max()) if len(block) else (np.nan, np.nan))
    return np.array(pairs, np.float32).reshape(-1, 2)


@pytest.mark.parametrize("n_samples", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("step", [1, 2, 3, 64])
def test_extremes_equal_the_slow_twin_with_gaps(n_samples, step):
    signal_T = np.random.default_rng(n_samples).standard_normal(n_samples).astype(np.float32)
    signal_T[100:300] = np.nan
    np.testing.assert_array_equal(extremes(signal_T, step), slow(signal_T, step))


@pytest.mark.parametrize("n_samples", [1, 64, 65, 1000, 4097])
def test_halving_gives_the_extremes_of_blocks_twice_as_long(n_samples):
    signal_T = np.random.default_rng(n_samples).standard_normal(n_samples).astype(np.float32)
    signal_T[100:300] = np.nan
    np.testing.assert_array_equal(halved(extremes(signal_T, 16)), extremes(signal_T, 32))


def test_no_spike_is_lost_at_any_step():
    signal_T = np.zeros(100_000, np.float32)
    signal_T[77_777] = 3.0
    found = extremes(signal_T, 64)
    while len(found) > 1:
        assert found.max() == 3.0
        found = halved(found)


def test_other_shapes_types_and_steps_are_refused():
    for wrong, step in ((np.zeros((2, 3), np.float32), 1), (np.zeros(3), 1), (np.zeros(3, np.float32), 0)):
        with pytest.raises(ValueError, match="wanted float32"):
            extremes(wrong, step)
