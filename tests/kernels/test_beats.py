import numpy as np
import pytest

from anyecg.kernels.beats import FEATURES, heart_features, median_beat, r_peaks
from anyecg.kernels.ecgsyn import beats, synthesise
from anyecg.kernels.prepare import prepare
from anyecg.kernels.presets import PRESETS
from anyecg.kernels.resample import resample
from anyecg.loaders.records import open_record

from ..conftest import DEMO, SHARED

MITDB = SHARED / "mitdb"
# Symbols of annotations that are beats, after PhysioNet's table.
BEATS = set("NLRBAaJSVrFejnE/fQ?")


def matched(wanted, found, tolerance):
    """Return how many of two ascending lists of places pair up within a tolerance, each place at most once."""
    n, rest = 0, list(found)
    for place in wanted:
        while rest and rest[0] < place - tolerance:
            rest.pop(0)
        if rest and rest[0] <= place + tolerance:
            rest.pop(0)
            n += 1
    return n


def made_ecg(rate, *, fs=500, seconds=10.0, jitter=0.03, sign=1.0, noise=0.0, seed=0):
    """Return a lead in mV from the dynamical model, and its R peaks in samples; QRS of 1 mV, a T wave of 0.3 mV."""
    rng = np.random.default_rng(seed)
    time_B, interval_B = beats(
        np.full(int(seconds / 10) + 1, rate), lf=0.0, hf=0.0, resp_hz=0.25, phases=(0.0, 0.0),
        jitter_B=jitter * rng.standard_normal(1000), seconds=seconds,
    )  # fmt: skip
    time_B = time_B + 0.4
    after_B = np.minimum(interval_B, 0.8)[:, None]
    centre_BV = time_B[:, None] + np.concatenate([-0.2 * after_B, 0 * after_B - 0.03, 0 * after_B, 0.35 * after_B], 1)
    shape = np.ones_like(centre_BV)
    signal = synthesise(
        centre_BV, shape * [0.02, 0.008, 0.011, 0.04], shape * [0.12, -0.15, 1.0, 0.3],
        0.1 * np.sin(2 * np.pi * 0.3 * np.arange(int(seconds * fs)) / fs), fs=fs,
    )  # fmt: skip
    signal = sign * signal + noise * rng.standard_normal(len(signal))
    place_B = time_B * fs
    return signal.astype(np.float32), place_B[(place_B >= 0) & (place_B < len(signal))]


def annotated(name):
    """Return the first lead of a record in mV, its rate and the annotated beats in samples."""
    import wfdb

    record, notes = open_record(MITDB / name), wfdb.rdann(str(MITDB / name), "atr")
    return record.read(), record.fs, [s for s, c in zip(notes.sample, notes.symbol, strict=True) if c in BEATS]


@pytest.fixture(scope="module")
def mitdb():
    if not MITDB.is_dir():
        pytest.skip(f"{MITDB} is absent")
    return [annotated(path.stem) for path in sorted(MITDB.glob("*.atr"))]


def test_beats_of_the_arrhythmia_database_are_found_and_no_others(mitdb):
    n_annotated = n_found = n_matched = 0
    for signal, fs, annotated_at in mitdb:
        found = r_peaks(signal, fs)
        n_annotated, n_found = n_annotated + len(annotated_at), n_found + len(found)
        n_matched += matched(annotated_at, found, 0.15 * fs)
    assert n_matched / n_annotated >= 0.98
    assert n_matched / n_found >= 0.98


