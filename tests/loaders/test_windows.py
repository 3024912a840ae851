import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyecg.kernels.prepare import prepare
from anyecg.kernels.resample import resample
from anyecg.kernels.segment import DROPPED, FLAG_NAMES, FLAT, GAP_FILLED, NONFINITE, fill_gaps, grid, quality, quantise
from anyecg.loaders.windows import drop_reasons, find_windows, store_windows

from .test_shards import memory_record


def faulty_record(fs, n_windows):
    """Noise with gaps of 1 to 60 ms, a long gap and a flat stretch."""
    rng = np.random.default_rng(11)
    mv = rng.standard_normal(int(n_windows * 10 * fs) + 77).astype(np.float32)
    for _ in range(n_windows // 3):
        start = rng.integers(len(mv))
        mv[start : start + rng.integers(1, int(0.06 * fs))] = np.nan
    mv[int(15 * fs) : int(16 * fs)] = np.nan
    mv[int(40 * fs) : int(50 * fs)] = 0.1
    return memory_record(mv, fs)


def slow_windows(record, fs):
    """The obvious twin: flags and stored windows of the whole record at once."""
    signal, positions = fill_gaps(record.read(), fs=record.fs)
    cuts = [slice(start, start + int(10 * record.fs)) for start in grid(len(signal), fs=record.fs)]
    flags_W = quality(np.stack([signal[cut] for cut in cuts]), fs=record.fs)
    flags_W[[np.isin(np.arange(len(signal))[cut], positions).any() for cut in cuts]] |= GAP_FILLED
    rate_T = resample(np.nan_to_num(signal, nan=0.0), fs_in=record.fs, fs_out=fs)
    window_WT = rate_T[: len(cuts) * 10 * fs].reshape(-1, 10 * fs).copy()
    empty_W = (flags_W & (FLAT | NONFINITE)) > 0
    window_WT[~empty_W] = prepare(window_WT[~empty_W], fs=fs, zscore=False)
    window_WT[empty_W] = 0
    return flags_W, *quantise(window_WT)


@pytest.mark.parametrize("fs", [250, 257, 333.3, 500])
def test_windows_are_those_of_the_whole_record_whichever_are_chosen(fs):
    record = faulty_record(fs, 150)
    wanted_flags_W, wanted_WT, wanted_scale_W = slow_windows(record, 500)
    found = find_windows(record, pad_short=False)
    np.testing.assert_array_equal(found.flags_W, wanted_flags_W)
    assert {name for flag, name in FLAG_NAMES.items() if (found.flags_W & flag).any()} >= {
        "flat",
        "not finite",
        "gap up to 40 ms filled",
    }
    some_W = np.random.default_rng(12).random(150) < 0.6
    for chosen_W in (np.ones(150, bool), some_W, np.arange(150) == 149, np.zeros(150, bool)):
        signal_WT, scale_W = store_windows(found, chosen_W, fs=500, preset="ecgfounder")
        np.testing.assert_array_equal(signal_WT, wanted_WT[chosen_W])
        np.testing.assert_array_equal(scale_W, wanted_scale_W[chosen_W])


@given(st.lists(st.integers(0, 255), max_size=40))
@settings(deadline=None)
def test_each_dropped_window_is_counted_once_by_its_first_reason(flags):
    counts = drop_reasons(np.array(flags, np.uint8))
    wanted = [next(name for flag, name in FLAG_NAMES.items() if flag & one & DROPPED) for one in flags if one & DROPPED]
    assert counts == {f"windows dropped: {name}": wanted.count(name) for name in wanted}
