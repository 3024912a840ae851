"""What every network has in common: features of a window, a head, and by choice a head that joins several windows."""

import torch
from torch import nn


def stem_stride(fs):
    """Return the stride that brings a sampling rate in Hz to about 125 Hz, so that kernels last equally long."""
    return max(1, round(fs / 125))


def standardised(x_BLT):
    """Return windows with mean 0 and SD 1 along time; a flat window becomes zeros."""
    centred_BLT = x_BLT - x_BLT.mean(-1, keepdim=True)
    # Not a variance + 1e-16, which the exporter to ONNX takes for nothing and leaves out.
    return centred_BLT / torch.sqrt((centred_BLT**2).mean(-1, keepdim=True)).clamp(min=1e-8)


class Network(nn.Module):
    """Features of a window, then ``dense``, the head of single windows.

    A subclass sets ``in_channels`` and ``dense`` (a Linear from its features to the outputs), and defines ``features``.

    Attributes
    ----------
    in_channels : int
        Leads of the input.
    dense : torch.nn.Linear
    several : torch.nn.Linear or None
        Reads mean and maximum of the features of the windows of one sample; None where their mean logit is taken.
    """

    in_channels: int
    dense: nn.Linear
    several: nn.Linear | None

    def __init__(self):
        super().__init__()
        self.several = None

    def features(self, x_BLT):
        """Return the features (B, n) of windows, float32 (B, leads, samples), standardised."""
        raise NotImplementedError

    def exportable(self, n_samples):
        """Return a network of the same outputs for windows of ``n_samples`` that other runtimes can hold."""
        return self

    def join_features(self):
        """Add the head that reads several windows together."""
        self.several = nn.Linear(2 * self.dense.in_features, self.dense.out_features)

    def joined(self, feature_BWF):
        """Return the outputs (B, targets) of samples of several windows each from the windows' features."""
        if self.several is None:
            return self.dense(feature_BWF).mean(1)
        return self.several(torch.cat([feature_BWF.mean(1), feature_BWF.amax(1)], dim=1))

    def joined_of_all(self, feature_WF, n_each):
        """Return the outputs (targets,) of one sample of any number of windows.

        Parameters
        ----------
        feature_WF : tensor, shape (windows, n)
            Features of at least one window, in order of time.
        n_each : int
            Windows of a sample in training.

        Notes
        -----
        The maximum over many windows is larger than over the ``n_each`` that the head has seen. So beyond ``n_each``
        windows are dealt to G = ceil(windows / n_each) groups, every G-th one to the same group, and the outputs of
        the groups are averaged.
        """
        assert self.several is not None
        # Places 0, 1, ... of all groups, by a running sum: a range of that length would be opaque to exporters.
        place = torch.ones_like(feature_WF[::n_each, 0]).repeat(n_each).cumsum(0).long() - 1

        def grid(values_WF, filler):
            behind = values_WF.new_full((n_each - 1, values_WF.shape[1]), filler)
            return torch.cat([values_WF, behind])[place].reshape(n_each, -1, values_WF.shape[1])

        size_G1 = grid(torch.ones_like(feature_WF[:, :1]), 0.0).sum(0)
        mean_GF, largest_GF = grid(feature_WF, 0.0).sum(0) / size_G1, grid(feature_WF, -torch.inf).amax(0)
        return self.several(torch.cat([mean_GF, largest_GF], dim=1)).mean(0)

    def forward(self, x_BLT, n_each=None):
        """Return the outputs (B, targets) of windows; with ``n_each`` those of samples too.

        Parameters
        ----------
        x_BLT : float32 tensor
            Windows; the ``n_each`` of one sample follow one another.
        n_each : int, optional
            Windows of a sample.

        Returns
        -------
        tensor (B, targets); with ``n_each`` (tensor (B / n_each, targets), tensor (B, targets))
            Outputs of the samples, then those of their windows.
        """
        feature_BF = self.features(x_BLT)
        output_BC = self.dense(feature_BF)
        if n_each is None:
            return output_BC
        return self.joined(feature_BF.unflatten(0, (-1, n_each))), output_BC
