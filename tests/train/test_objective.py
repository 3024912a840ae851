from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from anyecg.loaders.errors import ModelError
from anyecg.loaders.stream import open_index
from anyecg.train.finetune_config import FinetuneConfig
from anyecg.train.objective import Objective


def training_draws(index):
    """Return the draws that have a training pair, by a loop."""
    tables, found = index.tables, set()
    for shard in index.shards_of("train"):
        for pair in range(shard.pairs.start, shard.pairs.stop):
            if tables["pair_horizons"][pair] & 1:
                found.add(int(tables["pair_draw"][pair]))
    return sorted(found)


def relabelled(index, label_DC, targets=None):
    """Return the index with other labels."""
    head = index.head if targets is None else {**index.head, "targets": targets}
    return replace(index, head=head, tables={**index.tables, "draw_labels": label_DC})


def n_draws(index):
    return len(index.tables["draw_time"])


def exclusive(index, seed=4):
    """Return the index with labels that name one of two, now and then none or both."""
    rng = np.random.default_rng(seed)
    label_DC = np.eye(2, dtype=np.int8)[rng.integers(0, 2, n_draws(index))]
    label_DC[rng.random(len(label_DC)) < 0.2] = rng.integers(-1, 2, 2)
    return relabelled(index, label_DC)


def made_batch(objective, rng, n=23):
    label_BC = torch.from_numpy(np.array(objective.label_DC)[rng.integers(0, len(objective.label_DC), n)])
    return torch.from_numpy(rng.standard_normal((n, len(objective.targets)))), label_BC


@pytest.mark.parametrize("head", ["multilabel", "exclusive", "regression"])
@pytest.mark.parametrize("average", ["entries", "targets"])
def test_the_losses_of_the_parts_of_a_batch_add_up_to_the_mean_over_all_of_it(tiny_index, head, average):
    index = exclusive(tiny_index) if head == "exclusive" else tiny_index
    objective, rng = Objective(FinetuneConfig(head=head, average=average), index), np.random.default_rng(5)
    output_BC, label_BC = made_batch(objective, rng)
    if head != "exclusive":
        label_BC[rng.random(label_BC.shape) < 0.3] = float("nan") if head == "regression" else -1
    parts = [slice(0, 1), slice(1, 12), slice(12, 23)]
    count_C = sum(objective.count(label_BC[part]) for part in parts)
    np.testing.assert_array_equal(count_C, objective.count(label_BC))
    denominator = objective.denominator(count_C)
    loss = sum(objective.loss(output_BC[part], label_BC[part], denominator).item() for part in parts)
    assert loss == pytest.approx(slow_mean(head, average, output_BC, label_BC), rel=1e-6)


def slow_mean(head, average, output_BC, label_BC):
    """The mean over all entries, or over targets of each one's mean, by torch's own losses one at a time."""
    losses = [[] for _ in range(output_BC.shape[1])]
    for output_C, label_C in zip(output_BC, label_BC, strict=True):
        if head == "exclusive":
            if sorted(label_C.tolist()) == [0, 1]:
                losses[0].append(torch.nn.functional.cross_entropy(output_C, label_C.double()).item())
            continue
        for of_target, output, label in zip(losses, output_C, label_C, strict=True):
            if head == "regression" and not label.isnan():
                of_target.append(torch.nn.functional.huber_loss(output, label.double()).item())
            elif head == "multilabel" and label >= 0:
                of_target.append(
                    torch.nn.functional.binary_cross_entropy_with_logits(output, label.double()).item()
                )  # fmt: skip
    if average == "targets":
        return np.mean([np.mean(of_target) for of_target in losses if of_target])
    return np.mean([loss for of_target in losses for loss in of_target])


@pytest.mark.parametrize("average", ["entries", "targets"])
def test_a_target_that_no_row_of_the_batch_has_takes_no_part(tiny_index, average):
    objective = Objective(FinetuneConfig(average=average), tiny_index)
    output_BC, label_BC = torch.randn(6, 2, dtype=torch.float64), torch.tensor([[1, -1], [0, -1]] * 3)
    found = objective.loss(output_BC, label_BC, objective.denominator(objective.count(label_BC)))
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(output_BC[:, 0], label_BC[:, 0].double())
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("head", ["multilabel", "exclusive", "regression"])
@pytest.mark.parametrize("average", ["entries", "targets"])
def test_labels_that_count_for_nothing_have_no_loss_whatever_the_outputs(tiny_index, head, average):
    index = exclusive(tiny_index) if head == "exclusive" else tiny_index
    objective = Objective(FinetuneConfig(head=head, average=average), index)
    output_BC, label_BC = made_batch(objective, np.random.default_rng(6))
    nothing_BC = objective.nothing(label_BC)
    assert (nothing_BC.dtype, nothing_BC.shape) == (label_BC.dtype, label_BC.shape)
    count_C = objective.count(nothing_BC)
    assert not count_C.any()
    output_BC.requires_grad_()
    loss = objective.loss(output_BC, nothing_BC, objective.denominator(count_C))
    loss.backward()
    assert loss.item() == 0
    assert not output_BC.grad.any()


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_positive_weights_come_from_the_training_draws_alone(tiny_index, power):
    rows = training_draws(tiny_index)
    label_DC = np.array(tiny_index.tables["draw_labels"])
    # What stands elsewhere is not looked at.
    label_DC[np.setdiff1d(np.arange(len(label_DC)), rows)] = 1
    objective = Objective(FinetuneConfig(positive_weight=power), relabelled(tiny_index, label_DC))
    for target in range(2):
        n_positive, n_negative = (sum(label_DC[row, target] == label for row in rows) for label in (1, 0))
        logit_BC, label_BC = torch.zeros(1, 2, dtype=torch.float64), torch.full((1, 2), -1)
        label_BC[0, target] = 1
        wanted = (max(n_negative, 1) / max(n_positive, 1)) ** power * np.log(2)
        assert objective.loss(logit_BC, label_BC, 1.0).item() == pytest.approx(wanted, rel=1e-6)
        label_BC[0, target] = 0
        assert objective.loss(logit_BC, label_BC, 1.0).item() == pytest.approx(np.log(2), rel=1e-6)


