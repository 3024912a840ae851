from fractions import Fraction

import numpy as np
import pytest
from scipy.signal import resample_poly
from scipy.signal.windows import kaiser

from anyecg.kernels.resample import resample


@pytest.mark.parametrize("fs_in", [62.5, 128, 250, 257, 300, 360, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_resample_agrees_with_scipy(fs_in, dtype):
    signal = (1000 * np.random.default_rng(1).standard_normal(4001)).astype(dtype)
    ratio = Fraction(500) / Fraction(fs_in)
    wanted = resample_poly(signal.astype(float), ratio.numerator, ratio.denominator)
    found = resample(signal, fs_in=fs_in, fs_out=500)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_rates_and_samples_may_be_numpy_numbers():
    signal = np.random.default_rng(2).standard_normal(300)
    found = resample(signal, fs_in=np.float64(300), fs_out=np.int64(500))
    np.testing.assert_array_equal(found, resample(signal.astype(np.float32), fs_in=300, fs_out=500))


@pytest.mark.parametrize("length", [1, 2, 17])
def test_a_signal_shorter_than_the_filter_is_resampled_too(length):
    signal = np.arange(1, length + 1, dtype=np.float32)
    np.testing.assert_allclose(resample(signal, fs_in=300, fs_out=500), resample_poly(signal, 5, 3), atol=1e-5 * length)


@pytest.mark.parametrize("fs_in", [250, 300, 360])
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
