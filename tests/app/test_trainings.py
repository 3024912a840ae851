"""Trainings from the page: the same counts, config and run as on the command line, in a process that stays."""

import csv
import fcntl
import json
import math
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import h5py
import polars as pl
import pytest
import tomli_w

from anyecg.app.config import load_config
from anyecg.app.trainings import Trainings, config_text, lock_holder, look
from anyecg.loaders.cohort import open_cohort
from anyecg.loaders.errors import AnyECGError, CohortError, ConfigError, ModelError
from anyecg.train.card import read_card

from ..conftest import DEMO, anyecg, write_small_config
from .test_server import Running

DATA = {"path": str(DEMO / "records"), "labels": str(DEMO / "labels.csv"), "seed": 3, "val_fraction": 0.2,
        "test_fraction": 0.3}  # fmt: skip
CHOICES = {"model": "resnet", "train": "scratch", "head": "multilabel", "lead": "", "epochs": 2, "batch_size": 16,
           "learning_rate": 0.001, "said": {}}  # fmt: skip


def test_the_counts_are_those_of_the_cohort_stage(tmp_path):
    config = write_small_config(tmp_path)
    found = look(DEMO / "records", tmp_path / "labels.csv", seed=3, val_fraction=0.2, test_fraction=0.3, said={})
    assert anyecg("cohort", config).returncode == 0
    cohort = open_cohort(tmp_path / "run" / "cohort")
    assert [list(line) for line in found["flow"]] == [list(line) for line in cohort.flow]
    split = cohort.visits["split"]
    for number, name in enumerate(("train", "val", "test")):
        of_split = cohort.visits.filter(split == number)
        assert found["splits"][name] == {
            "recordings": of_split.height, "patients": of_split["patient"].n_unique(),
        }  # fmt: skip
        draws = cohort.draws.filter(pl.Series(split.to_numpy()[cohort.draws["visit_row"].to_numpy()] == number))
        for target in found["targets"]:
            for value, what in ((1, "positive"), (0, "negative"), (-1, "missing")):
                assert target[what][number] == (draws[target["name"]] == value).sum()
    assert found["patients_in_two_splits"] == 0


@pytest.mark.parametrize(
    ("head", "rows"),
    [
        ("exclusive", "record,patient,a,b\nA00015,1,1,0\nA00022,2,0,1\n"),
        ("multilabel", "record,patient,a,b\nA00015,1,1,1\nA00022,1,0,\n"),
        ("regression", "record,patient,value:k\nA00015,1,4.2\nA00022,1,\nnone,3,1\n"),
    ],
)
def test_the_head_that_suits_the_labels_is_proposed_and_what_is_left_out_is_named(tmp_path, head, rows):
    (tmp_path / "labels.csv").write_text(rows)
    found = look(DEMO / "records", tmp_path / "labels.csv", seed=0, val_fraction=0, test_fraction=0.5, said={})
    assert found["head"] == head
    if head == "regression":
        assert sorted(map(tuple, found["left_out"])) == [("A00022", "no label"), ("none", "no such record")]
        assert sum(found["values"][0]["measured"]) == 1
    if head == "multilabel":
        assert found["patients_with_several"] == 1


def test_labels_of_no_recording_are_refused_with_names_of_both(tmp_path):
    (tmp_path / "labels.csv").write_text("record,patient,a\npatient15.ecg,1,1\n")
    with pytest.raises(CohortError, match=r"no such record 1.*asked for 'patient15.ecg'; there are 'A00\d{3}', 'A00"):
        look(DEMO / "records", tmp_path / "labels.csv", seed=0, val_fraction=0, test_fraction=0.5, said={})


def test_labels_apart_by_semicolons_are_the_same_labels(tmp_path):
    text = "record,patient,a\nA00015,1,1\nA00022,2,0\n"
    found = []
    for mark in ",;":
        (tmp_path / "labels.csv").write_text(text.replace(",", mark))
        found.append(look(DEMO / "records", tmp_path / "labels.csv", seed=0, val_fraction=0, test_fraction=0, said={}))
    assert found[0] == found[1]
    assert found[0]["targets"][0]["positive"][0] == 1


