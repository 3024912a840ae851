import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from anyecg.loaders.errors import ModelError, UpgradeNeeded
from anyecg.slurm.launch import find_mpirun
from anyecg.train.finetune import CURVE, Checkpoint, check_substituted, learning_rate_factor
from anyecg.train.loss import masked_bce
from anyecg.train.model import build_model, open_model
from anyecg.train.resnet import ResNet

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


def test_the_same_seed_gives_the_same_weights(small_run, shards_only):
    config, run = shards_only()
    assert anyecg("finetune", config).returncode == 0
    assert (run / "model/model.safetensors").read_bytes() == (small_run / "model/model.safetensors").read_bytes()


def test_world_size_does_not_change_the_training_but_for_rounding(small_run, shards_only):
    config, run = shards_only()
    done = on_ranks(1, "finetune", config)
    assert done.returncode == 0, done.stderr
    for alone, together in zip(curve(run), curve(small_run), strict=True):
        assert alone["train_loss"] == pytest.approx(together["train_loss"], rel=1e-3)
        assert alone["val_loss"] == pytest.approx(together["val_loss"], rel=5e-3)


def test_the_plain_loader_trains_as_dali_does_but_for_rounding(small_run, shards_only):
    config, run = shards_only()
    done = anyecg("finetune", config, "stream.loader=torch", "stream.workers=1")
    assert done.returncode == 0, done.stderr
    for plain, dali in zip(curve(run), curve(small_run), strict=True):
        assert plain["train_loss"] == pytest.approx(dali["train_loss"], rel=1e-3)
        assert plain["val_loss"] == pytest.approx(dali["val_loss"], rel=5e-3)


STEP = """
import sys
import numpy as np, torch
from mpi4py import MPI
from anyecg.train.distributed import join, leave
comm = MPI.COMM_WORLD
device = join(comm, sys.argv[1])
import deepspeed
from anyecg.loaders.stream import rows_of_rank
from anyecg.train.finetune import backward
torch.manual_seed(1)
network = torch.nn.Linear(5, 3)
before = network.weight.detach().clone()
engine, *_ = deepspeed.initialize(
    model=network, optimizer=torch.optim.SGD(network.parameters(), 1.0),
    config={"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 0}},
)
rng = np.random.default_rng(2)
x, label = torch.tensor(rng.standard_normal((7, 5)), dtype=torch.float32), torch.tensor(rng.integers(-1, 2, (7, 3)))
rows = rows_of_rank(np.arange(7), comm.rank, comm.size)
share = backward(engine, x[rows], label[rows], n_observed=int((label >= 0).sum()), n_ranks=comm.size)
engine.step()
loss = comm.allreduce(share)
if comm.rank == 0:
    print("RESULT", loss, *(before - network.weight.detach()).ravel().tolist())
leave(comm, sys.argv[1])
"""


def test_one_two_and_three_ranks_give_the_gradient_of_the_whole_batch(tmp_path):
    (tmp_path / "step.py").write_text(STEP)
    found = []
    for n_ranks in (1, 2, 3):
        command = [find_mpirun(), "-n", str(n_ranks), sys.executable, str(tmp_path / "step.py"), str(tmp_path)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=300, stdin=subprocess.DEVNULL
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        assert lines, done.stderr
        found.append([float(number) for number in lines[0].split()[1:]])
    torch.manual_seed(1)
    network = torch.nn.Linear(5, 3)
    rng = np.random.default_rng(2)
    x, label = torch.tensor(rng.standard_normal((7, 5)), dtype=torch.float32), torch.tensor(rng.integers(-1, 2, (7, 3)))
    loss = masked_bce(network(x), label)
    loss.backward()
    for numbers in found:
        np.testing.assert_allclose(numbers, [loss.item(), *network.weight.grad.ravel().tolist()], atol=1e-5)


def test_a_killed_run_continues_at_its_last_epoch_and_ends_the_same(small_run, shards_only):
    config, run = shards_only()
    whole = anyecg("finetune", config, "finetune.epochs=3")
    assert whole.returncode == 0, whole.stderr
    wanted = (run / "model/model.safetensors").read_bytes()
    rows = curve(run)
    again, resumed = shards_only()
    stop = anyecg("finetune", again, "finetune.epochs=3", env=_stopping_after(2))
    assert stop.returncode != 0
    (pointer,) = resumed.glob("checkpoint/*/pointer.json")
    assert json.loads(pointer.read_text())["file"] == "epoch-0002.pt"
    assert not (resumed / "model/card.json").exists()
    done = anyecg("finetune", again, "finetune.epochs=3")
    assert done.returncode == 0, done.stderr
    assert (resumed / "model/model.safetensors").read_bytes() == wanted
    for first, second in zip(rows, curve(resumed), strict=True):
        assert [first[key] for key in CURVE[:6]] == [second[key] for key in CURVE[:6]]


def _stopping_after(epochs):
    """Return an environment in which every rank is killed when the checkpoint of that epoch has been written."""
    import os
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp())
    (folder / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def watch(event, arguments):\n"
        "    if event == 'os.rename' and str(arguments[1]).endswith('pointer.json'):\n"
        "        watch.n += 1\n"
        f"        if watch.n == {epochs + 1}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "watch.n = 0\n"
        "sys.addaudithook(watch)\n"
    )
    return {**os.environ, "PYTHONPATH": str(folder)}


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


def test_the_published_epoch_may_be_the_best_by_validation_auroc(shards_only):
    config, run = shards_only()
    done = anyecg("finetune", config, "finetune.best_by=auroc", "finetune.epochs=3", "finetune.learning_rate=0.02")
    assert done.returncode == 0, done.stderr
    _, card = open_model(run / "model")
    assert card["epoch"] == 1 + int(np.argmax([row["val_auroc"] for row in curve(run)]))


def test_the_learning_rate_rises_then_falls_to_zero():
    rates = [learning_rate_factor(step, n_steps=100, warmup_fraction=0.1) for step in range(101)]
    assert rates[9] == 1
    assert np.argmax(rates) in (9, 10)
    assert (np.diff(rates[:10]) > 0).all()
    assert (np.diff(rates[11:]) < 0).all()
    assert rates[-1] == pytest.approx(0)


def test_a_checkpoint_of_another_version_or_a_damaged_one_is_refused(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.load() is None
    checkpoint.save({"epoch": 1, "model": {"w": torch.ones(2)}})
    checkpoint.save({"epoch": 2, "model": {"w": torch.ones(2)}})
    assert [path.name for path in tmp_path.glob("*.pt")] == ["epoch-0002.pt"]
    assert checkpoint.load()["epoch"] == 2
    pointer = json.loads((tmp_path / "pointer.json").read_text())
    (tmp_path / "pointer.json").write_text(json.dumps({**pointer, "version": 7}))
    with pytest.raises(UpgradeNeeded, match="upgrade needed: anyecg-checkpoint version 7"):
        checkpoint.load()
    (tmp_path / "pointer.json").write_text(json.dumps(pointer))
    (tmp_path / "epoch-0002.pt").write_bytes(b"cut")
    with pytest.raises(ModelError, match="missing or damaged"):
        checkpoint.load()


def test_a_small_network_learns_one_batch_by_heart():
    model = build_model("resnet", n_leads=1, n_targets=2, seed=1)
    generator = torch.Generator().manual_seed(2)
    x, label = torch.randn(8, 1, 5000, generator=generator), torch.tensor([[0, 1], [1, -1]] * 4, dtype=torch.int8)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(25):
        loss = masked_bce(model(x), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


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
