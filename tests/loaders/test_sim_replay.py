import numpy as np
import pytest
import wfdb
from mpi4py import MPI

from anyecg.kernels.ecgsyn import synthesise
from anyecg.loaders.errors import CohortError
from anyecg.loaders.records import open_record
from anyecg.loaders.sim_law import LAW
from anyecg.loaders.sim_replay import read_sources, replay
from anyecg.loaders.simulate import simulate

NAMES = [effect.parameter for effect in LAW]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Return a folder with one annotated recording of 60 s at 360 Hz, 70 beats a minute, and one without beats."""
    folder = tmp_path_factory.mktemp("recordings")
    r = np.arange(0.5, 59.5, 60 / 70)
    centre = r[:, None] + np.array([-0.16, 0.0, 0.28])
    mv = synthesise(
        centre,
        np.tile([0.02, 0.011, 0.04], (len(r), 1)),
        np.tile([0.1, 1.0, 0.3], (len(r), 1)),
        np.zeros(21600),
        fs=360,
    )
    for name in ("real", "silent"):
        wfdb.wrsamp(
            name, fs=360, units=["mV"], sig_name=["MLII"], p_signal=mv[:, None], fmt=["16"], write_dir=str(folder)
        )
    wfdb.wrann("real", "atr", np.round(r * 360).astype(int), symbol=["N"] * len(r), write_dir=str(folder))
    return folder


def moved(**sizes):
    parameter_WE = np.zeros((3, len(LAW)))
    for name, size in sizes.items():
        parameter_WE[:, NAMES.index(name)] = size
    return parameter_WE


def played(source, parameter_WE):
    return replay(np.random.default_rng(0), parameter_WE, source, 30.0)


def peak_after(mv_T, r, first, last):
    """Return when, in s after R, the largest voltage lies, and how large it is."""
    stretch = mv_T[int((r + first) * 500) : int((r + last) * 500)]
    return first + stretch.argmax() / 500, stretch.max()


def test_unmoved_beats_are_the_recording_itself(recordings):
    (source,) = read_sources(recordings)
    mv_T, (time_B, interval_B) = played(source, moved())
    np.testing.assert_allclose(interval_B, 60 / 70, atol=0.01)
    first = time_B[(time_B > 0) & (time_B < 25)][0]
    at, _ = peak_after(mv_T, first, 0.2, 0.4)
    assert at == pytest.approx(0.28, abs=0.006)
    best = min(
        np.abs(mv_T[int(first * 500) : int(first * 500) + 2000] - source.mv_T[s : s + 2000]).max()
        for s in np.round(source.start_B[:40] * 500).astype(int)
    )
    assert best < 0.15


@pytest.mark.parametrize(
    ("name", "size", "shift", "factor"),
    [("T amplitude, log", 0.5, 0.0, np.exp(0.5)), ("QT, s", 0.03, 0.03, 1.0), ("QT, s", -0.03, -0.03, 1.0)],
)
def test_t_waves_move_as_asked(recordings, name, size, shift, factor):
    (source,) = read_sources(recordings)
    plain_T, (time_B, _) = played(source, moved())
    mv_T, _ = played(source, moved(**{name: size}))
    for r in time_B[(time_B > 1) & (time_B < 25)]:
        at, height = peak_after(plain_T, r, 0.18, 0.42)
        new_at, new_height = peak_after(mv_T, r, 0.18, 0.42)
        assert new_at - at == pytest.approx(shift, abs=0.007)
        assert new_height / height == pytest.approx(factor, rel=0.06)


def test_rate_and_pr_move_as_asked(recordings):
    (source,) = read_sources(recordings)
    _, (time_B, interval_B) = played(source, moved(**{"heart rate, log": 0.2}))
    np.testing.assert_allclose(interval_B, 60 / 70 * np.exp(-0.2), atol=0.01)
    plain_T, (time_B, _) = played(source, moved())
    mv_T, _ = played(source, moved(**{"PR, s": 0.03}))
    for r in time_B[(time_B > 1) & (time_B < 25)]:
        assert peak_after(mv_T, r, -0.25, -0.08)[0] - peak_after(plain_T, r, -0.25, -0.08)[0] == pytest.approx(
            -0.03, abs=0.007
        )


def test_a_folder_is_replayed_as_visits(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr("anyecg.loaders.simulate.N_BATCHES", 2)
    simulate(tmp_path / "out", n_visits=3, hours=0.2, seed=1, comm=MPI.COMM_SELF, replay=recordings)
    headers = list((tmp_path / "out").glob("waveforms/*/*/II/*.hea"))
    assert headers
    assert all(np.nanmax(np.abs(open_record(header).read())) > 0.2 for header in headers)


def test_a_folder_without_annotated_records_is_refused(tmp_path):
    with pytest.raises(CohortError, match=r"\.atr"):
        simulate(tmp_path / "out", n_visits=3, hours=0.2, seed=1, comm=MPI.COMM_SELF, replay=tmp_path)
    assert not (tmp_path / "out").exists()
