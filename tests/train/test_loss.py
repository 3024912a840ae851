import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyecg.train.loss import masked_bce


def slow_loss(logit_BC, label_BC, n_observed):
    """The obvious twin: a loop over observed entries in float64."""
    total = 0.0
    for logits, labels in zip(logit_BC.tolist(), label_BC.tolist(), strict=True):
        for logit, label in zip(logits, labels, strict=True):
            if label >= 0:
                total += max(logit, 0) - logit * label + math.log1p(math.exp(-abs(logit)))
    return total / (n_observed + 1e-8)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**6), st.booleans())
@settings(max_examples=100, deadline=None)
def test_loss_agrees_with_a_loop_in_float64(n_rows, n_targets, seed, with_denominator):
    rng = np.random.default_rng(seed)
    logit = torch.tensor(4 * rng.standard_normal((n_rows, n_targets)), dtype=torch.float32, requires_grad=True)
    label = torch.tensor(rng.integers(-1, 2, (n_rows, n_targets)), dtype=torch.int8)
    n_observed = 17 if with_denominator else int((label >= 0).sum())
    loss = masked_bce(logit, label, n_observed=17 if with_denominator else None)
    assert loss.item() == pytest.approx(slow_loss(logit, label, n_observed), rel=1e-5, abs=1e-6)
    loss.backward()
    wanted = np.where(label >= 0, torch.sigmoid(logit.detach()) - label.float(), 0) / max(n_observed, 1e-8)
    np.testing.assert_allclose(logit.grad, wanted, atol=1e-6)


def test_rows_and_batches_without_a_label_count_for_nothing():
    logit = torch.full((3, 2), 50.0, requires_grad=True)
    loss = masked_bce(logit, torch.full((3, 2), -1, dtype=torch.int8))
    loss.backward()
    assert loss.item() == 0
    assert not logit.grad.any()


def test_half_precision_logits_are_computed_in_float32():
    assert masked_bce(torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(2, 2)).dtype == torch.float32
