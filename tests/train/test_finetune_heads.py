"""Training end to end on real recordings: exclusive labels, values, and windows whose gradient is not finite."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import wfdb
from scipy.signal import find_peaks
from sklearn.metrics import log_loss, r2_score, roc_auc_score

from anyecg.loaders.cohort import open_cohort
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.stream import batch, open_index
from anyecg.loaders.values import draw_values
from anyecg.train.checkpoint import Checkpoint
from anyecg.train.model import open_model
from anyecg.train.scores import read_scores

from ..conftest import DEMO, anyecg

RHYTHMS = {(0, 0): "N", (1, 0): "A", (0, 1): "O"}
CONFIG = """\
folder = "run"
seed = 3
[cohort]
kind = "folder"
path = "{records}"
labels = "labels.csv"
val_fraction = 0.3
[shard]
windows_per_shard = 60
ranks = 1
[finetune]
batch_size = 16
ranks = 1
{finetune}
"""
SCRIPT = """\
import sys, torch
from anyecg.app import cli
from anyecg.train import finetune
from anyecg.train.average import Average

class Noting(Average):
    seen = []
    def __init__(self, network, decay):
        super().__init__(network, decay)
        self.note()
    def update(self, step):
        super().update(step)
        self.note()
    def note(self):
        self.seen.append({name: p.detach().clone() for name, p in self.network.named_parameters()})

finetune.Average = Noting
code = cli.main(["finetune", sys.argv[1]])
torch.save(Noting.seen, sys.argv[2])
sys.exit(code)
"""


def demo_rows(n):
    with (DEMO / "labels.csv").open(newline="") as file:
        return [(row["record"], row) for row in csv.DictReader(file)][:n]


def lay_out(folder, columns, rows, **finetune):
    """Lay a config into a folder and make its cohort and shards; return the config's path."""
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("record", "patient", *columns), *rows])
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in finetune.items())
    (folder / "config.toml").write_text(CONFIG.format(records=DEMO / "records", finetune=lines))
    for stage in ("cohort", "shard"):
        done = anyecg(stage, folder / "config.toml")
        assert done.returncode == 0, done.stderr
    return folder / "config.toml"


def curve(run):
    with (run / "model/curve.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def draws_of(index, split):
    """Return {draw: its windows} of a split, by a loop over the pairs."""
    found = {}
    for pair in index.pairs_of(split, 60).tolist():
        draw, window = (int(index.tables[f"pair_{what}"][pair]) for what in ("draw", "window"))
        found.setdefault(draw, []).append(window)
    return found


def windows(index, rows):
    """Return standardised windows, float32 (W, leads, samples), in float64 until the end."""
    x_WLT = WindowReader(index).read(np.array(rows)) * np.asarray(index.tables["window_scale"])[rows][:, None, None]
    x_WLT = x_WLT.astype(np.float64) - x_WLT.mean(2, keepdims=True)
    return torch.from_numpy((x_WLT / x_WLT.std(2, keepdims=True)).astype(np.float32))


@pytest.fixture(scope="module")
def exclusive(tmp_path_factory):
    """Return the run folder of a training on exclusive labels, and the weights after each of its steps."""
    folder = tmp_path_factory.mktemp("exclusive")
    rows = []
    for record, row in demo_rows(60):
        name = "~" if row["noise"] == "1" else RHYTHMS[int(row["atrial_fibrillation"]), int(row["other_rhythm"])]
        rows.append((record, record, *(int(name == each) for each in "NAO~")))
    config = lay_out(
        folder, "NAO~", rows, head="exclusive", join="features", window_loss=0.5, weight_average=0.9, precision="bf16",
        epochs=1, label_smoothing=0.05,
    )  # fmt: skip
    with config.open("a") as file:
        file.write("[stream]\nwindows_per_sample = 3\n")
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, folder / "script.py", config, folder / "seen.pt"], capture_output=True, text=True, check=False,
        timeout=560,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run", torch.load(folder / "seen.pt")


def test_the_card_of_exclusive_labels_says_what_goes_in_and_what_comes_out(exclusive):
    run, seen = exclusive
    _, card = open_model(run / "model")
    assert (card["head"], card["join"], card["windows_per_sample"]) == ("exclusive", "features", 3)
    assert card["targets"] == ["N", "A", "O", "~"]
    assert (card["finetune"]["precision"], card["finetune"]["weight_average"]) == ("bf16", 0.9)
    assert (card["n_left_out"], card["step"]) == (0, len(seen) - 1)