@pytest.mark.parametrize(
    ("leads", "said"), [((), ""), (("ECG",), ""), (("ECG", "V9"), "2 of the first 2 recordings lack")]
)
def test_leads_that_recordings_lack_are_told_before_the_training(tmp_path, leads, said):
    (tmp_path / "labels.csv").write_text("record,patient,a\nA00015,1,1\nA00022,2,0\n")
    found = look(
        DEMO / "records", tmp_path / "labels.csv", seed=0, val_fraction=0, test_fraction=0, said={}, leads=leads
    )
    assert found["lacking"].startswith(said)
    assert bool(found["lacking"]) == bool(said)


def test_the_config_says_what_was_chosen_and_is_one_that_the_command_line_takes(tmp_path):
    (tmp_path / "config.toml").write_text(config_text(DATA | CHOICES | {"model": "s4d", "epochs": 7}))
    config = load_config(tmp_path / "config.toml")
    assert (config.finetune.model, config.finetune.epochs, config.seed) == ("s4d", 7, 3)
    assert (config.cohort.path, config.folder) == (DATA["path"], str(tmp_path))


def test_a_model_to_start_from_decides_what_its_windows_are(small_run, tmp_path):
    card = read_card(small_run / "model") | {"fs": 250, "preset": "none", "windows_per_sample": 3, "join": "features"}
    text = config_text(DATA | CHOICES | {"train": "head"}, card, str(small_run / "model"))
    (tmp_path / "config.toml").write_text(text)
    config = load_config(tmp_path / "config.toml")
    assert (config.shard.fs, config.shard.preset, config.stream.windows_per_sample) == (250, "none", 3)
    assert (config.finetune.train, config.finetune.join) == ("head", "features")
    assert config.finetune.weights == str(small_run / "model")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "finetune.epochs"), ({"val_fraction": 0.6, "test_fraction": 0.5}, "must leave patients"),
        ({"train": "head"}, "wants a model to start from"), ({"head": "many"}, "finetune.head"),
    ],
)  # fmt: skip
def test_choices_that_no_config_can_have_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        config_text(DATA | CHOICES | changes)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", "x" * 65, "ö", "-x"])
def test_a_name_that_is_no_folders_is_refused(tmp_path, name):
    with pytest.raises(AnyECGError, match="a run's name is letters"):
        Trainings(tmp_path).start(name, config_text(DATA | CHOICES), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not toml =", "not TOML"),
        ("folder = '/elsewhere'", "set folder = '.'"),
        ("folder = '.'\n[finetune]\nepoch = 3", "nearest known key"),
        ("folder = '.'\n[finetune]\nweights = 'none'", "no such file"),
    ],
)
def test_a_config_that_is_none_is_refused_and_leaves_nothing(tmp_path, text, said):
    with pytest.raises(AnyECGError, match=said) as found:
        Trainings(tmp_path).start("run", text, {})
    assert "config.toml" not in str(found.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_refused_and_the_run_stays(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("folder = '.'")
    with pytest.raises(AnyECGError, match="of that name already"):
        Trainings(tmp_path).start("run", config_text(DATA | CHOICES), {})
    assert (tmp_path / "run" / "config.toml").read_text() == "folder = '.'"


def test_who_holds_a_lock_is_known_while_it_is_held(tmp_path):
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    path = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        assert lock_holder(path) == process.pid
        # To ask takes no lock itself.
        with path.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        process.stdin.close()
    assert lock_holder(path) is None
    assert lock_holder(tmp_path / "none") is None


@pytest.fixture(scope="module")
def runs(small_run, tmp_path_factory):
    """Return the folder of two finished runs of the same training, and one that failed."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("one", "two"):
        shutil.copytree(small_run, folder / name)
    (folder / "bad" / "log").mkdir(parents=True)
    (folder / "bad" / "config.toml").write_text("folder = '.'")
    (folder / "bad" / "log" / "run.log").write_text("started by the page\nanyecg run: /none: no such folder; give it\n")
    return folder


def test_the_state_of_a_run_is_what_its_folder_says(runs):
    states = {state["name"]: state for state in Trainings(runs).listed()}
    assert (states["one"]["state"], states["one"]["stage"]) == ("done", None)
    assert (states["bad"]["state"], states["bad"]["stage"]) == ("failed", "cohort")
    assert states["bad"]["said"] == "anyecg run: /none: no such folder; give it"


def test_the_journal_comes_in_parts_that_make_the_whole(runs):
    trainings, lines, after = Trainings(runs), [], 0
    while (found := trainings.details("one", after))["lines"]:
        lines, after = lines + found["lines"], found["next"]
    text = (runs / "one" / "log" / "finetune.jsonl").read_text()
    assert lines == [json.loads(line) for line in text.splitlines()]
    with (runs / "one" / "log" / "finetune.jsonl").open("a") as file:
        file.write('{"event": "step"')
    assert trainings.details("one", after)["lines"] == []
    assert {row["level"] for row in found["results"]} == {"draw"}


def test_runs_are_compared_as_the_command_line_does(runs, tmp_path):
    found = Trainings(runs).compared(["one", "two"], tmp_path / "x.csv")
    assert list(tmp_path.iterdir()) == []
    done = anyecg("compare", runs / "one", runs / "two", "--out", tmp_path / "wanted.csv")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "wanted.csv").open(newline="") as file:
        wanted = list(csv.DictReader(file))
    assert [model["name"] for model in found["models"]] == ["one", "two"]
    assert [row["target"] for row in found["rows"]] == [row["target"] for row in wanted]
    for row, other in zip(found["rows"], wanted, strict=True):
        if row["value"] is not None:
            assert row["value"] == pytest.approx(float(other["value"]), abs=1e-5)
        assert row["difference"] in (None, 0.0)


def test_runs_of_other_shards_are_refused_with_the_keys_that_differ(runs, tmp_path):
    other = tmp_path / "runs"
    for name in ("one", "two"):
        shutil.copytree(runs / name, other / name)
    config = other / "two" / "config.toml"
    tree = tomllib.loads(config.read_text())
    tree["shard"]["fs"] = 250
    config.write_text(tomli_w.dumps(tree))
    with h5py.File(other / "two" / "scores.h5", "r+") as file:
        file.attrs["index_hash"] = "0" * 16
    with pytest.raises(ModelError, match=r"other shards .*\(shard\.fs: 250\.?0? and "):
        Trainings(other).compared(["one", "two"], tmp_path / "x.csv")


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a server whose runs lie below one folder; none stays."""
    started = []

    def start_one():
        started.append(Running(tmp_path / f"tmp{len(started)}", "--runs", tmp_path / "runs"))
        return started[-1]

    yield start_one
    for server in started:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


def wait(server, wanted, seconds=240):
    """Wait until a run is in a state."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = server.json("/api/trainings/mine")
        if wanted(found):
            return found
        time.sleep(0.2)
    pytest.fail(f"not in time: {found}")


def steps_of(found):
    return [line["step"] for line in found["lines"] if line["event"] == "step"]


def stopped(server):
    """Stop the training; return the steps that its journal has."""
    server.json("/api/trainings/mine/stop", "POST", {})
    found = wait(server, lambda found: found["state"] != "running")
    assert (found["state"], found["stage"]) == ("stopped", "finetune")
    assert "asked to stop by signal" in found["said"]
    assert server.ask("/api/trainings/mine/stop", "POST", "{}")[0] == 422
    return steps_of(found)


def test_a_training_outlives_the_server_stops_when_asked_and_goes_on_where_it_was(start, tmp_path):
    with (DEMO / "labels.csv").open() as file:
        labels = "".join(file.readlines()[:41])
    server = start()
    batch = server.json("/api/batches", "POST")["batch"]
    assert server.send(batch, "of the ward.csv", labels.encode()) == 200
    wish = {**DATA, **CHOICES, "epochs": 5000, "labels": "", "labels_file": batch}
    config = server.json("/api/trainings/config", "POST", wish)["config"]
    # Steps are written one by one, so that the test sees the first.
    config = config.replace("[finetune]\n", "[finetune]\nlog_every = 1\nvalidate_every = 1\n")
    assert server.json("/api/trainings", "POST", {"name": "mine", "config": config, "labels_file": batch})
    assert server.ask("/api/trainings/mine/resume", "POST", "{}")[0] == 422
    wait(server, steps_of)
    assert server.stop() == 0
    server = start()
    (state,) = server.json("/api/trainings")["runs"]
    assert state["state"] == "running"
    first = stopped(server)
    best = max(server.json("/api/trainings/mine")["lines"], key=lambda line: line.get("val_score", -math.inf))["step"]
    (unfinished,) = (model for model in server.json("/api/models") if model["name"].startswith("mine"))
    assert unfinished["name"] == f"mine (not finished, step {best})"
    told = server.json(f"/api/models/{unfinished['id']}")
    assert (told["targets"], told["results"]) == (["atrial_fibrillation", "other_rhythm", "noise"], {})
    server.json("/api/trainings/mine/resume", "POST", {})
    wait(server, lambda found: len(steps_of(found)) > len(first))
    second = stopped(server)
    assert first == list(range(1, len(first) + 1))
    assert second == list(range(1, len(second) + 1))


def test_dropped_recordings_are_copied_for_their_owner_and_a_run_that_cannot_train_says_why(start, tmp_path):
    server = start()
    batch, labels = (server.json("/api/batches", "POST")["batch"] for _ in range(2))
    for name in ("A00015", "A00022"):
        for end in (".hea", ".mat"):
            assert server.send(batch, f"ward/{name}{end}", (DEMO / "records" / f"{name}{end}").read_bytes()) == 200
    assert server.send(labels, "x.csv", b"record,patient,a\nward/A00015,1,1\nward/A00022,1,0\n") == 200
    dropped = {"recordings": batch, "labels_file": labels}
    wish = {**DATA, **CHOICES, **dropped, "val_fraction": 0, "test_fraction": 0.9, "seed": 1}
    found = server.json("/api/trainings/look", "POST", wish)
    assert found["splits"]["test"] == {"recordings": 2, "patients": 1}
    config = server.json("/api/trainings/config", "POST", wish)["config"]
    server.json("/api/trainings", "POST", {"name": "mine", "config": config, **dropped})
    found = wait(server, lambda found: found["state"] != "running")
    assert (found["state"], found["stage"]) == ("failed", "finetune")
    assert "no training pairs" in found["said"]
    folder = tmp_path / "runs" / "mine"
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    copied = folder / "recordings" / "ward" / "A00015.mat"
    assert copied.read_bytes() == (DEMO / "records" / "A00015.mat").read_bytes()
    assert server.stop() == 0
    assert copied.is_file()


def test_a_report_is_shown_once_apart_from_the_page(runs, tmp_path):
    server = Running(tmp_path / "tmp", "--runs", runs)
    path = server.json("/api/trainings/one/report", "POST", {})["path"]
    status, headers, report = server.ask(path, token=False)
    assert (status, report) == (200, (runs / "one" / "report.html").read_bytes())
    assert "sandbox allow-scripts" in headers["content-security-policy"]
    assert "connect-src" not in headers["content-security-policy"]
    assert server.ask(path, token=False)[0] == 404
    assert server.stop() == 0


def test_what_is_no_run_and_what_is_no_data_is_one_line(start):
    server = start()
    for path in ("none", "..%2f..", "a%2fb"):
        assert server.ask(f"/api/trainings/{path}")[0] in (404, 422)
    status, _, said = server.ask("/api/trainings/look", "POST", json.dumps(DATA | {"path": "/none", "lead": ""}))
    assert status == 422
    assert json.loads(said)["error"].startswith("/none: no such folder")
    assert server.ask("/api/trainings/config", "POST", json.dumps(DATA | CHOICES | {"path": "records"}))[0] == 422
    for wish in ({"path": "records"}, {"labels": "labels.csv"}):
        status, _, said = server.ask("/api/trainings/look", "POST", json.dumps(DATA | {"lead": ""} | wish))
        assert (status, "wanted a whole path" in json.loads(said)["error"]) == (422, True)
    assert server.ask("/api/trainings/look", "POST", json.dumps(DATA | {"recordings": "x"}))[0] == 404


def test_a_folder_of_recordings_that_is_none_is_refused(tmp_path):
    with pytest.raises(CohortError):
        look(tmp_path / "none", DEMO / "labels.csv", seed=0, val_fraction=0.1, test_fraction=0.1, said={})
