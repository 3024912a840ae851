import numpy as np
import pytest
import wfdb
from scipy.signal import butter, filtfilt, iirnotch, medfilt, resample_poly

from anyecg.kernels.prepare import prepare, preset_hash

from ..conftest import DEMO


def scipy_chain(window_WT, fs, preset):
    """The slow twin: the foundation model's preparation as published, in SciPy."""
    x_WT = np.asarray(window_WT, float)
    if preset == "ecgfounder":
        for b, a in (iirnotch(50, 30, fs), butter(4, [0.67, 40], "bandpass", fs=fs)):
            x_WT = filtfilt(b, a, x_WT)
        x_WT = x_WT - np.stack([medfilt(x_T, 2 * int(0.2 * fs) + 1) for x_T in x_WT])
    elif preset == "ecgfounder-paper":
        for b, a in (butter(2, 0.5, "highpass", fs=fs), butter(2, 50, "lowpass", fs=fs)):
            x_WT = filtfilt(b, a, x_WT)
    return (x_WT - x_WT.mean(1, keepdims=True)) / (x_WT.std(1, keepdims=True) + 1e-8)


@pytest.mark.parametrize("preset", ["ecgfounder", "ecgfounder-paper", "none"])
def test_prepare_agrees_with_scipy_on_every_demo_recording(preset):
    for header in sorted((DEMO / "records").glob("*.hea"))[::10]:
        signal = resample_poly(wfdb.rdrecord(str(header.with_suffix(""))).p_signal[:, 0], 5, 3)
        window_WT = signal[: len(signal) // 5000 * 5000].reshape(-1, 5000).astype(np.float32)
        found = prepare(window_WT, preset=preset)
        np.testing.assert_allclose(found, scipy_chain(window_WT, 500, preset), atol=1e-3)


@pytest.mark.parametrize("fs", [101, 128, 250, 257, 360, 500, 1000, 2000])
@pytest.mark.parametrize("seconds", [1, 3.21, 10])
def test_prepare_agrees_with_scipy_at_other_rates_and_lengths(fs, seconds):
    # Nine windows: one group of eight, and one lane of the next.
    window_WT = np.random.default_rng(2).standard_normal((9, int(seconds * fs))).cumsum(1)
    np.testing.assert_allclose(prepare(window_WT, fs=fs), scipy_chain(window_WT, fs, "ecgfounder"), atol=1e-3)


@pytest.mark.parametrize("height", [0.1, 10.0, 1e4])
def test_artefacts_do_not_coarsen_the_median(height):
    # Its keys are whole steps of the window's largest sample, so a lone spike or step is the worst there can be.
    window_WT = 0.01 * np.random.default_rng(4).standard_normal((3, 5000))
    window_WT[0, 2500] += height
    window_WT[1, 2500:2510] += height
    window_WT[2, 2500:] += height
    np.testing.assert_allclose(prepare(window_WT), scipy_chain(window_WT, 500, "ecgfounder"), atol=1e-3)


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.float32, np.float64])
def test_any_numbers_will_do(dtype):
    window_WT = (1000 * np.random.default_rng(5).standard_normal((2, 1500))).round()
    np.testing.assert_array_equal(prepare(window_WT.astype(dtype)), prepare(window_WT))
    np.testing.assert_array_equal(prepare(np.asfortranarray(window_WT.astype(dtype))), prepare(window_WT))


def test_a_window_does_not_depend_on_its_neighbours():
    window_WT = np.random.default_rng(3).standard_normal((4, 5000)).astype(np.float32)
    np.testing.assert_array_equal(prepare(window_WT)[2], prepare(window_WT[2:3])[0])


def test_a_flat_window_stays_finite():
    np.testing.assert_array_equal(prepare(np.zeros((1, 5000), np.float32)), 0)


def test_presets_and_rates_have_hashes_of_their_own():
    hashes = {preset_hash(preset, fs) for preset in ("ecgfounder", "ecgfounder-paper", "none") for fs in (250, 500)}
    assert len(hashes) == 6


@pytest.mark.parametrize(
    ("window_WT", "options"),
    [
        (np.zeros(5000), {}),
        (np.zeros((1, 100)), {}),
        (np.full((1, 5000), np.nan), {}),
        (np.zeros((1, 5000)), {"preset": "ecg"}),
        (np.zeros((1, 5000)), {"fs": 100}),
    ],
)
def test_unusable_input_is_refused(window_WT, options):
    with pytest.raises(ValueError, match=r"."):
        prepare(window_WT, **options)
