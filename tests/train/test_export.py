import csv
import json
import os
import shutil
import stat
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from torch import nn

from anyecg.loaders.errors import ModelError
from anyecg.train.export import export_model
from anyecg.train.heads import scores_of
from anyecg.train.model import open_model
from anyecg.train.network import standardised
from anyecg.train.predict_files import predict_files
from anyecg.train.scoring import open_scorer
from anyecg.train.weights import load_ecgfounder

from ..conftest import DEMO, SHARED, anyecg
from .hostile_models import run_all
from .models import TARGETS, make_model
from .test_net1d import needs_shared

KINDS = [("multilabel", "logits"), ("exclusive", "features"), ("regression", "features")]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def exported(request, tmp_path_factory):
    """Return a published folder, its ONNX file and its single safetensors file, of each head and join."""
    home = tmp_path_factory.mktemp("exported")
    head, join = request.param
    folder = make_model(home / "model", head=head, join=join)
    for form in ("onnx", "safetensors"):
        assert export_model(folder, form, home / f"one.{form}") == (home / f"one.{form}").stat().st_size
    return folder, home / "one.onnx", home / "one.safetensors"


def windows(n_windows, seed=0, n_leads=1):
    """Return windows in mV, float32 (windows, leads, samples)."""
    return (np.random.default_rng(seed).standard_normal((n_windows, n_leads, 5000)) * 0.3 + 0.1).astype(np.float32)


def by_torch(folder, x_WLT):
    """Return logits and scores of windows, then of the record, whose windows are read in interleaved groups."""
    network, card = open_model(folder)
    with torch.no_grad():
        feature_WF = network.features(standardised(torch.from_numpy(x_WLT)))
        logit_WC = network.dense(feature_WF).numpy()
        n_groups = -(-len(x_WLT) // card["windows_per_sample"])
        groups = [network.joined(feature_WF[group::n_groups][None]) for group in range(n_groups)]
        own_1C = torch.stack(groups).mean(0).numpy()
    return logit_WC, scores_of(logit_WC, card), own_1C, scores_of(own_1C, card)


SCORING = """
import sys
import numpy as np
from anyecg.train.scoring import open_scorer

for path in sys.argv[1:]:
    open_scorer(path).outputs([np.ones((2, 1, 5000), np.float32)])
    assert np.nextafter(np.float64(0), 1) * 1.0 != 0, path
"""


def test_scoring_leaves_the_callers_tiny_numbers_as_they_are(exported):
    # A process of its own: onnxruntime changes what it changes at the first session only.
    subprocess.run([sys.executable, "-c", SCORING, *map(str, reversed(exported))], check=True, timeout=300)


@pytest.mark.parametrize("n_windows", [1, 2, 7])
@pytest.mark.parametrize("scale", [1, 1000, 0.001])
def test_onnxruntime_agrees_with_torch_on_any_number_of_windows_in_any_scale(exported, n_windows, scale):
    session = onnxruntime.InferenceSession(exported[1], providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape[1:], i.type) for i in session.get_inputs()] == [("signal", [1, 5000], "tensor(float)")]
    x_WLT = windows(n_windows)
    found = dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {"signal": scale * x_WLT}), strict=True)
    )
    found.pop("features", None)
    for value, wanted in zip(found.values(), by_torch(exported[0], x_WLT), strict=False):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4)
    card = json.loads((exported[0] / "card.json").read_text())
    scores = "values" if card["head"] == "regression" else "probabilities"
    joined = ["record_logits", f"record_{scores}"] if card["join"] == "features" else []
    assert list(found) == ["logits", scores, *joined]


def test_a_record_of_many_windows_may_come_in_parts(exported):
    x_WLT = windows(9)
    wanted_WC, _, own_1C, _ = by_torch(exported[0], x_WLT)
    for path in (*exported, exported[0] / "model.safetensors"):
        for places in ([], [1], [4, 8]):
            logit_WC, own_C = open_scorer(path).outputs(np.split(x_WLT, places))
            np.testing.assert_allclose(logit_WC, wanted_WC, atol=1e-5)
            np.testing.assert_allclose(own_C, own_1C[0], atol=1e-5)


