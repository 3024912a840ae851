"""What a network is trained to say: labels or values of each draw, their loss, and its denominator."""

import logging

import numpy as np
import torch

from anyecg.loaders.errors import ModelError
from anyecg.train.loss import is_one_of, masked_bce, masked_cross_entropy, masked_huber

log = logging.getLogger(__name__)


class Objective:
    """Labels of the draws of an index, and the loss of a network's outputs against them.

    Parameters
    ----------
    config : anyecg.train.finetune_config.FinetuneConfig
    index : anyecg.loaders.index.Index

    Attributes
    ----------
    targets : tuple of str
        What the outputs are: targets, or for a regression the components with a value in training.
    label_DC : int8 array (draws, targets); float32 array of standardised values, NaN not measured, for a regression
    card : dict
        ``value_mean`` and ``value_sd`` by component for a regression, else empty.

    Raises
    ------
    ModelError
        No targets; exclusive labels that are fewer than two, or of which none names just one; no values.
    """

    def __init__(self, config, index):
        self.config, self.targets, self.card = config, tuple(index.targets), {}
        self.label_DC = index.tables["draw_labels"]
        self._positive_weight_C = None
        pairs = index.pairs_of("train", config.horizon_min)
        in_training = np.unique(index.tables["pair_draw"][pairs])
        if config.head == "regression":
            self._standardise(index, in_training)
        elif not self.targets:
            raise ModelError(f"{index.folder}: no target, values alone; set finetune.head = 'regression'")
        elif config.head == "exclusive":
            self._check_exclusive(index, in_training)
        elif config.positive_weight:
            labels = np.asarray(self.label_DC)[in_training]
            n_positive, n_negative = (labels == 1).sum(0), (labels == 0).sum(0)
            ratio = np.maximum(n_negative, 1) / np.maximum(n_positive, 1)
            self._positive_weight_C = torch.from_numpy((ratio**config.positive_weight).astype(np.float32))

    def _standardise(self, index, in_training):
        from anyecg.loaders.values import draw_values

        value_DC = draw_values(index, ("train", "val"))
        value_DC[~np.isfinite(value_DC)] = np.nan
        measured_C = ~np.isnan(value_DC[in_training]).all(0)
        if not measured_C.any():
            raise ModelError(
                f"{index.folder}: no training draw has a value; a regression needs numbers (value:NAME columns), "
                "or set finetune.head = 'multilabel'"
            )
        names = np.array(index.components)
        self.targets = tuple(names[measured_C].tolist())
        if not measured_C.all():
            log.warning("left_out=no_training_value components=%s", ",".join(names[~measured_C]))
        value_DC = value_DC[:, measured_C]
        of_training = value_DC[in_training].astype(np.float64)
        mean_C, sd_C = np.nanmean(of_training, axis=0), np.nanstd(of_training, axis=0)
        sd_C = np.where(sd_C == 0, 1.0, sd_C)
        self.label_DC = ((value_DC - mean_C) / sd_C).astype(np.float32)
        self.card = {"value_mean": mean_C.tolist(), "value_sd": sd_C.tolist()}

    def _check_exclusive(self, index, in_training):
        if len(self.targets) < 2:
            raise ModelError(
                f"{index.folder}: one target, '{self.targets[0]}'; exclusive labels are two or more, a column each; "
                "set finetune.head = 'multilabel', or add the others"
            )
        labels = torch.from_numpy(np.asarray(self.label_DC)[in_training])
        if not is_one_of(labels).any():
            raise ModelError(
                f"{index.folder}: no training draw has exactly one label 1 and 0 elsewhere, which exclusive labels "
                "need; set finetune.head = 'multilabel', or mend the labels"
            )

    def count(self, label_BC):
        """Return what a batch's loss counts, float64 (n,): entries by target, or rows of exclusive labels."""
        if self.config.head == "exclusive":
            return is_one_of(label_BC).sum().double()[None].cpu().numpy()
        seen_BC = ~label_BC.isnan() if self.config.head == "regression" else label_BC >= 0
        return seen_BC.sum(0).double().cpu().numpy()

    def denominator(self, count_C):
        """Return what a loss is divided by, from the counts of the whole global batch.

        Over entries it is their number; over targets each target's number, times the number of targets with any.
        """
        if self.config.average == "targets":
            return torch.from_numpy(count_C * max(1, (count_C > 0).sum())).float()
        return float(count_C.sum())

    def loss(self, output_BC, label_BC, denominator):
        """Return the share of the global batch's loss that these rows have, a float32 scalar."""
        if isinstance(denominator, torch.Tensor):
            denominator = denominator.to(output_BC.device)
        if self.config.head == "regression":
            return masked_huber(output_BC, label_BC, n_observed=denominator)
        smoothing = self.config.label_smoothing
        if self.config.head == "exclusive":
            return masked_cross_entropy(output_BC, label_BC, n_observed=denominator, smoothing=smoothing)
        weight_C = self._positive_weight_C
        return masked_bce(
            output_BC, label_BC, n_observed=denominator, smoothing=smoothing,
            positive_weight_C=None if weight_C is None else weight_C.to(output_BC.device),
        )  # fmt: skip

    def nothing(self, label_BC):
        """Return labels of the same form that count for nothing."""
        return torch.full_like(label_BC, float("nan") if self.config.head == "regression" else -1)
