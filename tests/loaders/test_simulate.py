import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import wfdb
from mpi4py import MPI
from scipy.stats import norm

from anyecg.app.cli import main
from anyecg.kernels.auroc import auroc
from anyecg.loaders.cohort_config import CohortConfig
from anyecg.loaders.errors import CohortError
from anyecg.loaders.mcmed import mcmed_cohort, official_split, read_visits
from anyecg.loaders.pairs import pair_windows
from anyecg.loaders.records import open_record
from anyecg.loaders.sim_law import (
    LAW,
    LEVEL_CORRELATION,
    PLANTED,
    WINDOW_SHARE,
    component_laws,
    levels,
    parameters,
    visit_block,
    visit_times,
)
from anyecg.loaders.sim_tables import lab_table, name_visits, visit_table
from anyecg.loaders.sim_truth import _draw_score, _see, _Seen, batch_truth, combine, nuisance_of
from anyecg.loaders.sim_waveforms import random_person, rhythm, waves
from anyecg.loaders.simulate import _make_ready, simulate
from anyecg.loaders.targets import read_targets
from anyecg.slurm.launch import find_mpirun

N_VISITS, HOURS = 104, 0.06
# The command line with a best possible AUROC from fewer visits: only its precision is less.
COMMAND = """\
import sys
from anyecg.app.cli import main
from anyecg.loaders import sim_truth

sim_truth.VISITS_A_BATCH = 1000
sys.exit(main())
"""


def command(folder):
    """Return the command that simulates into a folder, on the ranks it is started on."""
    asked = ("--visits", str(N_VISITS), "--hours", str(HOURS), "--seed", "4", "--ranks", "1")
    return [sys.executable, "-c", COMMAND, "simulate", "--out", str(folder), *asked]


def run(*command):
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=560, stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "mcmed"
    run(*command(folder))
    return folder


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def test_same_bytes_on_three_ranks_and_from_the_same_command_twice(simulated, tmp_path):
    run(find_mpirun(), "-n", "3", *command(tmp_path / "again"))
    assert hashes(simulated) == hashes(tmp_path / "again")
    assert "kept" in run(*command(simulated))


def test_a_killed_simulation_starts_anew_and_ends_with_the_same_bytes(simulated, tmp_path):
    half = command(tmp_path / "half")
    with subprocess.Popen(half, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list((tmp_path / "half").glob("waveforms/*/*/II/*.dat")):
            assert process.poll() is None
        process.kill()
    (tmp_path / "half" / ".labs.csv.99.tmp").write_text("left over")
    stale = tmp_path / "half" / "waveforms" / "999" / "90000999"
    stale.mkdir(parents=True)
    (stale / "90000999_1.hea").write_text("of another run")
    run(*half)
    assert hashes(tmp_path / "half") == hashes(simulated)


def test_a_stop_after_the_last_file_is_tidied_up(simulated, tmp_path):
    again = shutil.copytree(simulated, tmp_path / "again")
    (again / ".simulation-parts").mkdir()
    (again / ".simulation-started").touch()
    assert not simulate(again, n_visits=N_VISITS, hours=HOURS, seed=4, comm=MPI.COMM_SELF)
    assert hashes(again) == hashes(simulated)


@pytest.mark.parametrize(
    "theirs", ["mine.txt", ".parts/mine.txt", ".simulation-parts/mine.txt", "waveforms/1/mine.dat"]
)
def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path, theirs):
    path = tmp_path / "out" / theirs
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(CohortError, match="not empty"):
        simulate(tmp_path / "out", n_visits=5, hours=HOURS, seed=4, comm=MPI.COMM_SELF)
    assert path.read_text() == "mine"
    assert [found for found in (tmp_path / "out").rglob("*") if found.is_file()] == [path]


def test_another_or_damaged_simulation_is_refused(simulated, tmp_path):
    with pytest.raises(CohortError, match="another simulation"):
        simulate(simulated, n_visits=5, hours=HOURS, seed=4, comm=MPI.COMM_SELF)
    damaged = shutil.copytree(simulated, tmp_path / "damaged")
    (damaged / "labs.csv").unlink()
    with pytest.raises(CohortError, match="damaged"):
        simulate(damaged, n_visits=N_VISITS, hours=HOURS, seed=4, comm=MPI.COMM_SELF)