def test_a_target_without_a_positive_or_a_negative_draw_has_a_finite_weight(tiny_index):
    label_DC = np.tile(np.array([1, 0], np.int8), (n_draws(tiny_index), 1))
    objective = Objective(FinetuneConfig(positive_weight=1), relabelled(tiny_index, label_DC))
    found = objective.loss(torch.zeros(1, 2), torch.ones(1, 2), 1.0)
    n = len(training_draws(tiny_index))
    assert found.item() == pytest.approx((1 / n + n) * np.log(2), rel=1e-6)


def with_values(folder, change):
    """Change the values in every shard; return the index and all values."""
    index, found = open_index(folder), []
    for number, shard in enumerate(index.head["shards"]):
        with h5py.File(folder / shard["name"], "r+") as file:
            values = file["draws/values"][...]
            change(number, values)
            file["draws/values"][...] = values
            found.append(values)
    return index, np.concatenate(found)


def split_of_draws(index):
    """Return the name of the split of every draw."""
    visit_D = np.asarray(index.tables["draw_visit"])
    return np.array(["train", "val", "test"])[np.asarray(index.tables["visit_split"])[visit_D]]


def test_values_are_standardised_by_the_training_draws_alone(tiny_copy):
    def change(number, values):
        values[:] = 1000 + 50 * values + 400 * (number > 1)
        values[number % 4] = (np.nan, np.inf, np.nan, np.nan)[number]

    index, value_DC = with_values(tiny_copy, change)
    objective = Objective(FinetuneConfig(head="regression"), index)
    seen = [float(value_DC[row, 0]) for row in training_draws(index) if np.isfinite(value_DC[row, 0])]
    assert objective.targets == ("c",)
    assert objective.card["value_mean"] == pytest.approx([np.mean(seen)], rel=1e-9)
    assert objective.card["value_sd"] == pytest.approx([np.std(seen)], rel=1e-9)
    # Training needs no value of the test split, whose shards need not be there.
    value_DC[split_of_draws(index) == "test"] = np.nan
    wanted = np.where(np.isfinite(value_DC), (value_DC - np.mean(seen)) / np.std(seen), np.nan)
    np.testing.assert_allclose(objective.label_DC, wanted, atol=1e-5)
    assert objective.label_DC.dtype == np.float32
    np.testing.assert_array_equal(objective.count(torch.from_numpy(objective.label_DC)), [np.isfinite(value_DC).sum()])


def test_a_value_that_never_changes_is_only_centred(tiny_copy):
    index, _ = with_values(tiny_copy, lambda _, values: values.fill(7))
    objective = Objective(FinetuneConfig(head="regression"), index)
    assert objective.card == {"value_mean": [7.0], "value_sd": [1.0]}
    assert not objective.label_DC[split_of_draws(index) != "test"].any()


def test_a_regression_without_a_training_value_is_refused(tiny_copy):
    index, _ = with_values(tiny_copy, lambda number, values: values.fill(np.nan if number < 2 else 1))
    with pytest.raises(ModelError, match=r"no training draw has a value; a regression needs numbers \(value:NAME"):
        Objective(FinetuneConfig(head="regression"), index)


@pytest.mark.parametrize("config", [FinetuneConfig(), FinetuneConfig(head="exclusive")])
def test_labels_that_the_head_cannot_use_are_refused(tiny_index, config):
    empty = relabelled(tiny_index, np.empty((n_draws(tiny_index), 0), np.int8), "[]")
    with pytest.raises(ModelError, match=r"no target, values alone; set finetune\.head = 'regression'"):
        Objective(config, empty)


def test_exclusive_labels_are_two_or_more_and_some_name_just_one(tiny_index):
    config, both = FinetuneConfig(head="exclusive"), np.ones((n_draws(tiny_index), 2), np.int8)
    with pytest.raises(ModelError, match="no training draw has exactly one label 1 and 0 elsewhere"):
        Objective(config, relabelled(tiny_index, both))
    with pytest.raises(ModelError, match="one target, 'a'; exclusive labels are two or more"):
        Objective(config, relabelled(tiny_index, both[:, :1], '["a"]'))
