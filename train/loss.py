"""The masked losses: only what was measured counts."""

import torch
import torch.nn.functional as F

_EPSILON = 1e-8


def _share(loss_BC, observed_BC, n_observed):
    """Return the sum of the observed losses over their number: one for all targets, or one for each, (C,)."""
    if n_observed is None:
        n_observed = observed_BC.sum()
    if isinstance(n_observed, torch.Tensor):
        n_observed = n_observed.to(loss_BC.dtype)
    return (torch.where(observed_BC, loss_BC, 0.0).sum(0) / (n_observed + _EPSILON)).sum()


def masked_bce(logit_BC, label_BC, *, n_observed=None, positive_weight_C=None, smoothing=0.0):
    """Return the sum of binary cross-entropies over measured targets, divided by their number.

    Parameters
    ----------
    logit_BC : float tensor, shape (B, targets)
        Network output; computed in float32 whatever its type, in float64 if it is that.
    label_BC : int tensor, shape (B, targets)
        1 abnormal, 0 not, -1 not measured (left out of the sum).
    n_observed : number or tensor, optional
        Denominator: measured entries of the whole global batch over ranks and accumulation steps; by default those
        of this batch. A tensor (targets,) divides each target by its own.
    positive_weight_C : float tensor, shape (targets,), optional
        Factor of the loss of abnormal labels.
    smoothing : float
        Labels become label x (1 - smoothing) + smoothing / 2.

    Returns
    -------
    float32 scalar; 0 without any measured entry

    Notes
    -----
    The paper's loss: sum of BCE over observed entries / (number observed + 1e-8).
    """
    observed_BC = label_BC >= 0
    wanted_BC = label_BC.clamp(min=0).to(logit_BC.dtype if logit_BC.dtype == torch.float64 else torch.float32)
    loss_BC = F.binary_cross_entropy_with_logits(
        logit_BC.to(wanted_BC.dtype), wanted_BC * (1 - smoothing) + smoothing / 2, reduction="none",
        pos_weight=positive_weight_C,
    )  # fmt: skip
    return _share(loss_BC, observed_BC, n_observed)


def is_one_of(label_BC):
    """Say which rows name just one of exclusive labels: one 1, all others 0. Bool tensor (B,)."""
    return ((label_BC == 1).sum(1) == 1) & (label_BC >= 0).all(1)


def masked_cross_entropy(logit_BC, label_BC, *, n_observed=None, smoothing=0.0):
    """Return the sum of cross-entropies over rows that name just one of exclusive labels, divided by their number.

    Parameters
    ----------
    logit_BC, label_BC
        As in ``masked_bce``; a row without just one 1 and 0 elsewhere is left out.
    n_observed : number or tensor, optional
        Such rows of the whole global batch; by default those of this one.
    smoothing : float
        Share of a label that is spread evenly over all (Szegedy et al. 2016).

    Returns
    -------
    float32 scalar; 0 without such a row
    """
    observed_B = is_one_of(label_BC)
    logit_BC = logit_BC if logit_BC.dtype == torch.float64 else logit_BC.float()
    loss_B = F.cross_entropy(
        logit_BC, label_BC.argmax(1).to(torch.int64), reduction="none", label_smoothing=smoothing
    )  # fmt: skip
    return _share(loss_B[:, None], observed_B[:, None], n_observed)


def masked_huber(value_BC, wanted_BC, *, n_observed=None):
    """Return the sum of Huber losses (delta 1) over measured values, divided by their number.

    Parameters
    ----------
    value_BC : float tensor, shape (B, components)
        Network output, standardised.
    wanted_BC : float tensor, shape (B, components)
        Standardised values; NaN not measured (left out of the sum).
    n_observed : number or tensor, optional
        As in ``masked_bce``.

    Returns
    -------
    float32 scalar; 0 without any measured value

    Notes
    -----
    Huber 1964: e^2 / 2 up to an error of one standard deviation, |e| - 1/2 beyond.
    """
    observed_BC = ~wanted_BC.isnan()
    value_BC = value_BC if value_BC.dtype == torch.float64 else value_BC.float()
    loss_BC = F.huber_loss(value_BC, torch.where(observed_BC, wanted_BC, 0.0).to(value_BC.dtype), reduction="none")
    return _share(loss_BC, observed_BC, n_observed)
