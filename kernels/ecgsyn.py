"""An ECG from a dynamical model: beats, five waves each, and the equation of motion of the voltage."""

import numpy as np

from anyecg.kernels._jit import kernel

WAVES = ("P", "Q", "R", "S", "T")
# Beats begin and end this long before and after a record, so that waves reach into it from outside.
LEAD_IN_S = 3.0


@kernel
def _beats(rate_W, lf, hf, resp_hz, phase_lf, phase_hf, jitter_B, seconds, time_B, interval_B):
    t = -LEAD_IN_S
    n = 0
    while t < seconds + LEAD_IN_S and n < len(time_B):
        window = min(max(int(t / 10.0), 0), len(rate_W) - 1)
        swing = lf * np.sin(2.0 * np.pi * 0.1 * t + phase_lf) + hf * np.sin(2.0 * np.pi * resp_hz * t + phase_hf)
        interval = 60.0 / rate_W[window] * (1.0 + swing + jitter_B[n])
        time_B[n], interval_B[n] = t, min(max(interval, 0.3), 2.5)
        t += interval_B[n]
        n += 1
    return n


def beats(rate_W, *, lf, hf, resp_hz, phases, jitter_B, seconds):
    """Return the times of R peaks and the interval that follows each.

    Parameters
    ----------
    rate_W : float array, shape (windows,)
        Heart rate in beats a minute of each 10 s.
    lf, hf : float
        Relative amplitude of the slow (0.1 Hz) and the respiratory (``resp_hz``) variation of the interval.
    phases : (float, float)
    jitter_B : float array
        Relative variation from beat to beat; its length bounds the number of beats.
    seconds : float

    Returns
    -------
    (float64 array, float64 array), shape (beats,), in s; beats begin 3 s before 0 and end 3 s after ``seconds``

    Notes
    -----
    The interval's two spectral bands follow McSharry et al. 2003 (IEEE Trans Biomed Eng 50:289), each band as one
    sinusoid.
    """
    time_B, interval_B = np.empty(len(jitter_B)), np.empty(len(jitter_B))
    n = _beats(rate_W, lf, hf, resp_hz, phases[0], phases[1], jitter_B, seconds, time_B, interval_B)
    return time_B[:n], interval_B[:n]


@kernel
def _force(centre_BV, width_BV, amplitude_BV, fs, force_T):
    """Add the slope of each wave to the force, out to five widths; ``force_T`` has two values a sample."""
    for b in range(centre_BV.shape[0]):
        for v in range(centre_BV.shape[1]):
            centre, width = centre_BV[b, v], width_BV[b, v]
            first = max(0, int(np.ceil((centre - 5.0 * width) * 2.0 * fs)))
            last = min(len(force_T), int((centre + 5.0 * width) * 2.0 * fs) + 1)
            for k in range(first, last):
                u = (k / (2.0 * fs) - centre) / width
                force_T[k] -= amplitude_BV[b, v] * u / width * np.exp(-0.5 * u * u)


@kernel
def _integrate(force_T, rest_T, z, fs, out_T):
    """Fourth-order Runge-Kutta of dz/dt = force - (z - rest), rest linear between samples, from ``z`` on."""
    dt = 1.0 / fs
    for t in range(len(out_T)):
        out_T[t] = z
        if t + 1 == len(out_T):
            break
        rest_0, rest_1 = rest_T[t], rest_T[t + 1]
        rest_half = 0.5 * (rest_0 + rest_1)
        f_0, f_half, f_1 = force_T[2 * t], force_T[2 * t + 1], force_T[2 * t + 2]
        k_1 = f_0 - (z - rest_0)
        k_2 = f_half - (z + 0.5 * dt * k_1 - rest_half)
        k_3 = f_half - (z + 0.5 * dt * k_2 - rest_half)
        k_4 = f_1 - (z + dt * k_3 - rest_1)
        z += dt / 6.0 * (k_1 + 2.0 * k_2 + 2.0 * k_3 + k_4)


def synthesise(centre_BV, width_BV, amplitude_BV, rest_T, *, fs):
    """Return the voltage of a lead in mV, float64 (samples,).

    Parameters
    ----------
    centre_BV, width_BV : float array, shape (beats, waves)
        Centre and standard deviation of each wave in s.
    amplitude_BV : float array, shape (beats, waves)
        mV.
    rest_T : float array, shape (samples,)
        Resting voltage in mV that the model is drawn to, with a time constant of 1 s: baseline wander.
    fs : float

    Notes
    -----
    dz/dt = -sum_i a_i w D_i / b_i^2 exp(-D_i^2 / 2 b_i^2) - (z - z_0), the third equation of McSharry et al. 2003 with
    amplitudes in mV as in Sameni et al. 2007 (IEEE Trans Biomed Eng 54:2172, eq. 7). On the limit cycle the angle is
    D_i = w (t - t_i), and with widths b_i = w s_i the angular velocity w cancels, which leaves the equation in time.
    """
    centre_BV, width_BV, amplitude_BV = (
        np.ascontiguousarray(wave_BV, np.float64) for wave_BV in (centre_BV, width_BV, amplitude_BV)
    )
    force_T = np.zeros(2 * len(rest_T))
    _force(centre_BV, width_BV, amplitude_BV, float(fs), force_T)
    # A wave that has begun before the first sample has already lifted the voltage.
    start = rest_T[0] + (amplitude_BV * np.exp(-0.5 * (centre_BV / width_BV) ** 2)).sum()
    out_T = np.empty(len(rest_T))
    _integrate(force_T, np.ascontiguousarray(rest_T, np.float64), start, float(fs), out_T)
    return out_T
