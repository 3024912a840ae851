"""Find the beats of annotated records with our kernel and its peers in turn: processor time, sensitivity, PPV.

    python -m benchmarks.beats FOLDER_OF_MITDB

The peers are wfdb's gqrs and xqrs, and NeuroKit2's default where it is installed:
    pip install --no-deps --target PEERS neurokit2==0.2.13 PyWavelets==1.9.0
    PYTHONPATH=PEERS python -m benchmarks.beats FOLDER_OF_MITDB

A beat counts as found within 150 ms (ANSI/AAMI EC57).
"""

import argparse
import csv
import importlib.util
import time
from pathlib import Path

import numpy as np
import wfdb
from wfdb.processing import compare_annotations, gqrs_detect, xqrs_detect

from anyecg.kernels.beats import heart_features, r_peaks
from anyecg.kernels.prepare import prepare
from anyecg.kernels.resample import resample
from anyecg.loaders.records import open_record

BEATS = frozenset("NLRBAaJSVrFejnE/fQ?")
DEMO = Path(__file__).parent.parent / "app" / "demo" / "records"
TOLERANCE_S = 0.15
WINDOW = 5000


def annotated(path):
    """Return the first lead in mV, its rate, and the annotated beats in samples."""
    record, notes = open_record(path), wfdb.rdann(str(path), "atr")
    is_beat = [symbol in BEATS for symbol in notes.symbol]
    return record.read(), record.fs, notes.sample[is_beat]


def detectors():
    """Return how each finds the beats of a lead in mV."""
    found = {
        "ours": r_peaks,
        "wfdb gqrs": lambda x, fs: gqrs_detect(sig=x.astype(np.float64), fs=fs, adc_gain=1.0, adc_zero=0),
        "wfdb xqrs": lambda x, fs: xqrs_detect(sig=x.astype(np.float64), fs=fs, verbose=False),
    }
    if importlib.util.find_spec("neurokit2"):
        import neurokit2

        found["NeuroKit2"] = lambda x, fs: neurokit2.ecg_peaks(neurokit2.ecg_clean(x, fs), fs)[1]["ECG_R_Peaks"]
    return found


def matches(annotated_at, found_at, fs):
    """Return (annotated, found, both)."""
    if not len(annotated_at) or not len(found_at):
        return np.array([len(annotated_at), len(found_at), 0])
    both = compare_annotations(annotated_at, found_at, int(TOLERANCE_S * fs))
    return np.array([both.n_ref, both.n_test, both.tp])


def on_records(records, ways):
    """Find the beats of whole records, the detectors in turn."""
    seconds, counts = dict.fromkeys(ways, 0.0), {name: np.zeros(3, int) for name in ways}
    length_s, of_record = 0.0, {}
    for name, (signal, fs, annotated_at) in records.items():
        length_s += len(signal) / fs
        for who, way in ways.items():
            start = time.thread_time()
            found_at = np.asarray(way(signal, fs))
            seconds[who] += time.thread_time() - start
            counts[who] += (here := matches(annotated_at, found_at, fs))
            of_record[name, who] = here
    print(f"{len(records)} records, {length_s / 3600:.1f} h, {counts['ours'][0]} beats")
    for who in ways:
        n, n_found, both = counts[who]
        cost = seconds[who] / length_s * 10
        print(
            f"  {who:<10} sensitivity {both / n:.4f}  PPV {both / n_found:.4f}  {1e6 * cost:10.1f} us for 10 s "
            f"{seconds[who] / seconds['ours']:8.1f} x ours"
        )
    print("  sensitivity / PPV of each record")
    for name in records:
        row = (f"{who} {b / n:.3f} / {b / f:.3f}" for who in ways for n, f, b in [of_record[name, who]])
        print(f"  {name:<6} {'   '.join(row)}")


def on_windows(records, preset, repeats):
    """Find the beats of single filtered windows at 500 Hz, and time the features of all."""
    counts, windows = np.zeros(3, int), []
    for signal, fs, annotated_at in records.values():
        at_500 = resample(signal, fs_in=fs, fs_out=500)
        window_WT = prepare(at_500[: len(at_500) // WINDOW * WINDOW].reshape(-1, WINDOW), preset=preset, zscore=False)
        place, at = np.divmod(np.round(annotated_at * 500 / fs).astype(int), WINDOW)
        for w, window_T in enumerate(window_WT):
            counts += matches(at[place == w], r_peaks(window_T, 500), 500)
        windows.append(window_WT)
    window_WT, seconds = np.concatenate(windows), []
    for _ in range(repeats):
        start = time.thread_time()
        heart_features(window_WT, 500)
        seconds.append(time.thread_time() - start)
    n, n_found, both = counts
    each = 1e6 * np.median(seconds) / len(window_WT)
    print(
        f"{len(window_WT)} windows of 10 s alone, 500 Hz, preset {preset}: sensitivity {both / n:.4f}, "
        f"PPV {both / n_found:.4f}, heart_features {each:.1f} us a window"
    )


def agreement(folder):
    """Compare heart rates of windows of recordings without annotations with those from gqrs's beats, by rhythm."""
    with (folder.parent / "labels.csv").open(newline="") as file:
        rhythm = {
            row["record"]: "noise" if row["noise"] == "1" else "atrial fibrillation"
            if row["atrial_fibrillation"] == "1" else "other" if row["other_rhythm"] == "1" else "normal"
            for row in csv.DictReader(file)
        }  # fmt: skip
    counts = {name: np.zeros(3, int) for name in ("normal", "atrial fibrillation", "other", "noise")}
    for path in sorted(folder.glob("*.hea")):
        record = open_record(path.with_suffix(""))
        signal, n = record.read(), int(10 * record.fs)
        beats_at = np.asarray(gqrs_detect(sig=signal.astype(np.float64), fs=record.fs, adc_gain=1.0, adc_zero=0))
        for first in range(0, len(signal) - n + 1, n):
            inside = beats_at[(beats_at >= first) & (beats_at < first + n)]
            rate = heart_features(signal[None, first : first + n], record.fs)[0, 0]
            usual = 60 * record.fs / np.median(np.diff(inside)) if len(inside) > 2 else np.nan
            counts[rhythm[path.stem]] += 1, np.isfinite(rate), abs(rate / usual - 1) < 0.05
    where = f"{folder.parent.name}/{folder.name}"
    print(f"{where}: heart rate of a window within 5 % of that from gqrs on the whole recording")
    for name, (n, n_rates, n_close) in counts.items():
        print(f"  {name:<20} {n} windows, {n_rates} with a heart rate, {n_close / n_rates:.3f} of those agree")


def main():
    """Print what was found and how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    records = {path.stem: annotated(path.with_suffix("")) for path in sorted(arguments.folder.glob("*.atr"))}
    r_peaks(next(iter(records.values()))[0], 360)  # compiled before it is timed
    on_records(records, detectors())
    agreement(DEMO)
    for preset in ("ecgfounder", "ecgfounder-paper", "none"):
        on_windows(records, preset, arguments.repeats)


if __name__ == "__main__":
    main()
