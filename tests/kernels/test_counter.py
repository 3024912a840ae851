import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from anyecg.kernels.counter import permute, uniform


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=200, deadline=None)
def test_permute_sends_every_position_to_another(n, key):
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


def test_a_position_does_not_depend_on_those_asked_with_it():
    whole = permute(np.arange(5000), 5000, 7)
    np.testing.assert_array_equal(permute(np.array([17, 4999, 3]), 5000, 7), whole[[17, 4999, 3]])


def test_the_permutation_mixes():
    n = 100_000
    found = permute(np.arange(n), n, 11)
    assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < 0.02
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert (permute(np.arange(n), n, 12) != found).mean() > 0.99


def test_positions_outside_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.9"):
        permute(np.array([10]), 10, 0)


def test_uniform_is_uniform_and_keyed():
    values = uniform(3, np.arange(20_000, dtype=np.uint64))
    assert kstest(values, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(values, uniform(4, np.arange(20_000, dtype=np.uint64)))[0, 1]) < 0.03