def test_the_published_weights_are_the_average_over_the_steps(exclusive):
    run, seen = exclusive
    model, _ = open_model(run / "model")
    average = {name: value.double() for name, value in seen[0].items()}
    for step, weights in enumerate(seen[1:]):
        decay = min(0.9, (1 + step) / (10 + step))
        average = {name: decay * value + (1 - decay) * weights[name] for name, value in average.items()}
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach(), average[name], atol=1e-6)
    assert any(not torch.equal(p, seen[-1][name]) for name, p in model.named_parameters())


def test_the_validation_of_exclusive_labels_is_that_of_scikit_learn(exclusive):
    run, _ = exclusive
    index = open_index(run / "shards")
    model, card = open_model(run / "model")
    draws = draws_of(index, "val")
    label_D = np.asarray(index.tables["draw_labels"])[list(draws)].argmax(1)
    with torch.no_grad():
        logit_DC = torch.cat([
            model.joined_of_all(model.features(windows(index, rows)), 3)[None] for rows in draws.values()
        ])  # fmt: skip
    score_DC = logit_DC.double().softmax(1).numpy()
    areas = [roc_auc_score(label_D == c, score_DC[:, c]) for c in range(4) if 0 < (label_D == c).sum() < len(label_D)]
    assert len(areas) > 1
    assert card["val_score"] == pytest.approx(np.mean(areas), abs=1e-6)
    smooth = 0.95 * log_loss(label_D, score_DC, labels=range(4)) - 0.05 * np.log(score_DC).mean()
    assert card["val_loss"] == pytest.approx(smooth, rel=1e-4)


def heart_rate(record):
    """Return beats a minute, by counting steep slopes."""
    lead = wfdb.rdrecord(str(DEMO / "records" / record))
    slope = np.abs(np.gradient(lead.p_signal[:, 0]))
    slope = np.convolve(slope, np.ones(30) / 30, "same")
    peaks, _ = find_peaks(slope, distance=0.3 * lead.fs, height=0.4 * np.percentile(slope, 98))
    return 60 * len(peaks) * lead.fs / len(slope)


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    """Return the run folder of a training on two values, one now and then not measured, scores and all."""
    folder = tmp_path_factory.mktemp("regression")
    rows = [
        (record, record, f"{heart_rate(record):.2f}", -300 if number % 3 else "")
        for number, (record, _) in enumerate(demo_rows(60))
    ]  # fmt: skip
    config = lay_out(
        folder, ("value:heart_rate", "value:level"), rows, head="regression", epochs=4, learning_rate=0.003
    )
    for stage in ("finetune", "predict"):
        done = anyecg(stage, config)
        assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_regression_learns_values_of_any_folder(regression):
    index = open_index(regression / "shards")
    _, card = open_model(regression / "model")
    value_DC = draw_values(index)[list(draws_of(index, "train"))].astype(np.float64)
    assert (card["head"], card["targets"]) == ("regression", ["heart_rate", "level"])
    assert card["value_mean"] == pytest.approx(np.nanmean(value_DC, axis=0), rel=1e-9)
    # A value that never changes is not scaled.
    assert card["value_sd"] == pytest.approx([value_DC[:, 0].std(), 1.0], rel=1e-9)
    losses = [row["train_loss"] for row in curve(regression)]
    assert losses[-1] < 0.9 * losses[0]
    cohort = open_cohort(regression / "cohort")
    paths = dict(zip(cohort.records["visit_row"], cohort.records["path"], strict=True))
    for row in cohort.draws.iter_rows(named=True):
        assert row["value:heart_rate"] == pytest.approx(heart_rate(paths[row["visit_row"]]), abs=0.006)