def test_onnx_parts_are_small_where_a_window_is_large(exported, monkeypatch):
    whole = open_scorer(exported[1])
    monkeypatch.setattr("anyecg.train.onnx_file._MOST_TOGETHER", 100_000)
    parted = open_scorer(exported[1])
    assert whole.n_together > 64 > 4 > parted.n_together
    for found, wanted in zip(parted.outputs([windows(9)]), whole.outputs([windows(9)]), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_exports_carry_the_card_as_json_without_paths(exported):
    card = json.loads((exported[0] / "card.json").read_text())
    model = onnx.load(exported[1])
    onnx.checker.check_model(model, full_check=True)
    with safe_open(exported[2], "pt") as file:
        texts = [file.metadata()["anyecg"], {entry.key: entry.value for entry in model.metadata_props}["anyecg"]]
    for text in texts:
        found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        same = ("targets", "fs", "samples", "preset", "leads", "head", "join", "windows_per_sample", "weights_sha256")
        assert {key: found[key] for key in same} == {key: card[key] for key in same}
        assert (found["format"], found["val_loss"], len(found["card_sha256"])) == ("anyecg-export", None, 64)
    for path in exported[1:]:
        data = path.read_bytes()
        for mark in (b"/somewhere/", b".py", str(exported[0].parent).encode()):
            assert mark not in data


def test_the_card_stands_beside_an_onnx_file_and_no_other_may(exported, tmp_path):
    path, beside = tmp_path / "x.onnx", tmp_path / "x.onnx.json"
    shutil.copy(exported[1], path)
    shutil.copy(f"{exported[1]}.json", beside)
    scorer = open_scorer(path)
    assert json.loads(beside.read_text()) == scorer.card
    text = beside.read_text()
    for other in (text.replace('"fs": 500', '"fs": 250'), text[:-2], "", "[" * 1_000_000, text + "\n"):
        assert other != text
        beside.write_text(other)
        with pytest.raises(ModelError, match=r"x\.onnx\.json: not the card that was written beside x\.onnx"):
            open_scorer(path)
    beside.unlink()
    os.mkfifo(beside)
    with pytest.raises(ModelError, match="not the card"):
        open_scorer(path)
    beside.unlink()
    assert open_scorer(path).card == scorer.card


def test_an_export_is_a_function_of_the_model_and_safetensors_hold_its_very_numbers(exported, tmp_path):
    again = tmp_path / "again.safetensors"
    export_model(exported[0], "safetensors", again)
    assert again.read_bytes() == exported[2].read_bytes()
    wanted = open_model(exported[0])[0].state_dict()
    with safe_open(again, "pt") as file:
        assert set(file.keys()) == set(wanted)
        assert all(torch.equal(file.get_tensor(key), value) for key, value in wanted.items())


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Return a folder of two recordings."""
    folder = tmp_path_factory.mktemp("records")
    for name in ("A00009", "A00015"):
        for suffix in (".hea", ".mat"):
            shutil.copy(DEMO / "records" / f"{name}{suffix}", folder)
    return folder


def table(path):
    """Return the rows of a CSV of scores and its numbers."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, np.array([[float(row[target]) for target in TARGETS] for row in rows])


def test_every_form_of_a_model_gives_the_same_csv(exported, records, tmp_path):
    moved = shutil.copy(exported[2], tmp_path / "renamed.safetensors")
    forms = [exported[0], exported[0] / "model.safetensors", moved, exported[1]]
    for number, model in enumerate(forms):
        assert predict_files(model, records, tmp_path / f"{number}.csv") == (2, 0)
    first = (tmp_path / "0.csv").read_bytes()
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes() == first
    wanted, found = table(tmp_path / "0.csv"), table(tmp_path / "3.csv")
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4, atol=1e-4)
    keys = [[(row["record"], row["start_s"]) for row in rows] for rows, _ in (found, wanted)]
    assert keys[0] == keys[1]
    assert not (tmp_path / "0.csv.quarantine.csv").exists()


