"""The simulated double's waveforms: lead II, pleth and respiration of a visit, as one-channel WFDB records."""

from dataclasses import dataclass

import numpy as np

from anyecg.kernels.ecgsyn import LEAD_IN_S, WAVES, beats, synthesise
from anyecg.loaders.sim_law import FS, LAW, OF_WAVEFORMS, WINDOW_S, generator, parameters
from anyecg.loaders.sim_replay import replay

RATES = {"II": 500.0, "Pleth": 125.0, "Resp": 62.5}
INVALID = -32768
SHORTEST_S = 1.0
# Typical heart: rate, PR to the middle of P, QT to the middle of T at 60 beats a minute, all times in s.
TYPICAL_RATE, PR, QT = 75.0, 0.16, 0.29
AMPLITUDE = np.array([0.13, -0.12, 1.0, -0.22, 0.28])
WIDTH = np.array([0.022, 0.009, 0.011, 0.010, 0.045])
# Share of the records that miss their base time, and seconds between runs of invalid samples.
NO_BASE_TIME, BETWEEN_INVALID_S = 0.01, 1800.0


@dataclass(frozen=True)
class Person:
    """What stays through a visit and acts on all of its records; nothing of it depends on any component.

    Attributes
    ----------
    electrode_V : float array, shape (5,)
        Factor of each wave relative to R: the position of the electrodes.
    gain, lf, hf, resp_hz, muscle_mv, wander_mv, hum_mv : float
    adu_per_mv, adu_at_zero : int
        How the monitor stores lead II.
    """

    electrode_V: np.ndarray
    gain: float
    lf: float
    hf: float
    resp_hz: float
    muscle_mv: float
    wander_mv: float
    hum_mv: float
    adu_per_mv: int
    adu_at_zero: int


def random_person(rng):
    """Return a person by chance."""
    electrode_V = np.exp(0.25 * rng.standard_normal(len(WAVES)))
    # T and R are what the law is about: their ratio is a parameter with a nuisance of its own.
    electrode_V[[WAVES.index("R"), WAVES.index("T")]] = 1.0
    return Person(
        electrode_V=electrode_V, gain=float(np.exp(0.3 * rng.standard_normal())), lf=rng.uniform(0.01, 0.04),
        hf=rng.uniform(0.01, 0.05), resp_hz=rng.uniform(0.2, 0.35),
        muscle_mv=float(0.012 * np.exp(0.5 * rng.standard_normal())), wander_mv=rng.uniform(0.02, 0.15),
        hum_mv=float(0.005 * np.exp(0.7 * rng.standard_normal())),
        adu_per_mv=int(rng.choice([200, 400, 1000])), adu_at_zero=int(rng.choice([0, 512, -1024])),
    )  # fmt: skip


def waves(parameter_WE, rhythm_B, electrode_V):
    """Return centre, width (s) and amplitude (mV) of the five waves of each beat, three arrays of shape (beats, 5).

    Parameters
    ----------
    parameter_WE : float array, shape (windows, effects)
        From ``anyecg.loaders.sim_law.parameters``; a beat takes those of the window in which its R peak lies.
    rhythm_B : (float array, float array)
        R peaks and the intervals that follow, in s.
    electrode_V : float array, shape (5,)
    """
    time_B, interval_B = rhythm_B
    window_B = np.clip((time_B / WINDOW_S).astype(np.int64), 0, len(parameter_WE) - 1)
    moved = {effect.parameter: parameter_WE[window_B, e] for e, effect in enumerate(LAW)}
    # QT follows the cube root of the preceding interval (Fridericia 1920).
    before_B = np.concatenate([interval_B[:1], interval_B[:-1]])
    qrs_B = np.exp(moved["QRS width, log"])
    zero_B = np.zeros(len(time_B))
    centre_BV = time_B[:, None] + np.stack(
        [
            -(PR + moved["PR, s"]), -0.026 * qrs_B, zero_B, 0.028 * qrs_B,
            QT * np.cbrt(before_B) + moved["QT, s"],
        ],
        axis=1,
    )  # fmt: skip
    width_BV = np.tile(WIDTH, (len(time_B), 1))
    width_BV[:, 1:4] *= qrs_B[:, None]
    width_BV[:, 4] *= np.exp(moved["T width, log"])
    amplitude_BV = np.tile(AMPLITUDE * electrode_V, (len(time_B), 1))
    amplitude_BV[:, 4] *= np.exp(moved["T amplitude, log"])
    return centre_BV, width_BV, amplitude_BV


