import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from anyecg.loaders.errors import ConfigError
from anyecg.slurm.launch import find_mpirun
from anyecg.train.engine import OURS, deepspeed_config
from anyecg.train.finetune_config import FinetuneConfig

from .engine_cases import BAD, BAD_SAMPLE, CASES, HALF, RATE, SIZES, cases_on, config_of, n_each_of, tiny, whole_batch

RANKS, N_STEPS = (1, 2, 3), len(SIZES)
PLACES = [(n_ranks, name) for n_ranks in RANKS for name in cases_on(n_ranks)]
HAS_COMPILER = shutil.which("g++") is not None


@pytest.fixture(scope="module")
def found(tiny_set, tmp_path_factory):
    """Return what the trainings on 1, 2 and 3 ranks gave, by number of ranks."""
    folder = tmp_path_factory.mktemp("engine")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
    script = Path(__file__).with_name("engine_cases.py")
    for n_ranks in RANKS:
        also = ["compile"] if n_ranks == 1 and HAS_COMPILER else []
        done = subprocess.run(
            [find_mpirun(), "-n", str(n_ranks), sys.executable, str(script), str(tiny_set[0]), str(folder), *also],
            capture_output=True, text=True, check=False, timeout=560, env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
    return {n_ranks: torch.load(folder / f"found-{n_ranks}.pt") for n_ranks in RANKS}


def entry_losses(config, output_BC, label_BC):
    """Return the loss of every entry, NaN where there is no label."""
    smoothing = config.label_smoothing
    wanted_BC = label_BC.double() * (1 - smoothing) + smoothing / 2
    loss_BC = torch.nn.functional.softplus(output_BC) - wanted_BC * output_BC
    return torch.where(label_BC >= 0, loss_BC, torch.nan)


def mean_loss(config, output_BC, label_BC):
    loss_BC = entry_losses(config, output_BC, label_BC)
    if (label_BC < 0).all():
        return output_BC.sum() * 0
    if config.average == "entries":
        return loss_BC.nanmean()
    return torch.stack([column.nanmean() for column in loss_BC.T if not column.isnan().all()]).mean()


def slow_training(config, n_steps=N_STEPS):
    """The obvious twin: whole batches in float64 on one rank; return weights, moments, losses and norms."""
    network, n_each = tiny(config).double(), n_each_of(config)
    trained = [(name, p) for name, p in network.named_parameters() if config.train == "all" or name[:4] != "body"]
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for _, p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for _, p in trained if p.ndim == 1], "weight_decay": 0.0},
        ],
        RATE,
    )
    losses, norms = [], []
    for step in range(n_steps):
        if step == BAD:
            continue
        x_BLT, label_BC = whole_batch(step, n_each)
        label_UC = label_BC[::n_each]
        if config.join == "features":
            output_UC, output_BC = network(x_BLT.double(), n_each)
            loss = mean_loss(config, output_UC, label_UC)
            loss = loss + config.window_loss * mean_loss(config, output_BC, label_BC)
        else:
            loss = mean_loss(config, network(x_BLT.double()), label_UC)
        optimiser.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_([p for _, p in trained], config.gradient_clip)))
        losses.append(loss.item())
        optimiser.step()
    tensors = {f"model.{name}": p.detach() for name, p in network.named_parameters()}
    for name, p in trained:
        tensors |= {f"{key}.{name}": optimiser.state[p][key] for key in ("exp_avg", "exp_avg_sq")}
    return tensors, losses, norms


def assert_same_state(tensors, wanted, *, weights=1e-5, moments=1e-5):
    """Hold weights to an absolute and moments to a relative tolerance of their largest."""
    assert set(tensors) == set(wanted)
    for name, value in tensors.items():
        largest = 1.0 if name.startswith("model.") else wanted[name].abs().max().item()
        tolerance = weights if name.startswith("model.") else moments * largest
        np.testing.assert_allclose(value.double(), wanted[name].double(), rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("n_ranks", "name"), [place for place in PLACES if "bf16" not in place[1]])
