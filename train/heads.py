"""What a network's outputs mean: many labels at once, exclusive labels, or values."""

import numpy as np
from scipy.special import expit, logsumexp, softmax


def scores_of(output_WC, card):
    """Return what a user reads from a network's outputs.

    Parameters
    ----------
    output_WC : float array, shape (windows or draws, targets)
        NaN where there is nothing to score.
    card : dict
        Of the model: ``head``, and for a regression ``value_mean`` and ``value_sd`` by target.

    Returns
    -------
    float64 array of that shape
        "multilabel": sigmoid; "exclusive": softmax over the targets; "regression": values in the components' units.
    """
    output_WC = np.asarray(output_WC, np.float64)
    if card["head"] == "multilabel":
        return expit(output_WC)
    if card["head"] == "exclusive":
        return softmax(output_WC, axis=1)
    return output_WC * np.array(card["value_sd"]) + np.array(card["value_mean"])


def ranked_of(output_WC, card):
    """Return what units are ranked by: the log-odds of the probabilities of ``scores_of``, the values of a regression.

    Log-odds rank as probabilities do, and tell apart what would round to a probability of 1.
    """
    output_WC = np.asarray(output_WC, np.float64)
    if card["head"] == "multilabel":
        return output_WC
    if card["head"] == "exclusive":
        others = [np.delete(output_WC, target, axis=1) for target in range(output_WC.shape[1])]
        return output_WC - np.stack([logsumexp(other, axis=1) for other in others], axis=1)
    return scores_of(output_WC, card)
