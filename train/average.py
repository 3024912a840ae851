"""A moving average of a network's weights."""

from contextlib import contextmanager

import torch


class Average:
    """The exponential moving average of the weights after each step; a decay of 0 keeps none.

    Notes
    -----
    The decay of step t is at most (1 + t) / (10 + t), so that the first weights are forgotten soon.
    """

    def __init__(self, network, decay):
        self.network, self.decay = network, decay
        self.weights = {name: p.detach().clone() for name, p in network.named_parameters()} if decay else {}

    @torch.no_grad()
    def update(self, step):
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.network.named_parameters() if self.decay else ():
            self.weights[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def in_place(self):
        """Put the average in the place of the weights for a while."""
        parameters = dict(self.network.named_parameters())
        kept = {name: parameters[name].detach().clone() for name in self.weights}
        self._copy(self.weights)
        yield
        self._copy(kept)

    def state(self):
        """Return the average as ``average.NAME`` tensors."""
        return {f"average.{name}": value.cpu().clone() for name, value in self.weights.items()}

    def load(self, tensors):
        """Take on what ``state`` gave."""
        for name, value in self.weights.items():
            value.copy_(tensors[f"average.{name}"])

    @torch.no_grad()
    def _copy(self, weights):
        parameters = dict(self.network.named_parameters())
        for name, value in weights.items():
            parameters[name].copy_(value)