def test_ranks_parts_and_stages_train_as_one_loop_over_whole_batches_in_float64(found, n_ranks, name):
    case, config = found[n_ranks][name], config_of(name)
    wanted, losses, norms = slow_training(config)
    tensors, n_steps = case["state"]
    assert_same_state(tensors, wanted)
    assert n_steps == N_STEPS - 1
    assert len(set(case["weights"])) == 1
    for said in case["said"]:
        good = [each for step, each in enumerate(said) if step != BAD]
        np.testing.assert_allclose([each[0] for each in good], losses, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose([each[5] for each in good], norms, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("n_ranks", RANKS)
def test_every_rank_is_told_the_same_and_the_most_that_any_asked(found, n_ranks):
    for name in cases_on(n_ranks):
        n_each, ranks = n_each_of(config_of(name)), found[n_ranks][name]["said"]
        assert len(ranks) == n_ranks
        for step, each in enumerate(zip(*ranks, strict=True)):
            label_BC = whole_batch(step, n_each)[1][::n_each]
            told = [[str(value) for value in (*said[:4], said[5])] for said in each]
            assert all(one == told[0] for one in told), (name, step)
            assert each[0][1] == (label_BC >= 0).sum()
            assert each[0][2] == n_ranks - 1 + step


@pytest.mark.parametrize(("n_ranks", "name"), PLACES)
def test_a_window_that_is_not_finite_leaves_its_step_out_on_every_rank_and_is_named(found, n_ranks, name):
    case = found[n_ranks][name]
    (before, n_before), (after, n_after) = case["around"]
    assert n_before == n_after == BAD
    assert all(torch.equal(before[key], after[key]) for key in before)
    for said in case["said"]:
        assert [each[3] for each in said] == [step == BAD for step in range(N_STEPS)]
        assert not np.isfinite(said[BAD][5])
    bounds = [rank * SIZES[BAD] // n_ranks for rank in range(n_ranks + 1)]
    named = [bounds[rank] + row for rank, said in enumerate(case["said"]) for row in said[BAD][4]]
    assert named == [BAD_SAMPLE]
    assert not any(each[4] for said in case["said"] for step, each in enumerate(said) if step != BAD)


@pytest.mark.parametrize("n_ranks", RANKS)
def test_a_state_is_the_same_whatever_stage_it_was_gathered_from(found, n_ranks):
    for n in (1, 4):
        (wanted, n_wanted), *others = (found[n_ranks][f"zero {zero}, in {n} parts"]["half"] for zero in (0, 1, 2))
        assert n_wanted == HALF
        for tensors, n_steps in others:
            assert list(tensors) == list(wanted)
            assert n_steps == n_wanted
            assert_same_state(tensors, wanted, weights=1e-6, moments=1e-6)


@pytest.mark.parametrize(
    ("n_ranks", "way"),
    [*((n, way) for n in RANKS for way in ("2 to 0", "0 to 1")), (2, "fewer ranks"), (3, "fewer ranks")],
)
def test_a_state_goes_on_in_another_stage_and_on_another_number_of_ranks(found, n_ranks, way):
    tensors, n_steps = found[n_ranks][way]
    assert n_steps == N_STEPS - 1
    assert_same_state(tensors, slow_training(config_of("zero 0, in 1 parts"))[0])


@pytest.mark.parametrize("zero", [0, 2])
def test_bf16_computes_the_outputs_in_bf16_and_their_loss_in_float32(found, zero):
    case = found[2][f"bf16, zero {zero}"]
    assert case["seen"] == [("torch.bfloat16", "torch.float32")]
    tensors, _ = case["state"]
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    wanted, losses, _ = slow_training(config_of("bf16, zero 0"))
    np.testing.assert_allclose([each[0] for each in case["said"][0][:HALF]], losses[:HALF], rtol=2e-2)
    for name, value in tensors.items():
        if name.startswith("model."):
            # Every step of Adam moves a weight by about the learning rate.
            np.testing.assert_allclose(value, wanted[name], rtol=0, atol=2 * RATE)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("head alone")])
def test_training_the_head_alone_moves_nothing_else(found, name):
    tensors, _ = found[2][name]["state"]
    for key, value in tiny(config_of(name)).state_dict().items():
        assert torch.equal(tensors[f"model.{key}"], value) == key.startswith("body."), key
    assert not any(key.startswith(("exp_avg.body", "exp_avg_sq.body")) for key in tensors)


@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile on a CPU needs a C++ compiler, and g++ is not here")
def test_a_compiled_network_trains_like_the_network(found):
    case = found[1]["compiled"]
    wanted, losses, _ = slow_training(config_of("zero 0, in 1 parts"), 2)
    assert_same_state(case["state"][0], wanted)
    np.testing.assert_allclose([each[0] for each in case["said"][0]], losses, rtol=1e-5)


def test_the_raw_table_passes_through():
    raw = {"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": True, "steps_per_print": 5}
    found = deepspeed_config(FinetuneConfig(zero=2), raw, n_ranks=3, on_gpu=False)
    assert found["zero_optimization"] == {"reduce_bucket_size": 1000, "stage": 2}
    assert (found["wall_clock_breakdown"], found["steps_per_print"]) == (True, 5)


@pytest.mark.parametrize("name", OURS)
def test_what_our_keys_decide_cannot_be_set_in_the_raw_table(name):
    with pytest.raises(ConfigError, match=rf"deepspeed\.{name}: that is what finetune\.\w+ decides; set it there"):
        deepspeed_config(FinetuneConfig(), {name: {}}, n_ranks=1, on_gpu=False)


@pytest.mark.parametrize(
    ("zero", "said"),
    [
        ({"stage": 3}, r"zero_optimization\.stage: that is what finetune\.zero decides"),
        (True, "found True; wanted a table"),
    ],
)
def test_the_stage_cannot_be_set_in_the_raw_table(zero, said):
    with pytest.raises(ConfigError, match=said):
        deepspeed_config(FinetuneConfig(), {"zero_optimization": zero}, n_ranks=1, on_gpu=False)


def test_what_deepspeed_refuses_is_said_in_one_line(found):
    said = found[2]["refusal"]
    assert said.startswith("[deepspeed]: DeepSpeed refuses it (")
    assert "reduce_bucket_size" in said
    assert "\n" not in said


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 64])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_nominal_micro_batch_covers_the_global_batch(n_ranks, accumulation):
    found = deepspeed_config(
        FinetuneConfig(batch_size=7, accumulation=accumulation), {}, n_ranks=n_ranks, on_gpu=False
    )  # fmt: skip
    micro = found["train_micro_batch_size_per_gpu"]
    assert found["train_batch_size"] == micro * n_ranks * accumulation >= 7
    assert (micro - 1) * n_ranks * accumulation < 7
