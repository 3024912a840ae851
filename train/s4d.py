"""A small structured state-space network, to be trained from scratch beside the residual network."""

import copy
import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from anyecg.train.network import Network, stem_stride


def _powers(log_re_HN, log_im_HN, step_K):
    """Return z**k by its real and imaginary parts (H, N, K), where log z is given."""
    size_HNK = torch.exp(log_re_HN[..., None] * step_K)
    angle_HNK = log_im_HN[..., None] * step_K
    return size_HNK * torch.cos(angle_HNK), size_HNK * torch.sin(angle_HNK)


def _circle(n_steps):
    """Return a length of at least 2 n_steps - 1 for fast Fourier transforms: 4, 5, 6 or 7 times a power of two."""
    wanted = 2 * n_steps - 1
    unit = 1 << max(0, wanted.bit_length() - 3)
    return -(-wanted // unit) * unit


class _Convolve(torch.autograd.Function):
    """Convolve each row with its channel's kernel on a circle.

    Autograd's own way back through rfft takes complex transforms of twice the length: 1.9 times the time of a layer.
    """

    @staticmethod
    def forward(ctx, x_BHT, kernel_HK):
        n_circle, n_steps = kernel_HK.shape[-1], x_BHT.shape[-1]
        x_BHF, kernel_HF = torch.fft.rfft(x_BHT, n=n_circle), torch.fft.rfft(kernel_HK)
        ctx.save_for_backward(x_BHF, kernel_HF)
        ctx.lengths = n_circle, n_steps
        return torch.fft.irfft(x_BHF * kernel_HF, n=n_circle)[..., :n_steps]

    @staticmethod
    def backward(ctx, grad_BHT):
        x_BHF, kernel_HF = ctx.saved_tensors
        n_circle, n_steps = ctx.lengths
        grad_BHF = torch.fft.rfft(grad_BHT, n=n_circle)
        kernel_grad_HF = (grad_BHF * x_BHF.conj()).sum(0)
        x_grad_BHT = torch.fft.irfft(grad_BHF * kernel_HF.conj(), n=n_circle)[..., :n_steps]
        return x_grad_BHT, torch.fft.irfft(kernel_grad_HF, n=n_circle)


class StateSpace(nn.Module):
    """Diagonal state-space layer S4D-Lin (Gu et al. 2022), each channel by itself, run forwards and backwards in time.

    Parameters
    ----------
    channels : int
        H. The layer maps (B, H, T) to (B, H, T), any T.
    n_states : int
        N complex states of a channel; with their conjugates twice as many.

    Notes
    -----
    The continuous system x' = A x + u, y = 2 Re(C x), discretised with a zero-order hold of length dt, starts at
    A_n = -1/2 + i pi n, with dt evenly spread on a logarithmic scale over the channels. What is learnt of A and dt is
    the way from there, so weight decay pulls to this start; the paper has to take them out of the decay, which would
    pull dt to 1. Both directions share A and dt and have their own C; the backward one begins one step before the
    present, so that the present counts once. All parameters are real, and everything is computed in float32, under
    autocast too: powers and sums of a long kernel do not bear bfloat16.
    """

    def __init__(self, channels, n_states=32, dt_min=1e-3, dt_max=1e-1):
        super().__init__()
        log_dt_H = torch.linspace(math.log(dt_min), math.log(dt_max), channels)
        self.log_dt_start = nn.Buffer(log_dt_H[:, None], persistent=False)
        self.frequency_start = nn.Buffer(math.pi * torch.arange(n_states), persistent=False)
        self.log_dt = nn.Parameter(torch.zeros(channels, 1))
        self.log_decay = nn.Parameter(torch.zeros(channels, n_states))
        self.frequency = nn.Parameter(torch.zeros(channels, n_states))
        self.c = nn.Parameter(torch.randn(2, 2, channels, n_states) * math.sqrt(0.5))
        self.skip = nn.Parameter(torch.randn(channels))

    def _discrete(self):
        """Return log z (real, imaginary) and the weights 2 C (z - 1) / A of each direction, where z = exp(dt A)."""
        dt_H1 = torch.exp(self.log_dt_start + self.log_dt)
        a_re, a_im = -0.5 * torch.exp(self.log_decay), self.frequency_start + self.frequency
        re, im = dt_H1 * a_re, dt_H1 * a_im
        # z - 1 without cancellation for small dt A.
        up_re = torch.expm1(re) * torch.cos(im) - 2 * torch.sin(im / 2) ** 2
        up_im = torch.exp(re) * torch.sin(im)
        norm = a_re**2 + a_im**2
        b_re, b_im = (up_re * a_re + up_im * a_im) / norm, (up_im * a_re - up_re * a_im) / norm
        c_re, c_im = self.c
        return (re, im), (2 * (c_re * b_re - c_im * b_im), 2 * (c_re * b_im + c_im * b_re))

    def kernels(self, n_steps):
        """Return the responses (2, H, n_steps) to a unit impulse: forwards and backwards.

        z**(q s + r) = z**(q s) z**r, so 2 sqrt(n_steps) powers of a state and a matrix product replace n_steps powers.
        """
        (re, im), (weight_re, weight_im) = self._discrete()
        n_fine = math.isqrt(n_steps - 1) + 1
        step_K = torch.arange(n_fine, device=re.device, dtype=re.dtype)
        fine_re, fine_im = _powers(re, im, step_K)
        coarse_re, coarse_im = _powers(re, im, step_K[: -(-n_steps // n_fine)] * n_fine)
        left_re = weight_re[..., None] * coarse_re - weight_im[..., None] * coarse_im
        left_im = weight_re[..., None] * coarse_im + weight_im[..., None] * coarse_re
        left = torch.cat([left_re, -left_im], dim=2).transpose(2, 3)
        return (left @ torch.cat([fine_re, fine_im], dim=1)).flatten(2)[..., :n_steps]

    def circular(self, n_steps, n_circle):
        """Return both directions as one kernel (H, n_circle): the past in front, the future from the end backwards."""
        forwards_HT, backwards_HT = self.kernels(n_steps)
        gap_HK = forwards_HT.new_zeros(len(forwards_HT), n_circle - 2 * n_steps + 1)
        return torch.cat([forwards_HT, gap_HK, backwards_HT[:, :-1].flip(-1)], dim=1)

    def forward(self, x_BHT):
        n_steps = x_BHT.shape[-1]
        with torch.autocast(x_BHT.device.type, enabled=False):
            x_BHT = x_BHT.float()
            kernel_HK = self.circular(n_steps, _circle(n_steps))
            return _Convolve.apply(x_BHT, kernel_HK) + self.skip[:, None] * x_BHT


@functools.lru_cache(maxsize=4)
def _transforms(n_steps):
    """Return, as real matrices, the Fourier transform of n_steps values on the smallest circle, and the way back."""
    n_circle = 2 * n_steps - 1
    identity = torch.eye(n_steps, dtype=torch.float64)
    there = torch.fft.rfft(identity, n=n_circle)
    back = [torch.fft.irfft(unit * identity, n=n_circle)[:, :n_steps] for unit in (1, 1j)]
    return [matrix.float() for matrix in (there.real, there.imag, *back)]


class _FixedStateSpace(nn.Module):
    """A StateSpace for one number of steps: its kernel made once, its Fourier transforms products of real matrices.

    Other runtimes have no complex numbers. A convolution with kernels as long as the window would do too, but takes ten
    times as long.
    """

    def __init__(self, layer, n_steps):
        super().__init__()
        kernel_HK = layer.circular(n_steps, 2 * n_steps - 1)
        kernel_HK[:, 0] += layer.skip
        kernel_HF = torch.fft.rfft(kernel_HK)
        names = ("there_re", "there_im", "back_re", "back_im", "kernel_re", "kernel_im")
        for name, value in zip(names, (*_transforms(n_steps), kernel_HF.real, kernel_HF.imag), strict=True):
            self.register_buffer(name, value.to(kernel_HK.device))

    def forward(self, x_BHT):
        re, im = x_BHT @ self.there_re, x_BHT @ self.there_im
        y_re, y_im = re * self.kernel_re - im * self.kernel_im, re * self.kernel_im + im * self.kernel_re
        return y_re @ self.back_re + y_im @ self.back_im


class _Block(nn.Module):
    """Residual block: normalise, state space along time, GELU, gated mixing of the channels."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.space = StateSpace(channels)
        self.mix = nn.Conv1d(channels, 2 * channels, 1)

    def forward(self, x_BHT):
        return x_BHT + F.glu(self.mix(F.gelu(self.space(self.norm(x_BHT)))), 1)


class S4D(Network):
    """State-space network of 0.47 M parameters: stem to 31 Hz, six blocks, mean and max over time.

    Parameters
    ----------
    in_channels : int
        Leads of the input, float32 (B, leads, samples), standardised; any number of samples.
    n_targets : int
        Logits of the output, (B, targets).
    fs : int
        Sampling rate of the input in Hz; the stride of the stem follows from it.
    """

    def __init__(self, in_channels=1, n_targets=108, fs=500, channels=128, n_blocks=6):
        super().__init__()
        self.in_channels = in_channels
        self.stem = nn.Sequential(
            nn.Conv1d(in_channels, 32, 15, stem_stride(fs), padding=7, bias=False),
            nn.GroupNorm(8, 32),
            nn.GELU(),
            nn.Conv1d(32, 64, 9, 2, padding=4, bias=False),
            nn.GroupNorm(8, 64),
            nn.GELU(),
            nn.Conv1d(64, channels, 9, 2, padding=4),
        )
        self.blocks = nn.Sequential(*(_Block(channels) for _ in range(n_blocks)))
        self.last = nn.GroupNorm(8, channels)
        self.dense = nn.Linear(2 * channels, n_targets)

    def features(self, x_BLT):
        x_BHT = self.last(self.blocks(self.stem(x_BLT)))
        return torch.cat([x_BHT.mean(-1), x_BHT.amax(-1)], dim=1)

    @torch.no_grad()
    def exportable(self, n_samples):
        network = copy.deepcopy(self)
        x_BLT = torch.zeros(1, self.in_channels, n_samples, device=self.dense.weight.device)
        n_steps = network.stem(x_BLT).shape[-1]
        for block in network.blocks:
            block.space = _FixedStateSpace(block.space, n_steps)
        return network
