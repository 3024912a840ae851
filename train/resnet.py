"""A small one-dimensional residual network, to be trained from scratch beside the foundation model."""

import torch
from torch import nn

from anyecg.train.network import Network, stem_stride


class _SqueezeExcite(nn.Module):
    """Weigh each channel by a gate computed from its mean over time (Hu et al. 2018)."""

    def __init__(self, channels):
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(channels, channels // 4), nn.SiLU(), nn.Linear(channels // 4, channels), nn.Sigmoid()
        )

    def forward(self, x_BCT):
        return x_BCT * self.gate(x_BCT.mean(-1))[..., None]


class _Block(nn.Module):
    """Pre-activation residual block (He et al. 2016), GroupNorm instead of BatchNorm."""

    def __init__(self, n_in, n_out, kernel, stride):
        super().__init__()
        self.residual = nn.Sequential(
            nn.GroupNorm(8, n_in),
            nn.SiLU(),
            nn.Conv1d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False),
            nn.GroupNorm(8, n_out),
            nn.SiLU(),
            nn.Conv1d(n_out, n_out, kernel, padding=kernel // 2, bias=False),
            _SqueezeExcite(n_out),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool1d(stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity(),
            nn.Conv1d(n_in, n_out, 1, bias=False) if n_in != n_out else nn.Identity(),
        )

    def forward(self, x_BCT):
        return self.shortcut(x_BCT) + self.residual(x_BCT)


class ResNet(Network):
    """Residual network of 0.7 M parameters: stem to 62.5 Hz, three stages of two blocks, mean and max over time.

    Parameters
    ----------
    in_channels : int
        Leads of the input, float32 (B, leads, samples), standardised; any number of samples.
    n_targets : int
        Logits of the output, (B, targets).
    fs : int
        Sampling rate of the input in Hz; the stride of the stem follows from it.
    """

    def __init__(self, in_channels=1, n_targets=108, fs=500, widths=(32, 64, 128), kernel=9):
        super().__init__()
        self.in_channels = in_channels
        self.stem = nn.Sequential(
            nn.Conv1d(in_channels, 24, 15, stem_stride(fs), padding=7, bias=False),
            nn.GroupNorm(8, 24),
            nn.SiLU(),
            nn.MaxPool1d(2, ceil_mode=True),
        )
        blocks, n_in = [], 24
        for width in widths:
            blocks += [_Block(n_in, width, kernel, 2), _Block(width, width, kernel, 1)]
            n_in = width
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.GroupNorm(8, n_in), nn.SiLU())
        self.dense = nn.Linear(2 * n_in, n_targets)

    def features(self, x_BLT):
        x_BCT = self.last(self.blocks(self.stem(x_BLT)))
        return torch.cat([x_BCT.mean(-1), x_BCT.amax(-1)], dim=1)