def test_the_validation_of_values_is_that_of_scikit_learn(regression):
    index = open_index(regression / "shards")
    model, card = open_model(regression / "model")
    pairs = [(draw, window) for draw, rows in draws_of(index, "val").items() for window in rows]
    with torch.no_grad():
        output_PC = model(windows(index, [window for _, window in pairs])).double().numpy()
    value_PC = draw_values(index)[[draw for draw, _ in pairs]]
    mean_C, sd_C = np.array(card["value_mean"]), np.array(card["value_sd"])
    # The second value never changes, so that it has no R2.
    wanted = r2_score(value_PC[:, 0], output_PC[:, 0] * sd_C[0] + mean_C[0])
    assert card["val_score"] == pytest.approx(wanted, abs=1e-4)
    seen_PC = ~np.isnan(value_PC)
    error_PC = np.abs(output_PC - (value_PC - mean_C) / sd_C)
    loss_PC = np.where(error_PC < 1, error_PC**2 / 2, error_PC - 0.5)
    assert card["val_loss"] == pytest.approx(loss_PC[seen_PC].mean(), rel=1e-4)


def test_every_window_gets_its_values(regression):
    index = open_index(regression / "shards")
    scores = read_scores(regression / "scores.h5", index)
    scores = getattr(scores, "windows", scores)
    for split in ("val", "test"):
        rows, output_WC = scores[split]
        np.testing.assert_array_equal(rows, index.windows_of(split))
        assert output_WC.shape == (len(rows), 2)
        assert np.isfinite(output_WC).all()


@pytest.fixture(scope="module")
def spoilt(exclusive, tmp_path_factory):
    """Return how to train on shards with two windows that are not finite, in two batches, and their names."""
    run = tmp_path_factory.mktemp("spoilt") / "run"
    for name in ("cohort", "shards"):
        shutil.copytree(exclusive[0] / name, run / name)
    index = open_index(run / "shards")
    order = {"seed": 3, "epoch": 0, "batch_size": 16}
    rows = [int(index.tables["pair_window"][batch(index, number, **order)[5]]) for number in (1, 3)]
    scale = np.lib.format.open_memmap(run / "shards/index-window_scale.npy", mode="r+")
    scale[rows] = np.inf, np.nan
    scale.flush()
    config = run.parent / "config.toml"
    text = (exclusive[0].parent / "config.toml").read_text().split("[finetune]")[0]
    text = text.replace('"labels.csv"', json.dumps(str(exclusive[0].parent / "labels.csv")))
    # Without noise in mV a window's scale cancels in its z-score, and is not read.
    config.write_text(text + "[finetune]\nbatch_size = 16\nepochs = 1\n[stream]\nnoise_mv = 0.01\n")
    return config, index.names_of(np.array(rows))


def events(run):
    return [json.loads(line) for line in (run / "log/finetune.jsonl").read_text().splitlines()]


def test_steps_without_a_finite_gradient_are_left_out_counted_and_name_their_windows(spoilt):
    config, names = spoilt
    run = config.parent / "run"
    done = anyecg("finetune", config, "finetune.ranks=1", "finetune.most_left_out=2")
    assert done.returncode == 0, done.stderr
    left_out = [event for event in events(run) if event["event"] == "left out"]
    assert [(event["step"], event["windows"], event["loss"]) for event in left_out] == [
        (1, [names[0]], None), (3, [names[1]], None),
    ]  # fmt: skip
    assert all(name in done.stderr for name in names)
    model, card = open_model(run / "model")
    assert card["n_left_out"] == 2
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(np.isfinite(row["train_loss"]) for row in curve(run))
    (checkpoint,) = [path for path in (run / "checkpoint").iterdir() if path.name == card["stage_hash"]]
    tensors, state = Checkpoint(checkpoint).load()
    assert state["n_optimiser_steps"] == state["step"] - 2
    assert all(value.isfinite().all() for value in tensors.values())


def test_too_many_steps_left_out_stop_every_rank_with_one_line(spoilt):
    config, names = spoilt
    done = anyecg(
        "finetune", config, "finetune.ranks=2", "finetune.most_left_out=1", env={**os.environ, "OMP_NUM_THREADS": "1"}
    )  # fmt: skip
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("anyecg finetune:")]
    (line,) = said
    assert "2 steps had a gradient that is not finite, allowed are 1; the last at batch 3" in line
    assert names[1] in line
    assert "Traceback" not in done.stderr
    (*_, last) = [event for event in events(config.parent / "run") if event["event"] == "left out"]
    assert last["windows"] == [names[1]]
