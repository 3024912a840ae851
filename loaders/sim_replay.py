"""Real recordings as the simulated double's hearts: replayed beat by beat, each beat altered as the law says."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import butter, sosfiltfilt

from anyecg.kernels.resample import resample
from anyecg.loaders.errors import AnyECGError, CohortError
from anyecg.loaders.records import find_records, open_record
from anyecg.loaders.sim_law import FS, LAW, WINDOW_S

BEATS = frozenset("NLRBAaJSVrFejnE/fQ")
# Halves of the stretches around R, T and P that keep their shape, and the typical places of T and P, in s.
HALF_QRS, HALF_T, HALF_P, T_AT, P_AT = 0.05, 0.09, 0.05, 0.29, 0.16


@dataclass(frozen=True)
class Source:
    """One real recording, 500 Hz, wander below 0.5 Hz removed.

    Attributes
    ----------
    mv_T : float64 array
    start_B, interval_B : float64 arrays
        R peaks in s and the intervals that follow, only those between 0.3 and 2.5 s.
    digest : str
        Of the recording's header.
    """

    mv_T: np.ndarray
    start_B: np.ndarray
    interval_B: np.ndarray
    digest: str


def read_sources(folder):
    """Read every WFDB record below a folder that has beat annotations (.atr).

    Returns
    -------
    list of Source, in the order of their names

    Raises
    ------
    CohortError
        No such record.
    """
    import wfdb

    sources = []
    for name in find_records(folder):
        path = Path(folder) / name
        if not path.with_name(path.name + ".atr").is_file():
            continue
        try:
            record = open_record(path, root=folder)
            mv_T = resample(np.nan_to_num(record.read()), fs_in=record.fs, fs_out=FS)
            marks = wfdb.rdann(str(path), "atr")
        except (AnyECGError, ValueError, OSError) as cause:
            raise CohortError(f"{path}: cannot be replayed ({cause}); take it out of {folder}") from None
        beat = np.array([symbol in BEATS for symbol in marks.symbol], bool)
        start_B = np.asarray(marks.sample)[beat] / record.fs
        interval_B = np.diff(start_B)
        usable = (interval_B > 0.3) & (interval_B < 2.5)
        high_pass = butter(2, 0.5, "high", fs=FS, output="sos")
        if usable.sum() > 10:
            sources.append(
                Source(sosfiltfilt(high_pass, mv_T), start_B[:-1][usable], interval_B[usable], record.digest)
            )
    if not sources:
        raise CohortError(f"{folder}: no WFDB record with beat annotations (.atr); give a folder that holds some")
    return sources


def _knots(start_B, interval_B, qrs_B, t_shift_B, t_width_B, pr_shift_B):
    """Return where each beat's R, T and P begin and end, in s, shape (beats, 8), rising within a beat."""
    t_B = T_AT * np.cbrt(interval_B) + t_shift_B
    p_B = interval_B - P_AT - pr_shift_B
    knots = [
        np.zeros(len(start_B)), HALF_QRS * qrs_B, t_B - HALF_T * t_width_B, t_B + HALF_T * t_width_B,
        p_B - HALF_P, p_B + HALF_P, interval_B - HALF_QRS * qrs_B, interval_B,
    ]  # fmt: skip
    knots_BK = np.minimum(np.maximum.accumulate(np.stack(knots, axis=1), axis=1), interval_B[:, None])
    return start_B[:, None] + knots_BK


def replay(rng, parameter_WE, source, seconds):
    """Return lead II in mV and its R peaks, real beats altered.

    Parameters
    ----------
    parameter_WE : float array, shape (windows, effects)
        From ``anyecg.loaders.sim_law.parameters``.
    source : Source
    seconds : float

    Returns
    -------
    (float64 array (samples,), (R peaks, intervals) in s)

    Notes
    -----
    Each real interval lasts exp(-rate) as long; time is mapped piecewise linearly so that QRS is stretched, T and P are
    moved, T stretched; the voltage around T is multiplied. The heart's own T, QT and so on come on top of the law's
    nuisance, so truth.csv is an upper bound here.
    """
    n = round(seconds * FS)
    first = int(rng.integers(0, len(source.start_B)))
    beat_B = (first + np.arange(int(seconds / 0.15) + 20)) % len(source.start_B)
    old_B = source.interval_B[beat_B]
    # The rate of a beat's window needs the beat's time: a first guess of the times is within a beat of the truth.
    rate_W = parameter_WE[:, [effect.parameter for effect in LAW].index("heart rate, log")]
    time_B = np.concatenate([[0.0], np.cumsum(old_B * np.exp(-rate_W.mean()))[:-1]]) - 1.0
    for _ in range(3):
        window_B = np.clip((time_B / WINDOW_S).astype(np.int64), 0, len(parameter_WE) - 1)
        new_B = np.clip(old_B * np.exp(-rate_W[window_B]), 0.3, 2.5)
        time_B = np.concatenate([[0.0], np.cumsum(new_B)[:-1]]) - 1.0
    kept = time_B < seconds + 2
    time_B, new_B, old_B, beat_B, window_B = (a[kept] for a in (time_B, new_B, old_B, beat_B, window_B))
    moved = {effect.parameter: parameter_WE[window_B, e] for e, effect in enumerate(LAW)}
    zero_B = np.zeros(len(time_B))
    new_BK = _knots(
        time_B, new_B, np.exp(moved["QRS width, log"]), moved["QT, s"], np.exp(moved["T width, log"]), moved["PR, s"]
    )
    old_BK = _knots(source.start_B[beat_B], old_B, zero_B + 1, zero_B, zero_B + 1, zero_B)
    time_T = np.arange(n) / FS
    beat_T = np.clip(np.searchsorted(time_B, time_T, side="right") - 1, 0, len(time_B) - 1)
    # A beat's stretch of source time begins anew, so that playing on from another beat leaves no ramp between them.
    offset_B = 10.0 * np.arange(len(time_B))
    relative_T = np.interp(
        time_T - time_B[beat_T] + offset_B[beat_T], (new_BK - time_B[:, None] + offset_B[:, None]).ravel(),
        (old_BK - source.start_B[beat_B][:, None] + offset_B[:, None]).ravel(),
    ) - offset_B[beat_T]  # fmt: skip
    mv_T = np.interp((source.start_B[beat_B][beat_T] + relative_T) * FS, np.arange(len(source.mv_T)), source.mv_T)
    middle_T = T_AT * np.cbrt(old_B[beat_T])
    near_T = np.exp(-0.5 * ((relative_T - middle_T) / (0.7 * HALF_T)) ** 2)
    mv_T *= 1 + near_T * np.expm1(moved["T amplitude, log"][beat_T])
    return mv_T, (time_B, new_B)
