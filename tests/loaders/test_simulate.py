import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import wfdb
from mpi4py import MPI
from scipy.stats import norm

from anyecg.kernels.auroc import auroc
from anyecg.loaders.cohort import CohortConfig
from anyecg.loaders.errors import CohortError
from anyecg.loaders.mcmed import mcmed_cohort, official_split, read_visits
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
from anyecg.loaders.sim_tables import name_visits
from anyecg.loaders.sim_truth import batch_truth, combine, nuisance_of
from anyecg.loaders.sim_waveforms import draw_person, rhythm, waves
from anyecg.loaders.simulate import simulate
from anyecg.loaders.targets import read_targets
from tests.conftest import anyecg, on_ranks

N_VISITS, HOURS = 12, 0.4


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "mcmed"
    done = anyecg("simulate", "--out", folder, "--visits", N_VISITS, "--hours", HOURS, "--seed", 4, "--ranks", 1)
    assert done.returncode == 0, done.stderr
    return folder


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def test_same_bytes_on_three_ranks_and_from_the_same_command_twice(simulated, tmp_path):
    arguments = ("--visits", N_VISITS, "--hours", HOURS, "--seed", 4)
    done = on_ranks(3, "simulate", "--out", tmp_path / "again", *arguments)
    assert done.returncode == 0, done.stderr
    assert hashes(simulated) == hashes(tmp_path / "again")
    kept = anyecg("simulate", "--out", simulated, *arguments, "--ranks", 1)
    assert "kept" in kept.stdout


def test_a_stopped_simulation_starts_anew_and_ends_with_the_same_bytes(simulated, tmp_path, monkeypatch):
    monkeypatch.setattr("anyecg.loaders.simulate.N_BATCHES", 2)
    half = tmp_path / "half"
    (half / ".parts").mkdir(parents=True)
    (half / "waveforms" / "999" / "90000999").mkdir(parents=True)
    simulate(half, n_visits=N_VISITS, hours=HOURS, seed=4, comm=MPI.COMM_SELF)
    without_truth = {name: value for name, value in hashes(simulated).items() if name != "truth.csv"}
    assert {name: value for name, value in hashes(half).items() if name != "truth.csv"} == without_truth


def test_refuses_a_folder_that_holds_something_else(simulated, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for folder, visits in ((tmp_path, 5), (simulated, 5), (tmp_path / "new", 0)):
        with pytest.raises(CohortError):
            simulate(folder, n_visits=visits, hours=HOURS, seed=4, comm=MPI.COMM_SELF)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_layout_is_that_of_mc_med(simulated):
    visits = pl.read_csv(simulated / "visits.csv", infer_schema=False)
    labs = pl.read_csv(simulated / "labs.csv", infer_schema=False)
    assert visits.height == N_VISITS
    assert set(labs["CSN"]) <= set(visits["CSN"]) | {name for name in labs["CSN"] if name.startswith("99")}
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
    from anyecg.loaders.sim_tables import lab_table

    table = pl.concat([lab_table(1, visit_block(1, block, 4.0), 100) for block in range(3)])
    value, name = table["Component_value"], table["Component_name"]
    assert value.str.contains("^>[0-9]").any()
    assert (value == "Negative").any()
    assert name.str.contains("\n").any()
    assert name.str.contains(",").any()
    assert (table["Order_time"] == "").any()
    assert table["CSN"].str.starts_with("99").any()
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


def test_cohort_counts_every_row_and_places_draws_where_the_law_put_them(simulated):
    cohort = mcmed_cohort(CohortConfig(kind="mcmed", path=str(simulated)), seed=1)
    flow = dict(cohort.flow)
    rows = pl.read_csv(simulated / "labs.csv", infer_schema=False).height
    assert flow["rows in labs.csv"] == rows
    block = visit_block(4, 0, HOURS)
    drawn = np.isfinite(block.time_ND) & block.has_labs[:, None]
    expected = (block.arrival[:, None] + block.time_ND)[drawn] * 1e6
    assert set(cohort.draws["time"].to_list()) <= set(expected[: len(expected)].astype(np.int64).tolist())
    starts = (block.arrival[:, None] * 1e6 + block.start_NS * 1e6)[block.has_waveforms]
    assert set(cohort.records["start"].to_list()) <= set(np.round(starts.ravel()).astype(np.int64).tolist())
    assert set(cohort.reference["source"]) == {"paper", "truth"}


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
    person = draw_person(np.random.default_rng(1))
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


def test_truth_per_window_agrees_with_the_whole_simulation_done_plainly():
    """All windows of the first draws, simulated one by one with ``parameters``, against the Monte Carlo's shortcut."""
    rng = np.random.default_rng(3)
    law = next(law for law in component_laws() if law.component == "CALCIUM")
    column = [effect.component for effect in LAW].index("CALCIUM")
    score, label = [], []
    time_ND, n_draws_N, start_NS, stop_NS = visit_times(rng, 6000, 0.5)
    for n in range(6000):
        level_DC = np.stack([levels(rng, (1, time_ND.shape[1]))[0] for _ in PLANTED], axis=1)
        nuisance = rng.standard_normal(len(LAW))
        for start, stop in zip(start_NS[n], stop_NS[n], strict=True):
            middle = start + 10.0 * np.arange(int((stop - start) / 10 + 1e-9)) + 5
            if not len(middle):
                continue
            found = parameters(rng, middle, time_ND[n], level_DC, nuisance)[:, column] / LAW[column].size
            for draw in range(n_draws_N[n]):
                inside = (middle - 5 >= time_ND[n, draw] - 900) & (middle + 5 <= time_ND[n, draw] + 900)
                score.append(found[inside])
                label.append(np.full(inside.sum(), law.value(level_DC[draw, PLANTED.index("CALCIUM")]) > law.high))
    plain = auroc(np.concatenate(score), np.concatenate(label))
    truth = batch_truth(0, 0.5)["CALCIUM high", 15, "window"][0]
    assert truth == pytest.approx(plain, abs=0.025)


def test_truth_per_draw_is_at_least_that_of_its_windows_and_unplanted_targets_have_one_half():
    batches = [batch_truth(batch, 0.5) for batch in range(2)]
    table = combine(batches, read_targets())
    assert table.height == 108 * 3 * 2
    assert (table.filter(pl.col("auroc") == 0.5)["target"].n_unique()) == 100
    planted = table.filter(pl.col("auroc") != 0.5)
    wide = planted.pivot(on="level", index=["target", "horizon_min"], values="auroc")
    assert (wide["draw"] > wide["window"]).all()
    assert planted["auroc"].min() > 0.59
    assert planted["auroc"].max() < 0.86


def test_one_window_alone_gives_the_closed_form(monkeypatch):
    """With one draw and no window noise the AUROC is that of two correlated normal numbers."""
    monkeypatch.setattr("anyecg.loaders.sim_law.MAX_DRAWS", 1)
    truth = batch_truth(0, 0.5)["POTASSIUM high", 60, "window"][0]
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
    assert not (simulated / ".parts").exists()