def test_beats_of_filtered_windows_are_found_and_no_others(mitdb):
    n_annotated = n_found = n_matched = 0
    for signal, fs, annotated_at in mitdb:
        at_500 = resample(signal, fs_in=fs, fs_out=500)
        window_WT = prepare(at_500[: len(at_500) // 5000 * 5000].reshape(-1, 5000))
        for w, window_T in enumerate(window_WT):
            wanted = [s * 500 / fs - 5000 * w for s in annotated_at if 5000 * w <= s * 500 / fs < 5000 * (w + 1)]
            found = r_peaks(window_T, 500)
            n_annotated, n_found = n_annotated + len(wanted), n_found + len(found)
            n_matched += matched(wanted, found, 75)
    assert n_matched / n_annotated >= 0.98
    assert n_matched / n_found >= 0.98


@pytest.mark.parametrize("fs", [128, 250, 300, 360, 500, 1000])
@pytest.mark.parametrize("rate", [35.0, 70.0, 120.0, 180.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_r_peaks_of_the_dynamical_model_are_where_they_were_put(fs, rate, sign):
    signal, placed = made_ecg(rate, fs=fs, seconds=60.0, sign=sign)
    inner = placed[(placed > 0.1 * fs) & (placed < len(signal) - 0.1 * fs)]
    found = r_peaks(signal, fs)
    found = found[(found > 0.1 * fs) & (found < len(signal) - 0.1 * fs)]
    assert len(found) == len(inner)
    np.testing.assert_allclose(found, inner, atol=max(1.5, 0.006 * fs))


@pytest.mark.parametrize("preset", PRESETS)
def test_features_are_those_of_the_placed_beats(preset):
    made = [made_ecg(rate, noise=0.01, jitter=0.06, seed=int(rate)) for rate in (50.0, 75.0, 110.0, 150.0)]
    window_WT = np.stack([signal for signal, _ in made])
    found_WF = heart_features(prepare(window_WT, preset=preset), 500)
    for found_F, (_, placed) in zip(found_WF, made, strict=True):
        rr = np.diff(placed[(placed > 40) & (placed < 4960)]) / 500
        rate, sdnn, rmssd, n_beats = found_F
        assert n_beats == pytest.approx(len(rr) + 1, abs=1)
        assert rate == pytest.approx(60 / np.median(rr), rel=0.05)
        assert sdnn == pytest.approx(rr.std(ddof=1), rel=0.2)
        assert rmssd == pytest.approx(np.sqrt(np.mean(np.diff(rr) ** 2)), rel=0.2)


def test_features_follow_their_definitions_on_the_found_beats():
    records = [open_record(path.with_suffix("")) for path in sorted((DEMO / "records").glob("*.hea"))[:40]]
    for record in records:
        signal = record.read()[:2700]
        found_F, at = heart_features(signal[None], record.fs)[0], r_peaks(signal, record.fs)
        if np.isnan(found_F[0]):
            continue
        rr = np.diff(at) / record.fs
        wanted = 60 / np.median(rr), rr.std(ddof=1), np.sqrt(np.mean(np.diff(rr) ** 2)), len(at)
        np.testing.assert_allclose(found_F, wanted, rtol=1e-5)


def twin_r_peaks(signal, fs):
    """Find R peaks as ``r_peaks`` does, slowly and plainly."""
    step = max(1, round(fs / 125))
    rate, n = fs / step, len(signal) // step
    low = np.array([np.sum(signal[i * step : (i + 1) * step], dtype=np.float64) for i in range(n)])
    third, width = round(0.024 * rate), round(0.096 * rate)
    low = np.pad(low, (3 * third // 2, 3 * third - 1 - 3 * third // 2), mode="edge")
    bend = np.abs(np.convolve(low, np.repeat([-1, 2, -1], third), "valid"))
    energy = np.array([bend[max(0, i - width // 2) : i - width // 2 + width].sum() for i in range(n)])
    peaks = []
    for i in range(1, n - 1):
        if energy[i - 1] < energy[i] >= energy[i + 1] and energy[i] > 1e-4 * np.abs(low).max():
            if not peaks or i - peaks[-1] > int(0.2 * rate):
                peaks.append(i)
            elif energy[i] > energy[peaks[-1]]:
                peaks[-1] = i
    second = int(rate)
    seconds = max(1, min(8, n // second))
    qrs, noise, rr = [energy[s * second :][:second].max() for s in range(seconds)], [0.0] * 8, [rate] * 8
    qrs = [qrs[b % seconds] for b in range(8)]
    found, others, since = [], 0, 0

    def add(i):
        if found:
            rr[len(found) % 8] = i - found[-1]
        qrs[len(found) % 8] = energy[i]
        found.append(i)

    for m, i in enumerate(peaks):
        level = sorted(noise)[4]
        limit = level + 0.4 * (sorted(qrs)[4] - level)
        if found and i - found[-1] > 1.5 * sorted(rr)[4]:
            between = [p for p in peaks[since:m] if found[-1] + 0.36 * rate <= p <= i - 0.2 * rate]
            missed = max(between, key=lambda p: energy[p], default=None)
            if missed is not None and energy[missed] > 0.5 * limit:
                add(missed)
        t_wave = found and i - found[-1] < 0.36 * rate and energy[i] <= 0.5 * energy[found[-1]]
        if energy[i] > limit and not t_wave:
            add(i)
            since = m + 1
        else:
            noise[others % 8] = energy[i]
            others += 1
    reach = int(0.06 * fs)
    near = [(max(0, i * step + step // 2 - reach), i * step + step // 2 + reach + 1) for i in found]
    parts = [np.asarray(signal[first:stop], np.float64) for first, stop in near]
    up = sum(part.max() + part.min() - 2 * part.mean() for part in parts)
    return [first + (part if up >= 0 else -part).argmax() for (first, _), part in zip(near, parts, strict=True)]


def test_r_peaks_agree_with_a_plain_twin():
    for path in sorted((DEMO / "records").glob("*.hea"))[:60]:
        record = open_record(path.with_suffix(""))
        assert r_peaks(record.read(), record.fs).tolist() == twin_r_peaks(record.read(), record.fs)


def test_windows_without_a_heart_have_no_features():
    rng = np.random.default_rng(4)
    white = rng.standard_normal((50, 5000)).astype(np.float32)
    for preset in PRESETS:
        assert np.isnan(heart_features(prepare(white, preset=preset), 500)).all()
    assert np.isnan(heart_features(np.zeros((2, 5000), np.int16), 500)).all()
    assert np.isnan(heart_features(np.full((1, 5000), 3.5, np.float32), 500)).all()
    ramp, step, spike = np.linspace(0, 5, 5000), np.repeat([0.0, 1.0], 2500), np.eye(1, 5000, 2500)[0]
    assert np.isnan(heart_features(np.stack([ramp, step, spike]), 500)).all()
    assert np.isnan(heart_features((ramp[None] + 1000).astype(np.float32), 500)).all()


def test_a_sample_that_is_not_finite_leaves_its_window_alone_without_features():
    signal, _ = made_ecg(80.0)
    window_WT = np.stack([signal] * 3)
    window_WT[1, 1234], window_WT[2, -1] = np.nan, np.inf
    found_WF = heart_features(window_WT, 500)
    assert found_WF.shape == (3, len(FEATURES))
    assert np.isnan(found_WF).all(axis=1).tolist() == [False, True, True]
    assert r_peaks(window_WT[1], 500).size == 0


def test_int16_windows_give_what_their_voltages_give():
    window_WT = np.stack([made_ecg(rate, noise=0.02, seed=int(rate))[0] for rate in (45.0, 80.0, 140.0)])
    stored_WT = np.round(window_WT * 1000).astype(np.int16)
    np.testing.assert_array_equal(
        heart_features(stored_WT, 500), heart_features((stored_WT / 1024).astype(np.float32), 500)
    )  # fmt: skip


def test_a_window_gives_the_same_alone_and_among_others():
    window_WT = np.stack([made_ecg(rate, noise=0.05, seed=int(rate))[0] for rate in range(40, 180, 10)])
    together = heart_features(window_WT, 500)
    np.testing.assert_array_equal(together, np.concatenate([heart_features(one[None], 500) for one in window_WT]))


@pytest.mark.parametrize("n", [0, 1, 3, 20, 100, 499])
def test_signals_too_short_for_three_beats_have_no_features(n):
    assert np.isnan(heart_features(np.ones((2, n), np.float32), 500)).all()
    assert r_peaks(np.ones(n, np.float32), 500).size == 0


@pytest.mark.parametrize(
    ("signal", "fs"), [(np.zeros((2, 3, 4)), 500), (np.zeros((2, 3), complex), 500), (np.zeros((2, 50)), 50)]
)
def test_what_cannot_be_windows_is_refused(signal, fs):
    with pytest.raises(ValueError, match="found"):
        heart_features(signal, fs)


def test_the_median_beat_is_the_beat_under_noise_a_drifting_level_and_one_wild_beat():
    fs, rng = 250, np.random.default_rng(0)
    beat_T = np.exp(-((np.arange(-75, 126) / 5.0) ** 2))
    signal_T = 0.05 * rng.standard_normal(30_000)
    r_M = np.arange(100, 29_800, 250)
    for number, place in enumerate(r_M):
        signal_T[place - 75 : place + 126] += beat_T * (1 if number != 7 else -5) + 0.01 * number
    found_T, before, n_beats = median_beat(signal_T, np.concatenate([[10], r_M, [29_990]]), fs)
    assert (before, n_beats, len(found_T)) == (75, len(r_M), 201)
    assert np.abs(found_T - beat_T).max() < 0.04


def test_a_median_beat_of_no_beats_or_of_gaps_alone_is_none():
    assert median_beat(np.zeros(1000), [], 250)[2] == 0
    assert median_beat(np.full(1000, np.nan), [500], 250)[2] == 0
    assert median_beat(np.zeros(100), [50], 250)[2] == 0