def _slow(rng, n, person, seconds):
    """Return baseline wander and motion in mV, (n,) at 500 Hz: noise below 5 Hz, with bursts of motion."""
    n_slow = int(seconds * 10) + 40
    noise = rng.standard_normal((2, n_slow))
    kernel = np.hanning(31) / np.sqrt((np.hanning(31) ** 2).sum())
    slow = person.wander_mv * np.convolve(noise[0], kernel, mode="same")
    for _ in range(rng.poisson(seconds / 180)):
        first, length = int(rng.integers(0, n_slow)), int(rng.integers(10, 40))
        burst = noise[1, first : first + length]
        slow[first : first + length] += rng.lognormal(-1.0, 0.7) * np.hanning(length)[: len(burst)] * burst
    time = np.arange(n) / FS
    breath = 0.3 * person.wander_mv * np.sin(2 * np.pi * person.resp_hz * time + rng.uniform(0, 6.28))
    return np.interp(time, np.arange(n_slow) / 10, slow) + breath


def rhythm(rng, parameter_WE, person, seconds):
    """Return the R peaks of a record and the interval after each, in s from its start."""
    rate_W = TYPICAL_RATE * np.exp(parameter_WE[:, [effect.parameter for effect in LAW].index("heart rate, log")])
    jitter_B = 0.01 * rng.standard_normal(int((seconds + 2 * LEAD_IN_S) * 3.4) + 2)
    return beats(
        rate_W, lf=person.lf, hf=person.hf, resp_hz=person.resp_hz, phases=tuple(rng.uniform(0, 2 * np.pi, 2)),
        jitter_B=jitter_B, seconds=seconds,
    )  # fmt: skip


def lead_ii(rng, parameter_WE, person, rhythm_B, n):
    """Return lead II in mV, float64 (n,): the model's ECG, electrode gain, wander, motion, muscle and mains noise."""
    centre_BV, width_BV, amplitude_BV = waves(parameter_WE, rhythm_B, person.electrode_V)
    rest_T = _slow(rng, n, person, n / FS)
    mv_T = person.gain * synthesise(centre_BV, width_BV, amplitude_BV, rest_T, fs=FS)
    # Muscle noise swells and fades over tens of seconds.
    knots = np.arange(0, n / FS + 20, 10)
    muscle = person.muscle_mv * np.exp(0.3 * rng.standard_normal(len(knots)))
    mv_T += np.interp(np.arange(n) / FS, knots, muscle) * rng.standard_normal(n, dtype=np.float32)
    # Mains of 60 Hz: its sine repeats exactly every 25 samples.
    mv_T += np.resize(person.hum_mv * np.sin(2 * np.pi * 60 * np.arange(25) / FS + rng.uniform(0, 6.28)), n)
    return mv_T


def _break(rng, counts_T, fs, seconds):
    """Mark runs of samples invalid: half of them short enough to be filled (up to 40 ms), half up to 3 s."""
    for _ in range(rng.poisson(seconds / BETWEEN_INVALID_S)):
        length = max(1, int(fs * (rng.uniform(0.002, 0.04) if rng.random() < 0.5 else rng.uniform(0.1, 3.0))))
        first = int(rng.integers(0, len(counts_T)))
        counts_T[first : first + length] = INVALID