def test_scores_are_what_the_head_says_and_a_record_is_its_windows_together(exported, records, tmp_path):
    predict_files(exported[0], records, tmp_path / "out.csv")
    rows, score_RC = table(tmp_path / "out.csv")
    network, card = open_model(exported[0])
    own = [number for number, row in enumerate(rows) if row["start_s"] == ""]
    assert [rows[number]["record"] for number in own] == ["A00009", "A00015"]
    if card["head"] == "exclusive":
        np.testing.assert_allclose(score_RC.sum(1), 1, atol=2e-6)
    if card["head"] == "regression":
        np.testing.assert_allclose(score_RC.mean(0), card["value_mean"], atol=2)
    if card["join"] == "logits":
        logit_RC = np.log(score_RC / (1 - score_RC))
        np.testing.assert_allclose(logit_RC[own[0]], logit_RC[1 : own[1]].mean(0), atol=1e-5)
    else:
        nn.init.zeros_(network.several.weight)
        nn.init.zeros_(network.several.bias)
        scorer = open_scorer(exported[0])
        scorer.network = network
        assert scorer.outputs([windows(3)])[1].tolist() == [0, 0, 0]


def test_a_record_without_the_models_lead_keeps_its_row_and_is_named(records, tmp_path):
    model = make_model(tmp_path / "model", leads=["II"])
    for _ in range(2):
        assert predict_files(model, records, tmp_path / "out.csv") == (2, 2)
    with (tmp_path / "out.csv").open(newline="") as file:
        assert list(csv.reader(file))[1:] == [["A00009", "", "", "", ""], ["A00015", "", "", "", ""]]
    said = (tmp_path / "out.csv.quarantine.csv").read_text()
    assert said.count("lead 'II' is missing; found ECG") == 2
    predict_files(make_model(tmp_path / "other"), records, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv.quarantine.csv").exists()


def test_a_model_of_windows_prepared_otherwise_is_refused(records, tmp_path):
    with pytest.raises(ModelError, match="made for windows prepa"):
        predict_files(make_model(tmp_path / "model", preset_hash="0"), records, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


class Twin(nn.Module):
    """Holds parameters and buffers of any names, as the published class holds its own."""

    def __init__(self, forms):
        super().__init__()
        for name, (shape, dtype) in forms.items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_buffer(last, torch.empty(shape, dtype=dtype))


@pytest.fixture(scope="module")
def net1d(tmp_path_factory):
    """Return the folder of a net1d and its export in the published form."""
    home = tmp_path_factory.mktemp("net1d")
    folder = make_model(home / "model", model="net1d", val_score=0.75)
    export_model(folder, "ecgfounder", home / "one.pth")
    return folder, home / "one.pth"


def test_the_published_form_goes_round(net1d):
    wanted, found = open_model(net1d[0])[0], load_ecgfounder(net1d[1])
    x_BLT = standardised(torch.from_numpy(windows(2)))
    with torch.no_grad():
        assert torch.equal(wanted(x_BLT), found(x_BLT))
    document = torch.load(net1d[1], weights_only=True)
    assert list(document) == ["epoch", "step", "state_dict", "optimizer", "scheduler", "val_auroc"]
    assert (document["epoch"], document["step"], document["val_auroc"]) == (4, None, 0.75)
    assert stat.S_IMODE(net1d[1].stat().st_mode) & 0o111 == 0


@needs_shared
def test_the_published_class_would_load_it_strictly(net1d):
    lines = (SHARED / "net1d_keys_1lead.txt").read_text().splitlines()
    forms = {}
    for key, shape, dtype in (line.split("\t") for line in lines if not line.startswith("#")):
        size = tuple(int(n) for n in shape.strip("()").split(",") if n.strip())
        size = (len(TARGETS), *size[1:]) if key.startswith("dense.") else size
        forms[key] = (size, getattr(torch, dtype))
    twin = Twin(forms)
    done = twin.load_state_dict(torch.load(net1d[1], weights_only=True)["state_dict"], strict=True)
    assert (len(forms), list(done.missing_keys), list(done.unexpected_keys)) == (509, [], [])


def test_net1d_as_onnx_agrees_with_torch(net1d, tmp_path):
    export_model(net1d[0], "onnx", tmp_path / "net1d.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net1d.onnx", providers=["CPUExecutionProvider"])
    x_WLT = windows(3)
    logit_WC, score_WC = session.run(["logits", "probabilities"], {"signal": x_WLT})
    wanted_WC, wanted_score_WC, *_ = by_torch(net1d[0], x_WLT)
    np.testing.assert_allclose(logit_WC, wanted_WC, atol=1e-4)
    np.testing.assert_allclose(score_WC, wanted_score_WC, atol=1e-4)
    assert open_scorer(tmp_path / "net1d.onnx").card["targets"] == TARGETS


def test_what_a_form_cannot_hold_is_one_line_and_leaves_nothing(net1d, tmp_path):
    resnet = make_model(tmp_path / "resnet")
    joined = make_model(tmp_path / "joined", model="net1d", join="features")
    for folder in (resnet, joined):
        with pytest.raises(ModelError, match="the published class is net1d with a head of single windows; this model"):
            export_model(folder, "ecgfounder", tmp_path / "x.pth")
    for form, name in (("onnx", "x.pth"), ("safetensors", "x.onnx"), ("ecgfounder", "x.safetensors"), ("tflite", "x")):
        with pytest.raises(ModelError, match="wanted"):
            export_model(resnet, form, tmp_path / name)
    assert not list(tmp_path.glob("x*"))


def test_the_command_line_exports_for_its_owner_only_and_predicts_from_the_file(tmp_path, records):
    model = make_model(tmp_path / "model")
    done = anyecg("export", model, "--format", "safetensors", "--out", tmp_path / "one.safetensors")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'one.safetensors'}: 2.9 MB\n"), done.stderr
    assert stat.S_IMODE((tmp_path / "one.safetensors").stat().st_mode) == 0o600
    shutil.rmtree(model)
    done = anyecg(
        "predict", "--model", tmp_path / "one.safetensors", "--input", records, "--out", tmp_path / "out.csv"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert table(tmp_path / "out.csv")[0][0]["record"] == "A00009"
    done = anyecg("export", model, "--format", "onnx", "--out", tmp_path / "x.onnx")
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert "holds no finished model" in done.stderr


def test_no_mark_of_a_recording_or_patient_reaches_an_export(small_run, tmp_path):
    """R16: what names one patient stays in the cohort's tables."""
    names = [path.stem.encode() for path in (DEMO / "records").glob("*.hea")]
    for form in ("safetensors", "onnx"):
        export_model(small_run / "model", form, tmp_path / f"one.{form}")
        data = (tmp_path / f"one.{form}").read_bytes()
        assert [mark for mark in (*names, str(small_run.parent).encode(), b"labels.csv") if mark in data] == []


def test_every_hostile_model_is_refused_in_one_line_within_its_means(tmp_path):
    """R13: pickles, bombs, other files, absurd sizes; the canary never fires."""
    found = run_all(tmp_path / "home")
    assert len(found) > 100
    assert {name: said for name, (said, *_) in found.items() if not said.startswith(("ModelError", "UpgradeN"))} == {}
    assert [said for said, *_ in found.values() if "\n" in said] == []
    assert max(mb for *_, mb in found.values()) < 256
    assert not list(tmp_path.rglob("canary-fired"))
