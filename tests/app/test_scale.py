"""``anyecg scale`` on a finished run, on one and two real ranks, and its page; no speed is tested."""

import csv
import json
import re
import resource
import shutil

import pytest
from mpi4py import MPI

from anyecg.app.cli import main
from anyecg.app.config import load_config
from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import file_hash, write_document
from anyecg.slurm.scale import measure
from anyecg.slurm.scale_numbers import KINDS, PARTS

from ..conftest import anyecg
from ..slurm.made_scale import made_documents
from .test_report import Checker


@pytest.fixture
def run(small_run, tmp_path):
    """Return a copy of what the small run has, to be measured."""
    run = tmp_path / "run"
    for name in ("shards", "cohort"):
        shutil.copytree(small_run / name, run / name)
    for name in ("config.toml", "scores.h5"):
        shutil.copy(small_run / name, run / name)
    return run


def hashes(folder):
    return {path: file_hash(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_loads_nothing(text):
    page = Checker()
    page.feed(text)
    assert page.loads == []
    assert not re.search(r"url\((?!#)|@import|<script|<img|<iframe", text)


def test_one_and_two_ranks_are_measured_and_the_run_is_left_as_it_was(run, tmp_path):
    left_over = run / "scale/ranks-2/shards/shard-00000.h5"
    left_over.parent.mkdir(parents=True)
    left_over.write_bytes(b"of a killed run")
    (run / "scale/nodes-4.json").write_text("of another experiment")
    before = {**hashes(run / "shards"), **hashes(run / "cohort"), run / "scores.h5": file_hash(run / "scores.h5")}
    done = anyecg("scale", run / "config.toml", f"folder={run}", "--ranks=1,2", "--seconds=0.2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seconds_left=" in done.stderr
    assert before == {path: file_hash(path) for path in before}
    assert sorted(path.name for path in run.iterdir()) == ["cohort", "config.toml", "scale", "scores.h5", "shards"]
    assert sorted(path.name for path in (run / "scale").rglob("*") if path.is_dir()) == [
        "log", "log", "ranks-1", "ranks-2"
    ]  # fmt: skip
    assert sorted(path.name for path in (run / "scale").glob("*.*")) == [
        ".lock", "config.toml", "forecast.csv", "ranks-1.json", "ranks-2.json", "scale.csv", "scale.html", "scale.json"
    ]  # fmt: skip

    rows = rows_of(run / "scale/scale.csv")
    assert {(row["part"], row["kind"], row["n"]) for row in rows} == {
        (part, kind, n) for part in PARTS for kind in KINDS for n in "12"
    }
    for row in rows:
        assert float(row["windows_per_s"]) > 0
        assert int(row["blocks"]) >= 2
        assert 0 <= float(row["waiting_share"]) <= 1
        assert float(row["waiting_share"]) == pytest.approx(
            float(row["waiting_for_data"]) + float(row["waiting_for_others"])
        )
    training = {(row["kind"], row["n"]): row for row in rows if row["part"] == "finetune"}
    assert [training[key]["batch"] for key in (("strong", "2"), ("weak", "1"), ("weak", "2"))] == ["16", "16", "32"]
    assert float(training["weak", "2"]["learning_rate"]) == pytest.approx(1e-3 * 2**0.5)
    evaluated = {(row["kind"], row["n"]): row for row in rows if row["part"] == "evaluate"}
    assert [evaluated[kind, "2"]["replicates"] for kind in KINDS] == ["200", "400"]
    assert {row["note"] for row in evaluated.values()} == {"the run's scores"}
    assert {row["reason"] for row in rows_of(run / "scale/forecast.csv")} == {"2 points; an interval wants 3 or more"}
    assert_loads_nothing((run / "scale/scale.html").read_text())
    for path in (run / "scale").glob("*.json"):
        assert str(tmp_path) not in path.read_text()


def test_on_a_disk_that_refuses_a_write_there_is_one_line_and_nothing_is_left(run, tmp_path):
    config = load_config(run / "config.toml", [f"folder={run}"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(ShardError, match=r"File too large.*free space or mend the disk, then run again"):
            measure(config, MPI.COMM_SELF, parts=["shard"], seconds=0.1, folder=tmp_path / "work")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "work").iterdir()) == []


def test_without_scores_made_up_ones_are_evaluated_and_the_table_says_so(run, tmp_path):
    (run / "scores.h5").unlink()
    config = load_config(run / "config.toml", [f"folder={run}"])
    found = measure(config, MPI.COMM_SELF, parts=["evaluate"], seconds=0.1, folder=tmp_path / "work")
    assert {one["note"] for one in found["measured"]} == {"made-up scores"}
    assert [block["windows"] > 0 for block in found["measured"][0]["blocks"]]
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--ranks=1,x"], "--ranks 1,x; wanted whole numbers, each once, as in 1,2,4,8"),
        (["--ranks=0"], "--ranks 0; wanted whole numbers"),
        (["--nodes=2,2"], "--nodes 2,2; wanted whole numbers"),
        (["--ranks=1", "--parts=shard,bake"], "--parts shard,bake; wanted some of shard,stream,finetune,evaluate"),
        (["--ranks=1", "--seconds=0"], "--seconds 0; wanted more than 0 and at most 3600"),
        (["--ranks=1", "--seconds=nan"], "--seconds nan; wanted more than 0"),
        (["shard.preset=none", "--ranks=1"], "shard is not done for this config, or its output is gone"),
        (["finetune.model=net1d", "finetune.weights=no.pth", "--ranks=1"], "no.pth: no such file; give ECGFounder's"),
        (["--gather"], "scale: nothing measured; run 'anyecg scale' with --nodes or --ranks first"),
        (["--measure=x.txt"], "--measure x.txt; wanted a name that ends in .json"),
        (["--measure=x.json", "--largest=0"], "--largest 0; wanted the ranks of the largest job"),
    ],
)
def test_wrong_values_are_one_line_before_anything_runs(small_run, capsys, more, said):
    assert main(["scale", str(small_run / "config.toml"), *more]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (small_run / "scale").exists()


def gathered(folder, documents, *names):
    (folder / "scale").mkdir(parents=True)
    for document, name in zip(documents, names, strict=True):
        write_document(folder / "scale" / name, "anyecg-scale", document)
    return main(["scale", str(folder / "config.toml"), f"folder={folder}", "--gather"])


@pytest.fixture
def site(small_run, tmp_path):
    """Return a run folder in which nothing is but a config."""
    folder = tmp_path / "site"
    folder.mkdir()
    shutil.copy(small_run / "config.toml", folder / "config.toml")
    return folder


def test_four_sizes_of_nodes_give_tables_and_a_page_with_intervals(site, capsys):
    assert gathered(site, made_documents(), *(f"nodes-{n}.json" for n in (1, 2, 4, 8))) == 0
    said = "32 nodes: more than 2 times the largest measurement"
    text = capsys.readouterr().out
    assert "strong scaling over nodes" in text
    assert said in text
    assert said in (site / "scale/scale.html").read_text()
    assert_loads_nothing((site / "scale/scale.html").read_text())
    rows = rows_of(site / "scale/forecast.csv")
    assert all(float(row["hours_low"]) < float(row["hours"]) < float(row["hours_high"]) for row in rows)
    table = json.loads((site / "scale/scale.json").read_text())
    assert (len(table["points"]), len(table["laws"])) == (32, 8)
    assert [row["case"] for row in table["storage"]] == ["cap binds", "cap does not bind"]


def test_cpu_parts_and_gpu_parts_of_a_size_may_come_from_jobs_of_their_own(site):
    documents = [*made_documents((1, 2), gpus=0, ranks=64), *made_documents((1, 2), gpus=8)]
    for number, document in enumerate(documents):
        parts = PARTS[1:3] if number >= 2 else (PARTS[0], PARTS[3])
        document["measured"] = [one for one in document["measured"] if one["part"] in parts]
    names = "nodes-1-cpu.json", "nodes-2-cpu.json", "nodes-1-gpu.json", "nodes-2-gpu.json"
    assert gathered(site, documents, *names) == 0
    gpus = {row["part"]: row["gpus"] for row in rows_of(site / "scale/scale.csv") if row["n"] == "2"}
    assert gpus == {"shard": "0", "stream": "16", "finetune": "16", "evaluate": "0"}


def test_measurements_that_do_not_belong_together_are_refused(site, capsys):
    documents = made_documents((1, 2))
    documents[1]["data"]["index_hash"] = "2"
    assert gathered(site, documents, "nodes-1.json", "nodes-2.json") == 2
    assert "measurements of different shards" in capsys.readouterr().err
    shutil.rmtree(site / "scale")
    documents = made_documents((1, 2))
    documents[0]["largest"] = 8
    assert gathered(site, documents, "nodes-1.json", "nodes-2.json") == 2
    assert "measure every size with the same --largest" in capsys.readouterr().err
    shutil.rmtree(site / "scale")
    assert gathered(site, made_documents((2, 2)), "nodes-2.json", "nodes-2-b.json") == 2
    assert "shard on 2 nodes is in nodes-2-b.json too" in capsys.readouterr().err
