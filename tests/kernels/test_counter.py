import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from anyecg.kernels.counter import permute, uniform

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def slow_mix(value):
    """SplitMix64's finaliser on Python's integers."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def slow_mix_pair(seed, value):
    return slow_mix(slow_mix(seed + GOLDEN & MASK) ^ (value + GOLDEN & MASK))


def slow_permute(position, n, key):
    half = max(1, -(-(n - 1).bit_length() // 2))
    mask = 2**half - 1
    while True:
        left, right = position >> half, position & mask
        for number in range(6):
            left, right = right, left ^ slow_mix_pair(key + number & MASK, right) & mask
        position = left << half | right
        if position < n:
            return position


@pytest.mark.parametrize("key", [0, 7, 2**63, MASK, 2**70 + 3, -1])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 257, 5000])
def test_permute_agrees_with_a_slow_twin(n, key):
    positions = np.random.default_rng(n).integers(0, n, 40)
    found = permute(positions, n, key)
    assert found.tolist() == [slow_permute(int(position), n, key & MASK) for position in positions]
    assert found.dtype == np.int64


@pytest.mark.parametrize("key", [0, 7, 2**63, MASK, 2**70 + 3, -1])
def test_uniform_agrees_with_a_slow_twin(key):
    values = [0, 1, 2**63, MASK, 12345]
    found = uniform(key, np.array(values, np.uint64))
    assert found.tolist() == [(slow_mix_pair(key & MASK, value) >> 11) / 2**53 for value in values]
    assert uniform(key, [0, 1]).tolist() == found[:2].tolist()


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=200, deadline=None)
def test_permute_sends_every_position_to_another(n, key):
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


def test_a_position_does_not_depend_on_those_asked_with_it():
    whole = permute(np.arange(5000), 5000, 7)
    np.testing.assert_array_equal(permute(np.array([17, 4999, 3]), 5000, 7), whole[[17, 4999, 3]])
    assert permute(np.empty(0, np.int64), 5000, 7).tolist() == []
    assert permute(np.arange(5000)[::7], 5000, 7).tolist() == whole[::7].tolist()
    assert permute([17, 4999, 3], 5000, 7).tolist() == whole[[17, 4999, 3]].tolist()


def test_the_permutation_mixes():
    n = 100_000
    found = permute(np.arange(n), n, 11)
    assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < 0.02
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert (permute(np.arange(n), n, 12) != found).mean() > 0.99


@pytest.mark.parametrize("position", [10, 11, -1])
def test_positions_outside_are_refused(position):
    with pytest.raises(ValueError, match=r"0\.\.9"):
        permute(np.array([position, 3]), 10, 0)


def test_uniform_is_uniform_and_keyed():
    values = uniform(3, np.arange(20_000, dtype=np.uint64))
    assert kstest(values, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(values, uniform(4, np.arange(20_000, dtype=np.uint64)))[0, 1]) < 0.03
