import csv
import shutil

import numpy as np
import pytest
import torch

from anyecg.loaders.errors import ModelError
from anyecg.train.finetune import CURVE, check_substituted
from anyecg.train.model import open_model
from anyecg.train.resnet import ResNet
from anyecg.train.schedule import learning_rate_factor

from ..conftest import anyecg, on_ranks, write_small_config


def curve(folder):
    with (folder / "model" / "curve.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def shards_only(small_run, tmp_path_factory):
    """Return a function that lays the small run's cohort and shards into a fresh run folder."""

    def make():
        folder = tmp_path_factory.mktemp("finetune")
        for name in ("cohort", "shards"):
            shutil.copytree(small_run / name, folder / "run" / name)
        config = write_small_config(folder)
        assert anyecg("cohort", config).returncode == 0
        return config, folder / "run"

    return make


def test_the_curve_has_one_row_an_epoch_over_all_windows(small_run, small_index):
    rows = curve(small_run)
    assert [tuple(row) for row in rows] == [CURVE] * 2
    assert [row["windows"] for row in rows] == [len(small_index.pairs_of("train", 60))] * 2


@pytest.fixture(scope="module")
def alone(shards_only):
    """Return the curve of the small run's training on one rank."""
    config, run = shards_only()
    done = on_ranks(1, "finetune", config)
    assert done.returncode == 0, done.stderr
    return curve(run)


def assert_near(rows, others):
    for one, other in zip(rows, others, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=5e-3)


def test_world_size_does_not_change_the_training_but_for_rounding(small_run, alone):
    assert_near(alone, curve(small_run))


def test_the_plain_loader_trains_as_dali_does_but_for_rounding(alone, shards_only):
    config, run = shards_only()
    done = anyecg("finetune", config, "finetune.ranks=1", "stream.loader=torch", "stream.workers=1")
    assert done.returncode == 0, done.stderr
    assert_near(curve(run), alone)


def test_a_damaged_chunk_stops_the_training_with_its_windows_named(small_index, shards_only):
    config, run = shards_only()
    shard, first, n_windows, offset, *_ = (int(value) for value in small_index.tables["chunks"][0])
    with (run / "shards" / small_index.head["shards"][shard]["name"]).open("r+b") as file:
        file.seek(offset + 1000)
        byte = file.read(1)[0]
        file.seek(offset + 1000)
        file.write(bytes([byte ^ 1]))
    done = anyecg("finetune", config)
    assert done.returncode == 2
    assert f"windows {first} to {first + n_windows - 1} of the index are damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (run / "model/card.json").exists()


def test_the_published_epoch_may_be_the_best_by_validation_score(shards_only):
    config, run = shards_only()
    more = ("finetune.best_by=score", "finetune.epochs=3", "finetune.learning_rate=0.02", "finetune.ranks=1")
    done = anyecg("finetune", config, *more)
    assert done.returncode == 0, done.stderr
    _, card = open_model(run / "model")
    assert card["epoch"] == 1 + int(np.argmax([row["val_score"] for row in curve(run)]))


def test_the_learning_rate_rises_then_falls_to_zero():
    rates = [learning_rate_factor(step, n_steps=100, warmup_fraction=0.1) for step in range(101)]
    assert rates[9] == 1
    assert np.argmax(rates) in (9, 10)
    assert (np.diff(rates[:10]) > 0).all()
    assert (np.diff(rates[11:]) < 0).all()
    assert rates[-1] == pytest.approx(0)


@pytest.mark.parametrize(("n_leads", "n_samples"), [(1, 5000), (12, 4999), (1, 1000)])
def test_resnet_takes_any_length_and_number_of_leads(n_leads, n_samples):
    model = ResNet(in_channels=n_leads, n_targets=108)
    assert model(torch.zeros(2, n_leads, n_samples)).shape == (2, 108)
    assert sum(p.numel() for p in model.parameters()) < 4e6


def test_the_published_model_says_what_it_takes(small_run, small_index):
    _, card = open_model(small_run / "model")
    assert card["targets"] == list(small_index.targets)
    assert (card["fs"], card["samples"], card["preset"]) == (500, 5000, "ecgfounder")
    assert card["epoch"] == 1 + int(np.argmin([row["val_loss"] for row in curve(small_run)]))


def test_too_many_substitutes_stop_the_run_on_every_rank():
    check_substituted(5, 100, "shards")
    with pytest.raises(
        ModelError, match="6 of 100 samples of an epoch lay in damaged chunks, wanted at most 5%"
    ) as found:
        check_substituted(6, 100, "shards")
    assert found.value.on_every_rank
