"""A folder of mixed formats and 12 leads, from its files to results, report and page, as a user has it done."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from anyecg.app.config import load_config
from anyecg.app.server_models import Models, occluded
from anyecg.app.server_progress import Watch
from anyecg.app.server_records import Place
from anyecg.loaders.errors import RecordError
from anyecg.loaders.index import open_index
from anyecg.loaders.lead_names import STANDARD_LEADS, plain_options
from anyecg.train.export import export_model
from anyecg.train.predict_files import predict_files
from anyecg.train.results import read_results
from anyecg.train.scores import read_scores

from ..conftest import anyecg
from ..loaders.twelve import FS, write_folder
from ..train.models import make_model

CONFIG = f"""\
folder = "run"
seed = 3
[cohort]
path = "records"
labels = "labels.csv"
fs = {FS}
unit = "mV"
lead_names = {json.dumps(STANDARD_LEADS)}
val_fraction = 0.3
test_fraction = 0.4
[shard]
lead = {json.dumps(STANDARD_LEADS)}
max_bad_fraction = 0.2
windows_per_shard = 16
ranks = 1
[stream]
shift_seconds = 10.0
noise_mv = 0.05
[finetune]
epochs = 1
batch_size = 8
ranks = 1
[evaluate]
levels = ["window", "draw"]
n_replicates = 20
ranks = 1
"""
NAMES = ["--fs", FS, "--unit", "mV", "--names", ",".join(STANDARD_LEADS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a finished run on 24 recordings, of which r02 lacks V3."""
    folder = tmp_path_factory.mktemp("twelve")
    leads_of = {2: [lead for lead in STANDARD_LEADS if lead != "V3"]}
    write_folder(folder / "records", 24, leads_of=lambda number: leads_of.get(number, STANDARD_LEADS))
    (folder / "config.toml").write_text(CONFIG)
    done = anyecg("run", folder / "config.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_run_on_mixed_formats_in_twelve_leads_ends_with_results_and_report(folder):
    run = folder / "run"
    rows = read_results(run / "results.json")
    assert {(row["target"], row["level"]) for row in rows} == {
        (target, level) for target in ("odd", "high") for level in ("window", "draw")
    }
    assert all(0 <= row["auroc"] <= 1 for row in rows)
    report = (run / "report.html").read_text()
    assert "windows of 10 s in 12 leads" in report
    assert ", lead II. Scores: " in report
    assert "Heart rate is that of lead II." in report
    assert json.loads((run / "model/card.json").read_text())["leads"] == list(STANDARD_LEADS)
    said = (run / "shards/quarantine.csv").read_text()
    assert "r02.h5: lead 'V3' is missing; found I, II, III, aVR, aVL, aVF, V1, V2, V4, V5, V6" in said
    assert load_config(run / "shards/config.toml").shard.leads == STANDARD_LEADS
    done = anyecg("verify", folder / "config.toml")
    assert done.returncode == 0, done.stderr


def scores_of(path):
    with path.open(newline="") as file:
        return {tuple(row[:2]): [float(score or "nan") for score in row[2:]] for row in list(csv.reader(file))[1:]}


def test_files_get_the_scores_of_their_shards_from_every_form_of_the_model(folder):
    run = folder / "run"
    done = anyecg(
        "predict", "--model", run / "model", "--input", folder / "records", "--out", folder / "torch.csv", *NAMES
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "24 records, 1 of them unreadable" in done.stdout
    export_model(run / "model", "onnx", folder / "m.onnx")
    options = plain_options(fs=FS, unit="mV", leads=STANDARD_LEADS)
    assert predict_files(folder / "m.onnx", folder / "records", folder / "onnx.csv", **options) == (24, 1)
    by_torch, by_onnx = scores_of(folder / "torch.csv"), scores_of(folder / "onnx.csv")
    assert by_torch.keys() == by_onnx.keys()
    for key, found in by_torch.items():
        np.testing.assert_allclose(found, by_onnx[key], atol=2e-6)
    assert np.isnan(by_torch["r02", ""]).all()
    windows = np.array([found for (_, start), found in by_torch.items() if start])
    index = open_index(run / "shards")
    for split in ("val", "test"):
        for logit_C in read_scores(run / "scores.h5", index).windows[split][1]:
            assert np.abs(windows - 1 / (1 + np.exp(-logit_C))).max(1).min() < 1e-3
    assert "lead 'V3' is missing" in (folder / "onnx.csv.quarantine.csv").read_text()


def test_zeros_for_a_missing_lead_are_a_choice_of_the_command_line(folder):
    done = anyecg(
        "predict", "--model", folder / "run/model", "--input", folder / "records", "--out", folder / "zeros.csv",
        "--missing-leads", "zeros", *NAMES,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "24 records, 0 of them unreadable" in done.stdout
    assert "zeros stand for missing leads in 1 of 24 records" in done.stderr
    assert not np.isnan(list(scores_of(folder / "zeros.csv").values())).any()


def test_the_page_scores_and_explains_a_whole_record_by_the_names_of_its_leads(folder, tmp_path):
    models = Models(tmp_path, folder)
    (key,) = [one["id"] for one in models.listed() if one["name"] == "run"]
    records = folder / "records"
    first = Place(records, "r01", {})
    found = models.score(key, first, 0, watch=Watch())
    assert found["start_s"] == [0, 10]
    assert found["targets"] == ["odd", "high"]
    # The lead that was chosen does not matter.
    assert models.score(key, first, 7, watch=Watch())["own"] == found["own"]
    fall = models.saliency(key, first, 3, 0, 1)["fall"]
    assert len(fall) == 50
    assert any(fall)
    with pytest.raises(RecordError, match="lead 'V3' is missing; found I, II"):
        models.score(key, Place(records, "r02", {}), 0, watch=Watch())


def test_a_patch_is_taken_out_of_all_leads_as_of_each_alone():
    window_LT = np.random.default_rng(2).standard_normal((3, 5000)).astype(np.float32)
    found = occluded(window_LT, 500)
    for lead in range(3):
        np.testing.assert_array_equal(found[:, lead], occluded(window_LT[lead], 500))


def test_weights_of_twelve_leads_are_trained_further_on_such_shards(folder, tmp_path):
    """A file of the published form; a rate so small that the weights stay where they were."""
    from anyecg.train.model import open_model
    from anyecg.train.weights import load_ecgfounder, published_state_dict

    from ..train.test_weights import published_document

    wanted, _ = open_model(make_model(tmp_path / "made", model="net1d", leads=STANDARD_LEADS))
    torch.save(published_document(published_state_dict(wanted)), tmp_path / "12_lead.pth")
    run = shutil.copytree(folder / "run", tmp_path / "run", ignore=shutil.ignore_patterns("model", "checkpoint"))
    done = anyecg(
        "finetune", folder / "config.toml", f"folder={run}", "finetune.model=net1d", "finetune.learning_rate=1e-12",
        f"finetune.weights={tmp_path / '12_lead.pth'}", "stream.patients=0.3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, card = open_model(run / "model")
    assert card["leads"] == list(STANDARD_LEADS)
    first = load_ecgfounder(tmp_path / "12_lead.pth", n_targets=2, seed=3).state_dict()
    for key, value in found.state_dict().items():
        torch.testing.assert_close(value, first[key], rtol=0, atol=1e-10)
