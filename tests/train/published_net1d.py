"""The published Net1D stated again as it runs, for a fair peer: every part it holds, padding copies, plain modules.

It holds a BatchNorm and a Dropout before each convolution and calls none; convolution and pooling pad by a copy with
zeros first; the shortcut's channels grow by two transpositions around a pad of the last axis.
"""

import torch
import torch.nn.functional as F
from torch import nn

FILTERS = (64, 160, 160, 400, 400, 1024, 1024)
BLOCKS = (2, 2, 2, 3, 3, 4, 4)


class Swish(nn.Module):
    """x sigmoid(x), in two operations."""

    def forward(self, x):
        """Return the gated input."""
        return x * torch.sigmoid(x)


class SameConv(nn.Module):
    """Convolution after padding with zeros to ceil(samples / stride) outputs."""

    def __init__(self, n_in, n_out, kernel, stride, groups=1):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv1d(n_in, n_out, kernel, stride, groups=groups)

    def forward(self, x):
        """Pad, then convolve."""
        length = x.shape[-1]
        n_pad = max(0, ((length + self.stride - 1) // self.stride - 1) * self.stride + self.kernel - length)
        return self.conv(F.pad(x, (n_pad // 2, n_pad - n_pad // 2), "constant", 0))


class SamePool(nn.Module):
    """Largest of each stride's samples, after padding with stride - 1 zeros, on even lengths in vain."""

    def __init__(self, stride):
        super().__init__()
        self.stride, self.max_pool = stride, nn.MaxPool1d(stride)

    def forward(self, x):
        """Pad, then pool."""
        n_pad = self.stride - 1
        return self.max_pool(F.pad(x, (n_pad // 2, n_pad - n_pad // 2), "constant", 0))


class Block(nn.Module):
    """Bottleneck with its unused normalisations and dropouts."""

    def __init__(self, n_in, n_out, *, downsample, is_first):
        super().__init__()
        self.n_in, self.n_out, self.downsample, self.is_first = n_in, n_out, downsample, is_first
        stride = 2 if downsample else 1
        self.bn1, self.activation1, self.do1 = nn.BatchNorm1d(n_in), Swish(), nn.Dropout(0.5)
        self.conv1 = SameConv(n_in, n_out, 1, 1)
        self.bn2, self.activation2, self.do2 = nn.BatchNorm1d(n_out), Swish(), nn.Dropout(0.5)
        self.conv2 = SameConv(n_out, n_out, 16, stride, groups=n_out // 16)
        self.bn3, self.activation3, self.do3 = nn.BatchNorm1d(n_out), Swish(), nn.Dropout(0.5)
        self.conv3 = SameConv(n_out, n_out, 1, 1)
        self.se_fc1, self.se_fc2 = nn.Linear(n_out, n_out // 2), nn.Linear(n_out // 2, n_out)
        self.se_activation = Swish()
        self.max_pool = SamePool(2)

    def forward(self, x):
        """Return residual plus shortcut."""
        identity, out = x, x
        if not self.is_first:
            out = self.activation1(out)
        out = self.conv1(out)
        out = self.conv2(self.activation2(out))
        out = self.conv3(self.activation3(out))
        gate = torch.sigmoid(self.se_fc2(self.se_activation(self.se_fc1(out.mean(-1)))))
        out = torch.einsum("abc,ab->abc", out, gate)
        if self.downsample:
            identity = self.max_pool(identity)
        if self.n_out != self.n_in:
            before = (self.n_out - self.n_in) // 2
            behind = self.n_out - self.n_in - before
            identity = F.pad(identity.transpose(-1, -2), (before, behind), "constant", 0).transpose(-1, -2)
        return out + identity


class Stage(nn.Module):
    """Blocks of one width."""

    def __init__(self, n_in, n_out, n_blocks, *, is_first):
        super().__init__()
        self.block_list = nn.ModuleList(
            Block(n_out if number else n_in, n_out, downsample=number == 0, is_first=is_first and number == 0)
            for number in range(n_blocks)
        )

    def forward(self, x):
        """Run the blocks."""
        for block in self.block_list:
            x = block(x)
        return x


class PublishedNet1D(nn.Module):
    """Net1D with the names of the published state_dict, all 509 of them."""

    def __init__(self, in_channels=1, n_targets=150):
        super().__init__()
        self.first_conv = SameConv(in_channels, FILTERS[0], 16, 2)
        self.first_bn, self.first_activation, self.first_do = nn.BatchNorm1d(FILTERS[0]), Swish(), nn.Dropout(0.5)
        widths_in = (FILTERS[0], *FILTERS[:-1])
        self.stage_list = nn.ModuleList(
            Stage(n_in, n_out, n_blocks, is_first=number == 0)
            for number, (n_in, n_out, n_blocks) in enumerate(zip(widths_in, FILTERS, BLOCKS, strict=True))
        )
        self.dense = nn.Linear(FILTERS[-1], n_targets)

    def forward(self, x):
        """Return logits (B, targets)."""
        out = self.first_activation(self.first_conv(x))
        for stage in self.stage_list:
            out = stage(out)
        return self.dense(out.mean(-1))
