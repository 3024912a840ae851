from fractions import Fraction

import numpy as np
import pytest
from scipy.signal import resample_poly
from scipy.signal.windows import kaiser

from anyecg.kernels.resample import resample, resample_into, resampled_length


@pytest.mark.parametrize("fs_in", [62.5, 128, 250, 257, 300, 360, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_resample_agrees_with_scipy(fs_in, dtype):
    signal = (1000 * np.random.default_rng(1).standard_normal(4001)).astype(dtype)
    ratio = Fraction(500) / Fraction(fs_in)
    wanted = resample_poly(signal.astype(float), ratio.numerator, ratio.denominator)
    found = resample(signal, fs_in=fs_in, fs_out=500)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("fs_in", [62.5, 128, 250, 257, 300, 333.3, 360, 1000])
def test_a_signal_of_many_blocks_agrees_with_scipy(fs_in):
    signal = np.random.default_rng(3).standard_normal(40_003).astype(np.float32)
    ratio = Fraction(500) / Fraction(repr(fs_in))
    wanted = resample_poly(signal.astype(float), ratio.numerator, ratio.denominator)
    found = resample(signal, fs_in=fs_in, fs_out=500)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("fs_in", [128, 250, 300, 1000])
@pytest.mark.parametrize("quality", ["scipy", "high"])
def test_integers_give_the_bytes_of_equal_floats(fs_in, quality):
    counts = np.random.default_rng(5).integers(-32768, 32768, 9001).astype(np.int16)
    found = resample(counts, fs_in=fs_in, fs_out=500, quality=quality)
    np.testing.assert_array_equal(found, resample(counts.astype(np.float32), fs_in=fs_in, fs_out=500, quality=quality))


@pytest.mark.parametrize("fs_in", [128, 250, 257, 333.3, 499.99, 500, 1000])
def test_a_part_has_the_bytes_of_the_whole(fs_in):
    signal = np.random.default_rng(7).standard_normal(20_001).astype(np.float32)
    n_values = resampled_length(len(signal), fs_in=fs_in, fs_out=500)
    whole = resample(signal, fs_in=fs_in, fs_out=500)
    assert len(whole) == n_values
    for start, stop in [(0, 1), (3, 1000), (5000, 10_000), (n_values - 7, n_values), (n_values, n_values)]:
        part = np.full(stop - start, np.nan, np.float32)
        resample_into(part, start, signal, fs_in=fs_in, fs_out=500)
        np.testing.assert_array_equal(part, whole[start:stop])
    with pytest.raises(ValueError, match="asked for"):
        resample_into(np.empty(2, np.float32), n_values - 1, signal, fs_in=fs_in, fs_out=500)


def test_rates_and_samples_may_be_numpy_numbers():
    signal = np.random.default_rng(2).standard_normal(300)
    found = resample(signal, fs_in=np.float64(300), fs_out=np.int64(500))
    np.testing.assert_array_equal(found, resample(signal.astype(np.float32), fs_in=300, fs_out=500))


@pytest.mark.parametrize("length", [1, 2, 17])
def test_a_signal_shorter_than_the_filter_is_resampled_too(length):
    signal = np.arange(1, length + 1, dtype=np.float32)
    np.testing.assert_allclose(resample(signal, fs_in=300, fs_out=500), resample_poly(signal, 5, 3), atol=1e-5 * length)


@pytest.mark.parametrize("fs_in", [250, 257, 300, 360, 1000])
@pytest.mark.parametrize("tone", [3.0, 40.0, 90.0])
def test_high_quality_keeps_spurious_tones_below_100_db(fs_in, tone):
    time = np.arange(40 * fs_in) / fs_in
    found = resample(np.sin(2 * np.pi * tone * time).astype(np.float32), fs_in=fs_in, fs_out=500, quality="high")
    middle = found[2500:-2500].astype(float)
    spectrum = np.abs(np.fft.rfft(middle * kaiser(len(middle), 20)))
    peak = int(spectrum.argmax())
    assert peak == pytest.approx(tone * len(middle) / 500, abs=1)
    level = spectrum[peak]
    spectrum[max(0, peak - 12) : peak + 13] = 0
    assert 20 * np.log10(spectrum.max() / level) < -100


@pytest.mark.parametrize("tone", [251.0, 262.0, 300.0, 410.0, 490.0])
def test_high_quality_leaves_nothing_of_tones_above_the_new_nyquist_frequency(tone):
    time = np.arange(40_000) / 1000
    found = resample(np.sin(2 * np.pi * tone * time).astype(np.float32), fs_in=1000, fs_out=500, quality="high")
    assert 20 * np.log10(np.abs(found[2500:-2500]).max()) < -100


@pytest.mark.parametrize(("fs_in", "tone"), [(250, 105.0), (300, 126.0), (1000, 210.0)])
def test_high_quality_passes_084_of_the_lower_nyquist_band(fs_in, tone):
    time, wanted_time = np.arange(40 * fs_in) / fs_in, np.arange(40 * 500) / 500
    found = resample(np.sin(2 * np.pi * tone * time).astype(np.float32), fs_in=fs_in, fs_out=500, quality="high")
    np.testing.assert_allclose(found[2500:-2500], np.sin(2 * np.pi * tone * wanted_time)[2500:-2500], atol=1e-4)


@pytest.mark.parametrize(
    ("signal", "rates", "quality"),
    [
        (np.array([0, np.nan], np.float32), (300, 500), "scipy"),
        (np.zeros((2, 2), np.float32), (300, 500), "scipy"),
        (np.zeros(4, np.float32), (0, 500), "scipy"),
        (np.zeros(4, np.float32), (300.00001, 500), "scipy"),
        (np.zeros(4, np.float32), (300, 500), "best"),
    ],
)
def test_unusable_input_is_refused(signal, rates, quality):
    with pytest.raises(ValueError, match=r"."):
        resample(signal, fs_in=rates[0], fs_out=rates[1], quality=quality)
