import numpy as np
from scipy.stats import poisson

from anyecg.kernels.weights import LANES, Resampling, n_blocks, poisson_weights

KEYS = np.random.default_rng(1).integers(0, 2**63, 400).astype(np.uint64)


def test_weights_are_poisson_and_functions_of_seed_number_and_cluster_alone():
    drawn = poisson_weights(KEYS, 0, 200, seed=6)
    share = np.bincount(drawn.ravel(), minlength=5)[:5] / drawn.size
    np.testing.assert_allclose(share, poisson(1).pmf(range(5)), atol=0.01)
    np.testing.assert_array_equal(poisson_weights(KEYS[7:20], 7, 9, seed=6), drawn[7:9, 7:20])
    assert (poisson_weights(KEYS, 0, 200, seed=7) != drawn).mean() > 0.5
    assert abs(np.corrcoef(drawn[:2])[0, 1]) < 0.2


def test_blocks_hold_the_same_weights_whether_kept_or_not():
    drawn = poisson_weights(KEYS, 0, 3 * LANES, seed=-6)
    for n_bytes in (0, 400 * LANES, 64 << 20):
        resampling = Resampling(KEYS, seed=-6, n_bytes=n_bytes)
        for number in (2, 0, 1, 2):
            np.testing.assert_array_equal(resampling.block(number).T, drawn[number * LANES : (number + 1) * LANES])


def test_blocks_cover_all_replicates():
    assert [n_blocks(n) for n in (1, LANES, LANES + 1)] == [1, 1, 2]
