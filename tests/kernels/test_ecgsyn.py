import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.signal import periodogram

from anyecg.kernels.ecgsyn import LEAD_IN_S, beats, synthesise


def test_voltage_solves_the_equation_of_motion():
    centre_BV, width_BV = np.array([[0.30, 0.62], [1.25, 1.57]]), np.full((2, 2), 0.03)
    amplitude_BV = np.array([[1.0, 0.3], [1.0, 0.3]])

    def slope(t, z):
        u = (t - centre_BV) / width_BV
        return -(amplitude_BV * u / width_BV * np.exp(-0.5 * u**2)).sum() - (z - 0.1 * t)

    time = np.arange(1000) / 500
    twin = solve_ivp(slope, (0, 2), [0.0], t_eval=time, rtol=1e-9, atol=1e-10, max_step=0.001).y[0]
    mv = synthesise(centre_BV, width_BV, amplitude_BV, 0.1 * time, fs=500)
    np.testing.assert_allclose(mv, twin, atol=1e-5)


def test_a_wave_is_a_bump_of_its_amplitude_and_width():
    mv = synthesise([[0.5]], [[0.02]], [[0.8]], np.zeros(1000), fs=500)
    assert mv.max() == pytest.approx(0.8, rel=0.05)
    assert abs(int(mv.argmax()) - 250) <= 1
    assert (mv > 0.4).sum() / 500 == pytest.approx(2.355 * 0.02, rel=0.1)


def test_beats_have_the_asked_rate_in_every_window():
    rate_W = np.array([60.0, 120.0, 80.0])
    time_B, interval_B = beats(
        rate_W, lf=0.0, hf=0.0, resp_hz=0.25, phases=(0.0, 0.0), jitter_B=np.zeros(400), seconds=30.0
    )
    assert time_B[0] == -LEAD_IN_S
    assert time_B[-1] >= 30.0
    np.testing.assert_allclose(np.diff(time_B), interval_B[:-1])
    for window, rate in enumerate(rate_W):
        inside = (time_B >= 10 * window) & (time_B < 10 * window + 10)
        np.testing.assert_allclose(60 / interval_B[inside], rate)


def test_intervals_swing_at_the_two_asked_frequencies():
    time_B, interval_B = beats(
        np.full(60, 75.0), lf=0.03, hf=0.05, resp_hz=0.25, phases=(1.0, 2.0), jitter_B=np.zeros(2000), seconds=600.0
    )
    even = np.interp(np.arange(0, 600, 0.5), time_B, interval_B)
    frequency, power = periodogram(even - even.mean(), 2.0)
    strongest = frequency[np.argsort(power)[-2:]]
    np.testing.assert_allclose(np.sort(strongest), [0.1, 0.25], atol=0.005)


def test_a_record_may_begin_in_the_middle_of_a_wave():
    """A record cut from a longer one differs from it only by the drift to the baseline, never by half a wave."""
    r = np.arange(-2.4, 6.0, 0.8)[:, None]
    waves = np.full((len(r), 1), 0.012), np.ones((len(r), 1))
    whole = synthesise(r + 3.0, *waves, np.zeros(3500), fs=500)
    part = synthesise(r + 3.0 - 3.0, *waves, np.zeros(2000), fs=500)
    np.testing.assert_allclose(part, whole[1500:], atol=0.06)
    assert part[0] > 0.8