def test_a_second_writer_is_kept_out(tmp_path):
    lock = _make_ready(tmp_path / "out", {})
    with pytest.raises(CohortError, match="another anyecg simulates there"):
        simulate(tmp_path / "out", n_visits=5, hours=HOURS, seed=4, comm=MPI.COMM_SELF)
    lock.close()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anyecg.loaders.simulate.write_waveforms", full)
    code = main(["simulate", "--out", str(tmp_path / "out"), "--visits", "5", "--hours", "0.1", "--ranks", "1"])
    assert code == 2
    assert "No space left on device; free space" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--visits", "0", "--hours", "1"), "--visits 0; wanted 1 to"),
        (("--visits", "5", "--hours", "nan"), "--hours nan"),
        (("--visits", "5", "--hours", "0.001"), "wanted 0.05 to 48"),
        (("--visits", "5", "--hours", "1", "--seed", "-1"), "--seed -1"),
        (("--visits", "5", "--hours", "1", "--ranks", "0"), "--ranks 0"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_one_line_and_leave_nothing(tmp_path, arguments, said, capsys):
    assert main(["simulate", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_layout_is_that_of_mc_med(simulated):
    visits = pl.read_csv(simulated / "visits.csv", infer_schema=False)
    labs = pl.read_csv(simulated / "labs.csv", infer_schema=False)
    assert visits.height == N_VISITS
    assert set(visits["CSN"].str.len_chars()) == {8}
    assert all(name in set(visits["CSN"]) or len(name) == 9 for name in set(labs["CSN"]))
    for name in ("numerics.csv", "waveform_summary.csv", "truth.csv"):
        assert pl.read_csv(simulated / name, infer_schema=False).height
    listed = [(simulated / f"split_random_{name}.csv").read_text().split() for name in ("train", "val", "test")]
    assert sorted(itertools.chain.from_iterable(listed)) == sorted(visits["CSN"])
    for kind in ("II", "Pleth", "Resp"):
        for header in simulated.glob(f"waveforms/*/*/{kind}/*.hea"):
            csn = header.parent.parent.name
            assert header.parent.parent.parent.name == csn[-3:]
            assert header.stem.rpartition("_")[0] == csn in set(visits["CSN"])


def test_records_read_as_wfdb_reads_them(simulated):
    headers = sorted(simulated.glob("waveforms/*/*/*/*.hea"))
    assert {header.parent.name for header in headers} == {"II", "Pleth", "Resp"}
    for header in headers:
        reference = wfdb.rdrecord(str(header.with_suffix("")))
        assert reference.fs == {"II": 500, "Pleth": 125, "Resp": 62.5}[header.parent.name]
        assert reference.sig_name == [header.parent.name]
        counts = wfdb.rdrecord(str(header.with_suffix("")), physical=False).d_signal
        assert reference.checksum[0] == int(counts.sum()) % 65536
        if header.parent.name == "II":
            record = open_record(header, root=simulated)
            np.testing.assert_allclose(record.read(), reference.p_signal[:, 0], atol=1e-5)


def test_flaws_of_the_real_tables_are_there():
    table = pl.concat([lab_table(1, visit_block(1, block, 4.0), 100) for block in range(3)])
    value, name = table["Component_value"], table["Component_name"]
    assert value.str.contains("^>[0-9]").any()
    assert (value == "Negative").any()
    assert name.str.contains("\n").any()
    assert name.str.contains(",").any()
    assert (table["Order_time"] == "").any()
    assert (table["CSN"].str.len_chars() == 9).any()
    assert any("90+" in visit_table(1, visit_block(1, block, 4.0))["Age"].to_list() for block in range(3))
    assert table.is_duplicated().any()
    assert (table["Order_time"] > "2262-04-12").any()
    blocks = [visit_block(1, block, 4.0) for block in range(3)]
    assert any(len(np.unique(block.patient)) < 100 for block in blocks)
    assert any((block.time_ND[:, 0] < block.start_NS[:, 0]).any() for block in blocks)
    assert any((~block.has_waveforms).any() for block in blocks)


def test_official_lists_are_patient_disjoint(simulated):
    visits = read_visits(simulated / "visits.csv")[0]
    for kind in ("random", "chrono"):
        split = official_split(simulated, kind, visits)
        table = pl.DataFrame({"patient": visits["MRN"], "split": split})
        assert (table.group_by("patient").agg(pl.col("split").n_unique())["split"] == 1).all()


def test_cohort_places_draws_and_records_where_the_law_put_them(simulated):
    cohort = mcmed_cohort(CohortConfig(kind="mcmed", path=str(simulated)), seed=1)
    flow = dict(cohort.flow)
    assert flow["rows in labs.csv"] == pl.read_csv(simulated / "labs.csv", infer_schema=False).height
    records, draws, found = set(cohort.records["start"].to_list()), set(), 0
    for block in (visit_block(4, number, HOURS) for number in range(2)):
        for row in np.flatnonzero(block.has_labs & block.has_waveforms & (block.number < N_VISITS)):
            lasting = block.stop_NS[row] - block.start_NS[row] >= 1
            starts_us = np.round(block.start_NS[row, lasting] * 1e6).astype(np.int64)
            starts = set((block.arrival[row] * 1_000_000 + starts_us).tolist())
            found += len(starts)
            if starts & records:
                times = block.time_ND[row][np.isfinite(block.time_ND[row])]
                draws |= set(((block.arrival[row] + times) * 1e6).astype(np.int64).tolist())
                records -= starts
    assert records == set()
    assert cohort.records.height == found - flow["- no base time"] > 0
    assert set(cohort.draws["time"].to_list()) == draws
    assert set(cohort.reference["source"]) == {"paper", "truth"}
    for other in ({"anchor": "result"}, {"lag_minutes": 5.0}, {"limits": "file"}):
        other = mcmed_cohort(CohortConfig(kind="mcmed", path=str(simulated), **other), seed=1)
        assert set(other.reference["source"]) == {"paper"}


@pytest.mark.parametrize("law", component_laws(), ids=lambda law: law.component)
def test_results_rise_with_the_level_and_cross_the_limits_at_the_stated_shares(law):
    level = norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    value = law.value(level)
    assert (np.diff(value) >= 0).all()
    for direction, limit, share in (("low", law.low, law.p_low), ("high", law.high, law.p_high)):
        if not np.isnan(limit):
            abnormal = value < limit if direction == "low" else value > limit
            assert abnormal.mean() == pytest.approx(share, abs=0.06)
            edge = law.edge(direction)
            clear = np.abs(level - edge) > 1e-4
            beyond = level < edge if direction == "low" else level > edge
            np.testing.assert_array_equal(abnormal[clear], beyond[clear])
            if law.component in PLANTED:
                assert abnormal.mean() > 0.26


def test_nuisance_outweighs_every_effect():
    assert all(effect.nuisance > 1 for effect in LAW)
    assert len({f"{law.component}{side}" for law in component_laws() if law.component in PLANTED
                for side in ("low", "high") if not np.isnan(getattr(law, side))}) == 8  # fmt: skip


def test_parameters_have_the_stated_moments():
    rng = np.random.default_rng(0)
    level = np.stack([levels(rng, (4000, 2)) for _ in PLANTED], axis=2)
    assert np.corrcoef(level[:, 0, 0], level[:, 1, 0])[0, 1] == pytest.approx(LEVEL_CORRELATION, abs=0.02)
    nuisance = rng.standard_normal((4000, len(LAW)))
    found = np.array(
        [parameters(rng, np.array([5.0, 15.0]), np.array([0.0, 1e6]), level[i], nuisance[i]) for i in range(4000)]
    )
    for number, effect in enumerate(LAW):
        own = level[:, 0, PLANTED.index(effect.component)]
        slope = np.polyfit(own, found[:, 0, number], 1)[0]
        assert slope == pytest.approx(effect.size, rel=0.15)
        assert found[:, 0, number].std() == pytest.approx(abs(effect.size) * np.sqrt(1 + effect.nuisance**2), rel=0.05)
        between = (found[:, 0, number] - found[:, 1, number]).std()
        assert between == pytest.approx(abs(effect.size) * effect.nuisance * np.sqrt(2 * WINDOW_SHARE), rel=0.05)


def test_a_window_shows_the_level_of_the_nearest_draw():
    level_DC = np.zeros((3, len(PLANTED)))
    level_DC[1] = 1000.0
    time_D = np.array([0.0, 100.0, 200.0])
    found = parameters(np.random.default_rng(0), np.array([5.0, 45.0, 55.0, 145.0, 155.0]), time_D, level_DC,
                       np.zeros(len(LAW)))  # fmt: skip
    shows = np.abs(found[:, 0]) > 100
    assert shows.tolist() == [False, False, True, True, False]


def test_waves_move_as_the_law_says():
    person = random_person(np.random.default_rng(1))
    still = np.zeros((3, len(LAW)))
    moved = still.copy()
    moved[:] = [effect.size for effect in LAW]
    rhythm_B = rhythm(np.random.default_rng(2), still, person, 30.0)
    centre, width, amplitude = waves(still, rhythm_B, person.electrode_V)
    centre_2, width_2, amplitude_2 = waves(moved, rhythm_B, person.electrode_V)
    size = {effect.parameter: effect.size for effect in LAW}
    np.testing.assert_allclose(amplitude_2[:, 4] / amplitude[:, 4], np.exp(size["T amplitude, log"]))
    np.testing.assert_allclose(width_2[:, 4] / width[:, 4], np.exp(size["T width, log"]))
    np.testing.assert_allclose(width_2[:, 2] / width[:, 2], np.exp(size["QRS width, log"]))
    np.testing.assert_allclose(centre_2[:, 4] - centre[:, 4], size["QT, s"])
    np.testing.assert_allclose(centre_2[:, 0] - centre[:, 0], -size["PR, s"])


def test_truth_per_window_agrees_with_every_window_simulated_plainly():
    """All pairs of 4000 visits at 60 min, window by window with ``parameters``, against the Monte Carlo's shortcut."""
    rng = np.random.default_rng(3)
    law = next(law for law in component_laws() if law.component == "CALCIUM")
    column = [effect.component for effect in LAW].index("CALCIUM")
    place = PLANTED.index("CALCIUM")
    score, label = [], []
    time_ND, n_draws_N, start_NS, stop_NS = visit_times(rng, 4000, 1.0)
    for n in range(4000):
        middle = np.concatenate(
            [a + 10.0 * np.arange(int((b - a) / 10 + 1e-9)) + 5 for a, b in zip(start_NS[n], stop_NS[n], strict=True)]
        )
        if not len(middle):
            continue
        level_DC = np.stack([levels(rng, (1, time_ND.shape[1]))[0] for _ in PLANTED], axis=1)
        found = parameters(rng, middle, time_ND[n], level_DC, rng.standard_normal(len(LAW)))[:, column]
        start_us, time_us = np.round((middle - 5) * 1e6), time_ND[n, : n_draws_N[n]] * 1e6
        window, draw, _ = pair_windows(
            start_us.astype(np.int64), time_us.astype(np.int64), n, seed=0, horizons=(60,)
        )  # fmt: skip
        score.append(found[window] / LAW[column].size)
        label.append(law.value(level_DC[draw, place]) > law.high)
    plain = auroc(np.concatenate(score), np.concatenate(label))
    truth = np.mean([batch_truth(batch, 1.0)["CALCIUM high", 60, "window"][0] for batch in range(4)])
    assert truth == pytest.approx(plain, abs=0.012)


def test_the_window_taken_by_chance_lies_in_each_epoch_as_often_as_its_windows():
    rng = np.random.default_rng(4)
    times = visit_times(rng, 30_000, 1.0)
    seen = _see(rng, times, np.zeros(30_000, np.int64), 60)
    share_ND = seen.counts_ND / seen.counts_ND.sum(axis=1, keepdims=True)
    chosen_ND = np.arange(share_ND.shape[1]) == seen.chosen_N[:, None]
    assert (seen.counts_ND[chosen_ND] > 0).all()
    np.testing.assert_allclose(chosen_ND.mean(axis=0), share_ND.mean(axis=0), atol=0.01)
    assert share_ND.mean(axis=0)[1] > 0.1


def test_the_best_score_of_a_draw_agrees_with_solving_its_covariance_matrix():
    rng = np.random.default_rng(0)
    k, n_visits = 1.3, 40
    counts_ND = rng.integers(0, 3, (n_visits, 4)) * rng.integers(1, 40, (n_visits, 4))
    counts_ND[:, 1] = np.maximum(counts_ND[:, 1], 1)
    level_ND, visit_part_N = levels(rng, (n_visits, 4)), rng.standard_normal(n_visits)
    seen = _Seen(np.arange(n_visits), np.full(n_visits, 2), counts_ND, np.zeros(n_visits, int), np.full(n_visits, 4))
    found, mean_N = _draw_score(seen, level_ND, visit_part_N, np.random.default_rng(7), k, {"high": 0.5, "low": -0.4})
    noise_ND = np.random.default_rng(7).standard_normal((n_visits, 4))
    for n in range(n_visits):
        shown = np.flatnonzero(counts_ND[n])
        noise = k * np.sqrt(WINDOW_SHARE / counts_ND[n, shown])
        y = level_ND[n, shown] + visit_part_N[n] + noise_ND[n, shown] * noise
        same = np.eye(len(shown))
        covariance = LEVEL_CORRELATION + (1 - LEVEL_CORRELATION) * same + k**2 * (1 - WINDOW_SHARE) + np.diag(noise**2)
        towards = np.where(shown == 2, 1.0, LEVEL_CORRELATION)
        weights = np.linalg.solve(covariance, towards)
        sd = np.sqrt(1 - weights @ towards)
        assert found["high"][n] == pytest.approx(norm.sf((0.5 - weights @ y) / sd), abs=1e-9)
        assert found["low"][n] == pytest.approx(norm.cdf((-0.4 - weights @ y) / sd), abs=1e-9)
        assert mean_N[n] == pytest.approx(np.average(y, weights=counts_ND[n, shown]))


def test_truth_per_draw_is_at_least_that_of_its_windows_and_unplanted_targets_have_one_half():
    table = combine([batch_truth(batch, 0.5) for batch in range(3)], read_targets())
    assert table.height == 108 * 3 * 3
    assert (table.filter(pl.col("auroc") == 0.5)["target"].n_unique()) == 100
    planted = table.filter(pl.col("auroc") != 0.5)
    wide = planted.pivot(on="level", index=["target", "horizon_min"], values="auroc")
    assert (wide["draw"] > wide["draw_mean"]).all()
    assert (wide["draw_mean"] > wide["window"]).all()
    assert planted["auroc"].min() > 0.59
    assert planted["auroc"].max() < 0.86


def test_one_window_alone_gives_the_closed_form(monkeypatch):
    """With one draw and no window noise the AUROC is that of two correlated normal numbers."""
    monkeypatch.setattr("anyecg.loaders.sim_law.MAX_DRAWS", 1)
    truth = np.mean([batch_truth(batch, 0.5)["POTASSIUM high", 60, "window"][0] for batch in range(5)])
    k = nuisance_of("POTASSIUM")
    law = next(law for law in component_laws() if law.component == "POTASSIUM")
    rng = np.random.default_rng(0)
    level = rng.standard_normal(400_000)
    plain = auroc(level + k * rng.standard_normal(400_000), level > law.edge("high"))
    assert truth == pytest.approx(plain, abs=0.006)


def test_names_are_unique_and_do_not_follow_the_order_of_visits():
    names = name_visits(1, np.arange(20_000))
    assert len(set(names)) == 20_000
    assert all(len(name) == 8 for name in names)
    assert abs(np.corrcoef(names.astype(int), np.arange(20_000))[0, 1]) < 0.05


def test_done_file_says_what_was_asked(simulated):
    document = json.loads((simulated / "simulation.json").read_text())
    assert (document["n_visits"], document["hours"], document["seed"]) == (N_VISITS, HOURS, 4)
    assert [path.name for path in simulated.iterdir() if path.name.startswith(".")] == []
