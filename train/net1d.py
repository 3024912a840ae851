"""Net1D, the network of the ECGFounder foundation model, without the parts that it holds but never calls."""

import torch
import torch.nn.functional as F
from torch import nn

from anyecg.train.network import Network

WIDTHS = (64, 160, 160, 400, 400, 1024, 1024)
N_BLOCKS = (2, 2, 2, 3, 3, 4, 4)
KERNEL = 16
GROUP_WIDTH = 16


def pad_same(x_BCT, kernel, stride):
    """Pad time with zeros, so that a kernel with this stride gives ceil(samples / stride) samples; more behind."""
    n_samples = x_BCT.shape[-1]
    n_out = -(-n_samples // stride)
    n_pad = max(0, (n_out - 1) * stride + kernel - n_samples)
    return F.pad(x_BCT, (n_pad // 2, n_pad - n_pad // 2)) if n_pad else x_BCT


class _Conv(nn.Module):
    """Convolution whose output has ceil(samples / stride) samples."""

    def __init__(self, n_in, n_out, kernel, stride=1, groups=1):
        super().__init__()
        self.conv = nn.Conv1d(n_in, n_out, kernel, stride, groups=groups)

    def forward(self, x_BCT):
        return self.conv(pad_same(x_BCT, *self.conv.kernel_size, *self.conv.stride))


class _Block(nn.Module):
    """Bottleneck of a pointwise, a grouped and a pointwise convolution, gated by squeeze-excite, plus a shortcut.

    The shortcut has no weights: zeros stand around the old channels where their number grows, and a maximum over pairs
    halves the time; an odd length gets one zero behind it.
    """

    def __init__(self, n_in, n_out, stride, *, activate_input):
        super().__init__()
        self.activate_input, self.stride = activate_input, stride
        self.n_before = (n_out - n_in) // 2
        self.n_behind = n_out - n_in - self.n_before
        self.conv1 = _Conv(n_in, n_out, 1)
        self.conv2 = _Conv(n_out, n_out, KERNEL, stride, n_out // GROUP_WIDTH)
        self.conv3 = _Conv(n_out, n_out, 1)
        self.se_fc1 = nn.Linear(n_out, n_out // 2)
        self.se_fc2 = nn.Linear(n_out // 2, n_out)

    def forward(self, x_BCT):
        y_BCT = self.conv1(F.silu(x_BCT) if self.activate_input else x_BCT)
        y_BCT = self.conv3(F.silu(self.conv2(F.silu(y_BCT))))
        gate_BC = torch.sigmoid(self.se_fc2(F.silu(self.se_fc1(y_BCT.mean(-1)))))
        return y_BCT * gate_BC[..., None] + self._shortcut(x_BCT)

    def _shortcut(self, x_BCT):
        if self.stride > 1:
            x_BCT = F.max_pool1d(pad_same(x_BCT, self.stride, self.stride), self.stride)
        return F.pad(x_BCT, (0, 0, self.n_before, self.n_behind)) if self.n_before else x_BCT


class _Stage(nn.Module):
    """Blocks of one width; the first halves the time."""

    def __init__(self, n_in, n_out, n_blocks, *, is_first):
        super().__init__()
        first = _Block(n_in, n_out, 2, activate_input=not is_first)
        rest = [_Block(n_out, n_out, 1, activate_input=True) for _ in range(n_blocks - 1)]
        self.block_list = nn.Sequential(first, *rest)

    def forward(self, x_BCT):
        return self.block_list(x_BCT)


class Net1D(Network):
    """The published network of 30.7 M parameters: stem of stride 2, seven stages, 20 blocks, mean over time.

    Parameters
    ----------
    in_channels : int
        Leads of the input, float32 (B, leads, samples), standardised, 500 Hz; any number of samples.
    n_targets : int
        Logits of the output, (B, targets). The published networks have 150.

    Attributes
    ----------
    in_channels : int

    Notes
    -----
    Parameters carry the names of ECGFounder's published state_dict. Its BatchNorm and Dropout modules are left out:
    they are never called, and gradient reduction waits for parameters without gradient in vain. 2.28 GFLOP forward
    for a window of one lead and 5000 samples.
    """

    def __init__(self, in_channels=1, n_targets=108):
        super().__init__()
        self.in_channels = in_channels
        self.first_conv = _Conv(in_channels, WIDTHS[0], KERNEL, 2)
        widths_in = (WIDTHS[0], *WIDTHS[:-1])
        self.stage_list = nn.Sequential(
            *(
                _Stage(n_in, n_out, n_blocks, is_first=number == 0)
                for number, (n_in, n_out, n_blocks) in enumerate(zip(widths_in, WIDTHS, N_BLOCKS, strict=True))
            )
        )
        self.dense = nn.Linear(WIDTHS[-1], n_targets)

    def features(self, x_BLT):
        return self.stage_list(F.silu(self.first_conv(x_BLT))).mean(-1)
