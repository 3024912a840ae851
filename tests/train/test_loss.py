import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyecg.train.loss import is_one_of, masked_bce, masked_cross_entropy, masked_huber

SHAPES = {"n_rows": st.integers(1, 6), "n_targets": st.integers(1, 5), "seed": st.integers(0, 10**6)}
DENOMINATORS = st.sampled_from(["own", "number", "by target"])


def softplus(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def bce(logit, label, smoothing=0.0, positive_weight=1.0):
    """The obvious twin of one entry's loss."""
    wanted = label * (1 - smoothing) + smoothing / 2
    return positive_weight * wanted * softplus(-logit) + (1 - wanted) * softplus(logit)


def cross_entropy(logits, label, smoothing=0.0):
    """The obvious twin of one row's loss."""
    log_sum = math.log(sum(math.exp(each - max(logits)) for each in logits)) + max(logits)
    shares = [smoothing / len(logits) + (1 - smoothing) * (c == label) for c in range(len(logits))]
    return sum(share * (log_sum - each) for share, each in zip(shares, logits, strict=True))


def huber(value, wanted):
    """The obvious twin of one value's loss."""
    error = abs(value - wanted)
    return error**2 / 2 if error < 1 else error - 0.5


def over_entries(of_entry, output_BC, seen_BC, n_observed):
    """Sum each target's seen losses, divide by its denominator (n_observed may be one number for all), add up."""
    n_targets = output_BC.shape[1]
    n_C = np.broadcast_to(seen_BC.sum() if n_observed is None else n_observed, n_targets)
    return sum(
        sum(of_entry(b, c) for b in range(len(output_BC)) if seen_BC[b, c]) / (float(n_C[c]) + 1e-8)
        for c in range(n_targets)
    )


def denominator(kind, rng, n):
    """Return (argument of the loss, array of the twin)."""
    if kind == "own":
        return None, None
    number_C = rng.integers(1, 40, 1 if kind == "number" else n)
    return (int(number_C[0]) if kind == "number" else torch.tensor(number_C)), number_C


def made(n_rows, n_targets, seed):
    """Return logits, labels of which whole rows are missing now and then, and the generator."""
    rng = np.random.default_rng(seed)
    logit_BC = 4 * rng.standard_normal((n_rows, n_targets))
    label_BC = rng.integers(-1, 2, (n_rows, n_targets))
    label_BC[rng.random(n_rows) < 0.3] = -1
    return logit_BC, label_BC, rng


def with_gradient(loss, output_BC, *others, **options):
    """Return the value and the gradient of a loss, and the same in float64."""
    found = []
    for dtype in (torch.float32, torch.float64):
        output = torch.tensor(output_BC, dtype=dtype, requires_grad=True)
        value = loss(output, *others, **options)
        assert value.dtype == dtype
        value.backward()
        found += [value.item(), output.grad.numpy()]
    return found


def slopes(function, output_BC, step=1e-6):
    """Return the gradient by central differences."""
    slope_BC = np.zeros_like(output_BC)
    for place in np.ndindex(output_BC.shape):
        moved = [output_BC.copy(), output_BC.copy()]
        moved[0][place] -= step
        moved[1][place] += step
        slope_BC[place] = (function(moved[1]) - function(moved[0])) / (2 * step)
    return slope_BC


def check(twin, loss, output_BC, *others, **options):
    """Hold value and gradient of a loss against a twin in float64 and its differences."""
    value, gradient_BC, value64, gradient64_BC = with_gradient(loss, output_BC, *others, **options)
    wanted = twin(output_BC)
    assert value64 == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    # In float32 the logit and the logarithm of its sigmoid cancel: each entry is good to a step of the largest logit.
    step = float(np.spacing(np.float32(np.abs(output_BC).max())))
    assert value == pytest.approx(wanted, rel=1e-6, abs=output_BC.size * step)
    np.testing.assert_allclose(gradient64_BC, slopes(twin, output_BC), atol=1e-6)
    np.testing.assert_allclose(gradient_BC, gradient64_BC, atol=1e-6)


@given(kind=DENOMINATORS, smoothing=st.sampled_from([0.0, 0.1]), weighted=st.booleans(), **SHAPES)
@settings(max_examples=60, deadline=None)
def test_bce_and_its_gradient_agree_with_a_loop_in_float64(n_rows, n_targets, seed, kind, smoothing, weighted):
    logit_BC, label_BC, rng = made(n_rows, n_targets, seed)
    n_observed, number_C = denominator(kind, rng, n_targets)
    weight_C = rng.uniform(0.5, 9, n_targets).astype(np.float32) if weighted else np.ones(n_targets)

    def twin(logit_BC):
        return over_entries(
            lambda b, c: bce(logit_BC[b, c], label_BC[b, c], smoothing, float(weight_C[c])), logit_BC, label_BC >= 0,
            number_C,
        )  # fmt: skip

    check(
        twin, masked_bce, logit_BC, torch.tensor(label_BC, dtype=torch.int8), n_observed=n_observed,
        smoothing=smoothing, positive_weight_C=torch.tensor(weight_C) if weighted else None,
    )  # fmt: skip


@given(smoothing=st.sampled_from([0.0, 0.1]), counted=st.booleans(), **SHAPES)
@settings(max_examples=60, deadline=None)
def test_cross_entropy_and_its_gradient_agree_with_a_loop_in_float64(n_rows, n_targets, seed, smoothing, counted):
    logit_BC, _, rng = made(n_rows, n_targets, seed)
    label_BC = np.eye(n_targets, dtype=np.int64)[rng.integers(0, n_targets, n_rows)]
    # Rows with a gap, with two labels or with none name nothing.
    label_BC[rng.random(n_rows) < 0.3, rng.integers(n_targets)] = -1
    label_BC[rng.random(n_rows) < 0.3, rng.integers(n_targets)] = 1
    label_BC[rng.random(n_rows) < 0.2] = 0
    named_B = np.array([sorted(row) == [0] * (n_targets - 1) + [1] for row in label_BC.tolist()])
    label = torch.tensor(label_BC, dtype=torch.int8)
    assert is_one_of(label).tolist() == named_B.tolist()

    def twin(logit_BC):
        losses = [cross_entropy(logit_BC[b].tolist(), label_BC[b].argmax(), smoothing) for b in range(n_rows)]
        return sum(np.array(losses)[named_B]) / ((17 if counted else named_B.sum()) + 1e-8)

    options = {"n_observed": 17} if counted else {}
    check(twin, masked_cross_entropy, logit_BC, label, smoothing=smoothing, **options)


@given(kind=DENOMINATORS, **SHAPES)
@settings(max_examples=60, deadline=None)
def test_huber_and_its_gradient_agree_with_a_loop_in_float64(n_rows, n_targets, seed, kind):
    output_BC, label_BC, rng = made(n_rows, n_targets, seed)
    n_observed, number_C = denominator(kind, rng, n_targets)
    value_BC = np.where(label_BC >= 0, 2 * rng.standard_normal(label_BC.shape), np.nan)

    def twin(output_BC):
        return over_entries(lambda b, c: huber(output_BC[b, c], value_BC[b, c]), output_BC, label_BC >= 0, number_C)

    check(twin, masked_huber, output_BC, torch.tensor(value_BC), n_observed=n_observed)


@pytest.mark.parametrize(
    ("loss", "missing"), [(masked_bce, -1), (masked_cross_entropy, -1), (masked_huber, float("nan"))]
)
@pytest.mark.parametrize("n_observed", [None, 0, 5, torch.tensor([0.0, 5.0])])
def test_rows_and_batches_without_a_label_count_for_nothing(loss, missing, n_observed):
    if loss is masked_cross_entropy and isinstance(n_observed, torch.Tensor):
        n_observed = n_observed.sum()
    output = torch.full((3, 2), 50.0, requires_grad=True)
    found = loss(output, torch.full((3, 2), missing), n_observed=n_observed)
    found.backward()
    assert found.item() == 0
    assert not output.grad.any()


@pytest.mark.parametrize("loss", [masked_bce, masked_cross_entropy, masked_huber])
def test_half_precision_outputs_are_computed_in_float32(loss):
    output = torch.tensor(4 * np.random.default_rng(3).standard_normal((8, 4)), dtype=torch.bfloat16)
    label = torch.tensor(np.eye(4)[[0, 1, 2, 3] * 2], dtype=torch.float32 if loss is masked_huber else torch.int8)
    found = loss(output, label)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss(output.double(), label).item(), rel=1e-6)


def test_the_parts_of_a_batch_add_up_to_its_loss():
    logit_BC, label_BC, _ = made(40, 5, 7)
    logit, label = torch.tensor(logit_BC), torch.tensor(label_BC)
    n_C = (label >= 0).sum(0)
    for n_observed in (n_C.sum(), n_C * 5):
        whole = masked_bce(logit, label, n_observed=n_observed)
        parts = [
            masked_bce(logit[b], label[b], n_observed=n_observed) for b in (slice(0, 3), slice(3, 29), slice(29, 40))
        ]
        assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-12)