def _pulse(rng, rhythm_B, n):
    """Return the pleth, float64 (n,): a pulse and its reflection a quarter of a second after each R peak."""
    time_B, _ = rhythm_B
    centre_BV = time_B[:, None] + np.array([0.25, 0.50])
    shape = np.broadcast_to(np.array([0.07, 0.10]), centre_BV.shape)
    height = np.broadcast_to(np.array([1.0, 0.35]), centre_BV.shape)
    pulse_T = synthesise(centre_BV, shape, height, np.zeros(n), fs=RATES["Pleth"])
    return pulse_T + 0.02 * rng.standard_normal(n)


def _breath(rng, person, n):
    time = np.arange(n) / RATES["Resp"]
    return np.sin(2 * np.pi * person.resp_hz * time) + 0.05 * rng.standard_normal(n)


def _write_record(folder, name, lead, counts_T, *, adu, zero, unit, when):
    """Write a one-channel format-16 WFDB record: signal file, then header."""
    counts_T = counts_T.astype("<i2")
    checksum = int(counts_T.sum(dtype=np.int64)) & 0xFFFF
    fs = f"{RATES[lead]:g}"
    base = f" {when:%H:%M:%S}.{when.microsecond // 1000:03d} {when:%d/%m/%Y}" if when else ""
    header = (
        f"{name} 1 {fs} {len(counts_T)}{base}\n"
        f"{name}.dat 16 {adu}({zero})/{unit} 16 0 {counts_T[0]} {checksum} 0 {lead}\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.dat").write_bytes(counts_T.tobytes())
    (folder / f"{name}.hea").write_bytes(header.encode())


def write_waveforms(folder, name, seed, block, row, sources=()):
    """Write the records of one visit below ``folder``/waveforms.

    Parameters
    ----------
    folder : path
    name : str
        CSN of the visit.
    seed : int
    block : anyecg.loaders.sim_law.VisitBlock
    row : int
        Its row in the block.
    sources : list of anyecg.loaders.sim_replay.Source
        Real recordings to replay; without any, the model's ECG.
    """
    rng = generator(seed, OF_WAVEFORMS, int(block.number[row]))
    person = random_person(rng)
    source = sources[int(rng.integers(0, len(sources)))] if sources else None
    arrival = np.datetime64(int(block.arrival[row]), "s")
    number = 0
    for start, stop in zip(block.start_NS[row], block.stop_NS[row], strict=True):
        seconds = stop - start
        if seconds < SHORTEST_S:
            continue
        number += 1
        middle_W = start + WINDOW_S * np.arange(int(np.ceil(seconds / WINDOW_S))) + WINDOW_S / 2
        parameter_WE = parameters(
            rng, middle_W, block.time_ND[row], block.level_NDC[row], block.nuisance_NE[row]
        )  # fmt: skip
        n = {lead: round(seconds * rate) for lead, rate in RATES.items()}
        if source:
            mv_T, rhythm_B = replay(rng, parameter_WE, source, seconds)
            mv_T = person.gain * mv_T + _slow(rng, n["II"], person, seconds)
        else:
            rhythm_B = rhythm(rng, parameter_WE, person, seconds)
            mv_T = lead_ii(rng, parameter_WE, person, rhythm_B, n["II"])
        counts = {
            "II": (mv_T, person.adu_per_mv, person.adu_at_zero, "mV"),
            "Pleth": (_pulse(rng, rhythm_B, n["Pleth"]), 4096, 0, "NU"),
            "Resp": (_breath(rng, person, n["Resp"]), 2048, 0, "Ohm"),
        }
        when = (arrival + np.timedelta64(round(start * 1000), "ms")).astype("datetime64[ms]").item()
        when = None if rng.random() < NO_BASE_TIME else when
        for lead, (values_T, adu, zero, unit) in counts.items():
            counts_T = np.clip(np.round(values_T * adu + zero), -32767, 32767).astype(np.int16)
            _break(rng, counts_T, RATES[lead], seconds)
            _write_record(
                folder / "waveforms" / name[-3:] / name / lead, f"{name}_{number}", lead, counts_T, adu=adu, zero=zero,
                unit=unit, when=when,
            )  # fmt: skip
