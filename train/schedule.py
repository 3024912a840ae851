"""The learning rate: a function of the step, and on a plateau of the validations so far."""

import math


def learning_rate_factor(step, *, n_steps, warmup_fraction, schedule="cosine"):
    """Return the share of the largest learning rate at a step: linear warm-up, then half a cosine to zero, or level."""
    n_warmup = max(1, round(warmup_fraction * n_steps))
    if step < n_warmup:
        return (step + 1) / n_warmup
    if schedule != "cosine":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


class Plateau:
    """A factor that falls each time ``patience`` validations in a row have brought nothing better.

    What torch's ReduceLROnPlateau does, with a state that is two numbers.
    """

    def __init__(self, patience, factor):
        self.patience, self.factor = patience, factor
        self.state = {"n_waited": 0, "factor": 1.0}

    def see(self, better):
        """Take note of a validation."""
        n_waited = 0 if better else self.state["n_waited"] + 1
        factor = self.state["factor"]
        if n_waited > self.patience:
            n_waited, factor = 0, factor * self.factor
        self.state = {"n_waited": n_waited, "factor": factor}
