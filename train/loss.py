"""The masked loss: only measured targets count."""

import torch
import torch.nn.functional as F


def masked_bce(logit_BC, label_BC, *, n_observed=None):
    """Return the sum of binary cross-entropies over measured targets, divided by their number.

    Parameters
    ----------
    logit_BC : float tensor, shape (B, targets)
        Network output; computed in float32 whatever its type.
    label_BC : int tensor, shape (B, targets)
        1 abnormal, 0 not, -1 not measured (left out of the sum).
    n_observed : number or tensor, optional
        Denominator: measured entries of the whole global batch over ranks and accumulation steps; by default those
        of this batch.

    Returns
    -------
    float32 scalar; 0 without any measured entry

    Notes
    -----
    The paper's loss: sum of BCE over observed entries / (number observed + 1e-8).
    """
    observed_BC = label_BC >= 0
    if n_observed is None:
        n_observed = observed_BC.sum()
    loss_BC = F.binary_cross_entropy_with_logits(
        logit_BC.float(), label_BC.clamp(min=0).float(), reduction="none"
    )  # fmt: skip
    return torch.where(observed_BC, loss_BC, 0.0).sum() / (n_observed + 1e-8)
