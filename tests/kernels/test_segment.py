import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyecg.kernels.segment import (
    CLIPPED,
    FLAT,
    HUGE,
    NO_BEAT,
    NONFINITE,
    OVER_4MV,
    fill_gaps,
    grid,
    quality,
    quality_at,
    quantise,
)
from anyecg.loaders.records import open_record

from ..conftest import DEMO, SHARED


def beats(fs=500, seconds=10, amplitude=1.0):
    """A window with a spike of 40 ms each 0.8 s on a little noise."""
    time = np.arange(int(fs * seconds)) / fs
    noise = 0.01 * np.random.default_rng(4).standard_normal(len(time))
    return (noise + amplitude * np.exp(-(((time % 0.8) - 0.4) ** 2) / (2 * 0.01**2))).astype(np.float32)


@pytest.mark.parametrize("fs", [250, 300, 500])
def test_a_clean_window_has_no_flag(fs):
    assert quality(beats(fs)[None], fs=fs)[0] == 0


def _with(change):
    window = beats()
    change(window)
    return window


@pytest.mark.parametrize(
    ("window", "flag"),
    [
        (np.full(5000, 0.3, np.float32), FLAT),
        (beats(amplitude=25), HUGE),
        (beats(amplitude=5), OVER_4MV),
        (_with(lambda w: np.put(w, 7, np.nan)), NONFINITE),
        (_with(lambda w: np.put(w, 7, np.inf)), NONFINITE),
        (np.minimum(beats(), 0.06), CLIPPED),
        (0.01 * np.random.default_rng(5).standard_normal(5000).astype(np.float32), NO_BEAT),
        (np.sin(np.arange(5000) / 800).astype(np.float32), NO_BEAT),
    ],
)
def test_each_fault_is_flagged(window, flag):
    assert quality(window[None], fs=500)[0] & flag


def slow_quality(raw_T, fs):
    """The obvious twin: one rule a line, floats compared as floats."""
    if not np.isfinite(raw_T).all():
        return NONFINITE
    low, high = raw_T.min(), raw_T.max()
    if float(high - low) < 0.01:
        return FLAT
    largest = float(max(abs(low), abs(high)))
    flags = HUGE if largest > 20 else OVER_4MV if largest > 4 else 0
    stays = (raw_T[1:] == raw_T[:-1]) & ((raw_T[1:] == low) | (raw_T[1:] == high))
    run = np.diff(np.flatnonzero(~np.pad(stays, 1))).max()
    flags |= CLIPPED if run >= max(3, int(0.04 * fs)) else 0
    step = max(1, int(0.02 * fs))
    block = np.arange(len(raw_T) // step)
    ends = np.stack([np.maximum(0, block - 1) * step, np.minimum(len(raw_T), (block + 3) * step)], 1).ravel()
    closed_T = np.append(raw_T, raw_T[-1])
    spread = (np.maximum.reduceat(closed_T, ends) - np.minimum.reduceat(closed_T, ends))[::2].astype(float)
    return flags | (0 if (spread > max(0.15, 2.5 * np.median(spread))).any() else NO_BEAT)


def assert_same_flags(raw_WT, fs):
    np.testing.assert_array_equal(quality(raw_WT, fs=fs), [slow_quality(raw_T, fs) for raw_T in raw_WT])


def all_windows(folder, n):
    for header in sorted(folder.glob("*.hea")):
        signal = open_record(header.with_suffix("")).read()
        yield from signal[: len(signal) // n * n].reshape(-1, n)


def test_flags_are_those_of_the_slow_twin_on_every_demo_recording():
    raw_WT = np.array(list(all_windows(DEMO / "records", 2990)))
    for fs in (37, 250, 300):
        assert_same_flags(raw_WT, fs)


@pytest.mark.skipif(not (SHARED / "cinc2017").exists(), reason="the whole of CinC 2017 is not here")
def test_flags_are_those_of_the_slow_twin_on_every_cinc2017_recording():
    assert_same_flags(np.array(list(all_windows(SHARED / "cinc2017", 3000))), 300)


@given(
    st.lists(
        st.sampled_from([0.0, -0.0, 0.005, -0.005, 0.2, -0.2, 0.5, 4.5, -25.0, np.nan, np.inf, -np.inf]),
        min_size=1,
        max_size=60,
    ),
    st.sampled_from([20, 100, 150]),
)
@settings(max_examples=400, deadline=None)
def test_flags_are_those_of_the_slow_twin_on_few_values(values, fs):
    # Windows shorter than a block have no range at all, whose median NumPy refuses.
    if len(values) >= int(0.02 * fs):
        assert_same_flags(np.repeat(np.array([values], np.float32), 4, axis=1), fs)


def slow_gaps(valid, max_gap):
    """The obvious twin: mark each invalid sample whose whole run is short and lies between valid ones."""
    marked = []
    for i in range(len(valid)):
        before = [j for j in range(i) if valid[j]]
        after = [j for j in range(i, len(valid)) if valid[j]]
        marked.append(bool(not valid[i] and before and after and after[0] - before[-1] - 1 <= max_gap))
    return marked


def test_windows_judged_in_place_have_the_flags_of_windows_cut_out():
    signal = np.concatenate([beats(), np.zeros(700, np.float32), beats(amplitude=30), np.full(9, np.nan, np.float32)])
    start_W = np.array([0, 3, 4999, 5200, 5700, 5709])
    wanted = quality(np.stack([signal[s : s + 5000] for s in start_W]), fs=500)
    np.testing.assert_array_equal(quality_at(signal, start_W, 5000, fs=500), wanted)
    assert len(set(wanted)) > 2
    with pytest.raises(ValueError, match="the signal has"):
        quality_at(signal, [5710], 5000, fs=500)


def test_a_signal_without_gaps_is_not_copied():
    signal = beats()
    filled, positions = fill_gaps(signal, fs=500)
    assert np.shares_memory(filled, signal)
    assert len(positions) == 0


@given(st.lists(st.booleans(), max_size=80))
@settings(max_examples=300, deadline=None)
def test_short_gaps_are_filled_and_long_ones_stay(valid):
    line = (np.arange(len(valid)) * 0.5).astype(np.float32)
    filled, positions = fill_gaps(np.where(valid, line, np.nan), fs=100)
    was_filled = np.isin(np.arange(len(valid)), positions)
    assert was_filled.tolist() == slow_gaps(valid, 4)
    present = was_filled | np.array(valid, bool)
    np.testing.assert_array_equal(np.isfinite(filled), present)
    # A straight line through its gaps is the same straight line.
    np.testing.assert_allclose(filled[present], line[present], rtol=1e-6)


@pytest.mark.parametrize(("n_samples", "fs", "wanted"), [(4999, 500, []), (5000, 500, [0]), (3120, 128, [0, 1280])])
def test_the_grid_holds_whole_windows_only(n_samples, fs, wanted):
    assert grid(n_samples, fs=fs).tolist() == wanted


def test_quantised_windows_are_off_by_at_most_half_a_scale():
    window_WT = np.random.default_rng(6).standard_normal((5, 300)).astype(np.float32) * [[1e-6], [1], [3], [19], [0]]
    signal_WT, scale_W = quantise(window_WT)
    assert signal_WT.dtype == np.int16
    error = np.abs(signal_WT * scale_W[:, None].astype(float) - window_WT.astype(np.float32))
    assert (error <= 0.5001 * scale_W[:, None]).all()
    assert np.abs(signal_WT[:4]).max(1).tolist() == [32767] * 4
