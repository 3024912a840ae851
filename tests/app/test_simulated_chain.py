"""The whole chain on a small simulated double of MC-MED, with marked patient fields and damaged records."""

import csv
import itertools
import re
import shutil

import numpy as np
import polars as pl
import pytest
from mpi4py import MPI

from anyecg.loaders.cohort import open_cohort
from anyecg.loaders.simulate import simulate
from anyecg.loaders.stream import open_index
from anyecg.loaders.values import draw_values
from anyecg.train.evaluate import read_results

from ..conftest import REPOSITORY, anyecg
from ..train.made import publish_made

MARK = "Zq7marked"
PATIENT_FIELDS = ("MRN", "Race", "Ethnicity", "Means_of_arrival", "CC", "ED_dispo", "Triage_acuity")
DAMAGES = ("no signal file", "empty header", "cut short", "doubled", "permuted")


def mark_fields(path):
    """Give every patient a mark of its own in every field that names or describes it."""
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    for number, row in enumerate(rows):
        for name in PATIENT_FIELDS:
            place = head.index(name)
            row[place] = f"{row[place]}{MARK}" if name == "MRN" else f"{MARK}{number}"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def damage(root):
    """Damage one record in each way; return how many headers there are then."""
    folders = [folder for folder in sorted(root.glob("waveforms/*/*/II")) if len(list(folder.glob("*.hea"))) >= 2]
    assert len(folders) >= len(DAMAGES)
    for what, folder in zip(DAMAGES, folders, strict=False):
        first, second = sorted(folder.glob("*.hea"))[:2]
        signal = first.with_suffix(".dat")
        if what == "no signal file":
            signal.unlink()
        elif what == "empty header":
            first.write_text("")
        elif what == "cut short":
            signal.write_bytes(signal.read_bytes()[:1000])
        elif what == "doubled":
            name = f"{folder.parent.name}_77"
            (folder / f"{name}.hea").write_text(first.read_text().replace(first.stem, name))
            shutil.copy(signal, folder / f"{name}.dat")
        else:
            later = f"{folder.parent.name}_99"
            (folder / f"{later}.hea").write_text(first.read_text().replace(first.stem, later))
            signal.rename(folder / f"{later}.dat")
            first.unlink()
            assert second.exists()
    return len(list(root.glob("waveforms/*/*/II/*.hea")))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Return (run folder, number of lead II headers, what the command printed)."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyecg.loaders.sim_truth.VISITS_A_BATCH", 3000)
        simulate(folder / "mcmed", n_visits=60, hours=0.8, seed=2, comm=MPI.COMM_SELF)
    mark_fields(folder / "mcmed" / "visits.csv")
    n_headers = damage(folder / "mcmed")
    done = anyecg(
        "run", REPOSITORY / "slurm" / "configs" / "mcmed.toml", f"cohort.path={folder / 'mcmed'}",
        f"folder={folder / 'run'}", "finetune.epochs=1", "finetune.batch_size=64", "shard.windows_per_draw=6",
        "shard.max_bad_fraction=0.2", "evaluate.n_replicates=50", "cohort.test_fraction=0.4",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run", n_headers, done.stdout + done.stderr


def test_every_target_horizon_and_level_has_its_row(chain):
    rows = read_results(chain[0] / "results.json")
    assert len(rows) == 108 * 3 * 3
    assert len({(row["target"], row["horizon_min"], row["level"]) for row in rows}) == len(rows)


def test_the_report_shows_ours_beside_the_best_possible_and_the_papers(chain):
    text = (chain[0] / "report.html").read_text()
    truth = pl.read_csv(chain[0].parent / "mcmed" / "truth.csv").filter(
        (pl.col("target") == "POTASSIUM high") & (pl.col("horizon_min") == 60) & (pl.col("level") == "window")
    )["auroc"][0]
    (row,) = (
        row for row in read_results(chain[0] / "results.json")
        if (row["target"], row["horizon_min"], row["level"]) == ("POTASSIUM high", 60, "window")
    )  # fmt: skip
    table = text[text.index("window level, 60 min") :]
    cells = re.search(r'<th scope="row">POTASSIUM high.*?</tr>', table, re.DOTALL)[0]
    found = re.findall(r"<td>([0-9.–]+)", cells)
    assert found[:3] == [f"{row['auroc']:.3f}", f"{truth:.3f}", "0.678"]
    assert text.count('<details class="group" data-horizon') >= 9


def test_damaged_records_are_counted_and_the_count_is_exact(chain):
    run, n_headers, _ = chain
    cohort, counts = open_cohort(run / "cohort"), open_index(run / "shards").head["counts"]
    flow = dict(cohort.flow)
    in_cohort = len({path.rsplit("/", 3)[1] for path in cohort.records["path"]})
    assert flow["records found"] == cohort.records.height + cohort.quarantine.height
    assert flow["records found"] <= n_headers
    assert in_cohort == flow["visits kept"]
    reasons = [reason.split(":")[0] for reason in cohort.quarantine["reason"]]
    assert reasons.count("unreadable") == flow["- unreadable"] == 1
    assert reasons.count("overlaps another record") == flow["- overlaps another record"] == 1
    assert counts["records"] == cohort.records.height
    dropped = sum(n for what, n in counts.items() if what.startswith("records dropped"))
    assert counts["records"] == counts["records kept"] + dropped
    assert sum(n for what, n in counts.items() if what.startswith("records dropped: unreadable")) == 2
    dropped = sum(n for what, n in counts.items() if what.startswith("windows dropped"))
    assert counts["windows cut"] == counts["windows kept"] + dropped


def test_tables_keep_every_row_or_count_it(chain):
    flow = dict(open_cohort(chain[0] / "cohort").flow)
    root = chain[0].parent / "mcmed"
    assert flow["rows in labs.csv"] == pl.read_csv(root / "labs.csv", infer_schema=False).height
    reasons = ("of an unknown visit", "of a component without target", "without order time", "not a number",
               "in another unit", "repeated in a draw", "contradicting another of the draw")  # fmt: skip
    assert flow["rows in labs.csv"] == flow["results"] + sum(flow.get(f"- {reason}", 0) for reason in reasons)
    assert flow["visits"] == flow["visits with draws"] + flow["- without a draw with results"]
    assert flow["visits with draws"] == flow["visits kept"] + flow["- without lead II waveforms"]


def test_no_mark_of_a_patient_reaches_a_log_table_report_model_or_terminal(chain):
    """R16: only the cohort's side table and the tables that name records may hold what describes one patient."""
    run, _, printed = chain
    visits = set(pl.read_csv(run.parent / "mcmed" / "visits.csv", infer_schema=False)["CSN"])
    assert MARK not in printed
    assert not visits & set(re.findall(r"\d{8}", printed))
    naming = ("records.parquet", "quarantine.parquet", "quarantine.csv", "side.parquet")
    for path in (path for path in run.rglob("*") if path.is_file() and not path.name.endswith(naming)):
        data = path.read_bytes()
        assert MARK.encode() not in data, path
        if path.suffix in (".log", ".csv", ".json", ".html", ".toml"):
            assert not visits & set(re.findall(r"\b\d{8}\b", data.decode())), path
        assert path.stat().st_mode & 0o077 == 0, path
    assert (run / "cohort" / "side.parquet").stat().st_mode & 0o077 == 0


def test_a_finished_model_is_judged_on_another_cohort_without_training(chain, tmp_path):
    run = chain[0]
    done = anyecg(
        "run",
        run / "config.toml",
        f"folder={tmp_path / 'judged'}",
        f"predict.model={run / 'model'}",
        "cohort.split=all",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    index = open_index(tmp_path / "judged" / "shards")
    assert set(np.unique(index.tables["visit_split"])) == {2}
    assert not (tmp_path / "judged" / "model").exists()
    assert (tmp_path / "judged" / "report.html").is_file()
    inside, outside = (read_results(folder / "results.json") for folder in (run, tmp_path / "judged"))
    assert all(b["n"] >= a["n"] for a, b in zip(inside, outside, strict=True))


def test_a_missing_model_or_weights_stop_the_run_before_any_work(tmp_path, chain):
    for override in ("predict.model=nowhere", "finetune.weights=nowhere.pth"):
        options = ["finetune.model=net1d"] * override.startswith("finetune")
        done = anyecg("run", chain[0] / "config.toml", f"folder={tmp_path / 'new'}", override, *options, cwd=tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert not list(itertools.chain((tmp_path / "new").glob("cohort"), (tmp_path / "new").glob("shards")))


def test_a_regression_is_judged_by_the_values_of_the_components(chain, tmp_path):
    run = shutil.copytree(chain[0], tmp_path / "run")
    index = open_index(run / "shards")
    n = len(index.components)
    model = publish_made(tmp_path / "model", index, head="regression", value_mean=[5.0] * n, value_sd=[2.0] * n)
    shutil.copy(chain[0] / "model/curve.csv", model)
    done = anyecg(
        "run",
        run / "config.toml",
        f"folder={run}",
        f"predict.model={model}",
        'evaluate.levels=["draw"]',
        "evaluate.horizons_min=[60]",
    )
    assert done.returncode == 0, done.stderr
    assert "Spearman" in done.stdout
    rows = read_results(run / "results.json", "regression")
    assert [row["target"] for row in rows] == list(index.components)
    values = draw_values(index, ["test"])
    units = np.unique(index.tables["pair_draw"][index.pairs_of("test", 60)])
    assert [row["n"] for row in rows] == (~np.isnan(values[units])).sum(0).tolist()
    assert sum(row["n"] for row in rows) > 100
    text = (run / "report.html").read_text()
    assert "Estimated values" in text
    assert "How well targets are told apart" not in text
