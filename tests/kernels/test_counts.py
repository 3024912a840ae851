import numpy as np
import pytest

from anyecg.kernels.counts import counts_to_mv


def slow_twin(counts, baseline, factor, invalid):
    mv = ((counts.astype(np.float64) - baseline) * factor).astype(np.float32)
    mv[counts == invalid] = np.nan
    return mv


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("invalid", [None, -2048])
def test_counts_become_mv_as_in_numpy(dtype, stride, invalid):
    counts = np.random.default_rng(0).integers(-2048, 2048, 3000).astype(dtype)
    counts[7 * stride] = -2048
    counts = counts[::stride]
    mv = np.empty(len(counts), np.float32)
    total = counts_to_mv(counts, baseline=1024, factor=1 / 217.3, invalid=invalid, out_T=mv)
    np.testing.assert_array_equal(mv, slow_twin(counts, 1024, 1 / 217.3, invalid))
    assert total == counts.sum(dtype=np.int64) % 65536


@pytest.mark.parametrize("factor", [1 / 200, 1 / 217.3, 1e-3 / 44.9629231183, -1 / 2963.77, 1e3, 1e-25, 1e25])
@pytest.mark.parametrize("baseline", [0, 1024, -32768, 10**9])
def test_every_16_bit_count_is_rounded_as_from_float64(factor, baseline):
    counts = np.arange(-32768, 32768).astype(np.int16)
    mv = np.empty(len(counts), np.float32)
    counts_to_mv(counts, baseline=baseline, factor=factor, invalid=None, out_T=mv)
    np.testing.assert_array_equal(mv, slow_twin(counts, baseline, factor, None))


def test_the_checksum_is_the_sum_of_more_counts_than_32_bits_hold():
    counts = np.full(100_001, -32767, np.int16)
    mv = np.empty(len(counts), np.float32)
    assert counts_to_mv(counts, baseline=0, factor=1.0, invalid=None, out_T=mv) == -32767 * 100_001 % 65536


def test_a_wrong_output_is_refused():
    with pytest.raises(ValueError, match="wanted int16 or int32"):
        counts_to_mv(np.zeros(3, np.int16), baseline=0, factor=1.0, invalid=None, out_T=np.empty(2, np.float32))
