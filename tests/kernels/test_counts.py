import numpy as np
import pytest

from anyecg.kernels.counts import counts_to_mv


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("invalid", [None, -2048])
def test_counts_become_mv_as_in_numpy(dtype, stride, invalid):
    counts = np.random.default_rng(0).integers(-2048, 2048, 3000).astype(dtype)
    counts[7 * stride] = -2048
    counts = counts[::stride]
    mv = np.empty(len(counts), np.float32)
    total = counts_to_mv(counts, baseline=1024, factor=1 / 217.3, invalid=invalid, out_T=mv)
    wanted = ((counts.astype(np.float64) - 1024) * (1 / 217.3)).astype(np.float32)
    wanted[counts == invalid] = np.nan
    np.testing.assert_array_equal(mv, wanted)
    assert total == counts.sum(dtype=np.int64)
    assert np.isnan(mv).sum() == (0 if invalid is None else np.sum(counts == invalid))


def test_the_sum_does_not_wrap():
    counts = np.full(100_000, np.iinfo(np.int32).min, np.int32)
    mv = np.empty(len(counts), np.float32)
    assert counts_to_mv(counts, baseline=0, factor=1.0, invalid=None, out_T=mv) == -(2**31) * 100_000


def test_a_wrong_output_is_refused():
    with pytest.raises(ValueError, match="wanted int16 or int32"):
        counts_to_mv(np.zeros(3, np.int16), baseline=0, factor=1.0, invalid=None, out_T=np.empty(2, np.float32))
