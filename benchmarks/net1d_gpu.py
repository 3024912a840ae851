"""Net1D's training rate as a share of the roofline, beside the published network stated again, on a GPU where one is.

The roofline of a way is the smaller of two rates: that of a matrix product over the FLOP of a window (training: three
times forward), and that of a copy over the bytes of a window. Bytes are counted twice: eager, where every operation
reads its inputs and writes its outputs, and fused, where only convolutions and matrix products do. Caches can beat the
first, nothing that stores its activations beats the second by much. Weights and optimiser, the same for any batch, are
left out.

On a CPU it needs tiny settings, and says nothing about a GPU:
    python -m benchmarks.net1d_gpu --batch 2 --samples 640 --size 256 --seconds 1 --forms eager
"""

import argparse
import copy
import os
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anyecg.train.model import build_model
from anyecg.train.net1d import pad_same
from anyecg.train.weights import published_state_dict
from benchmarks.kernels import processor
from benchmarks.models import TARGETS, flop_of, in_rounds, matmul, rates, share, training_step
from tests.train.published_net1d import PublishedNet1D

PRODUCTS = ("convolution", "mm", "bmm", "addmm", "linear")


class _Convolution(nn.Module):
    """A convolution of Net1D over (B, C, 1, T) with the channels innermost; a pointwise one is a matrix product."""

    def __init__(self, module):
        super().__init__()
        convolution = module.conv
        (self.kernel,), (self.stride,) = convolution.kernel_size, convolution.stride
        self.groups, self.bias = convolution.groups, convolution.bias
        weight = convolution.weight.detach()[:, :, None].contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight)

    def forward(self, x_BC1T):
        if self.kernel == 1:
            return F.linear(x_BC1T.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)
        padded = pad_same(x_BC1T, self.kernel, self.stride)
        return F.conv2d(padded, self.weight, self.bias, (1, self.stride), groups=self.groups)


class _Block(nn.Module):
    """A block of Net1D over (B, C, 1, T)."""

    def __init__(self, block):
        super().__init__()
        self.block = block
        for name in ("conv1", "conv2", "conv3"):
            setattr(block, name, _Convolution(getattr(block, name)))

    def forward(self, x_BC1T):
        block = self.block
        y_BC1T = block.conv1(F.silu(x_BC1T) if block.activate_input else x_BC1T)
        y_BC1T = block.conv3(F.silu(block.conv2(F.silu(y_BC1T))))
        gate_BC = torch.sigmoid(block.se_fc2(F.silu(block.se_fc1(y_BC1T.mean((2, 3))))))
        if block.stride > 1:
            x_BC1T = F.max_pool2d(pad_same(x_BC1T, block.stride, block.stride), (1, block.stride))
        if block.n_before:
            x_BC1T = F.pad(x_BC1T, (0, 0, 0, 0, block.n_before, block.n_behind))
        return y_BC1T * gate_BC[..., None, None] + x_BC1T


class ChannelsLast(nn.Module):
    """Net1D with channels innermost: torch has that form for two dimensions only, so the leads get a height of one."""

    def __init__(self, network):
        super().__init__()
        network = copy.deepcopy(network)
        self.in_channels = network.in_channels
        self.first = _Convolution(network.first_conv)
        self.blocks = nn.Sequential(*(_Block(block) for stage in network.stage_list for block in stage.block_list))
        self.dense = network.dense

    def forward(self, x_BLT):
        """Return logits (B, targets)."""
        x_BL1T = x_BLT[:, :, None].contiguous(memory_format=torch.channels_last)
        return self.dense(self.blocks(F.silu(self.first(x_BL1T))).mean((2, 3)))


class Traffic(TorchDispatchMode):
    """Count the bytes that operations read and write: of all of them, and of convolutions and matrix products."""

    def __init__(self):
        super().__init__()
        self.eager = self.fused = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        if not operation.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            n_bytes = sum(tensor.nbytes for tensor in tensors)
            self.eager += n_bytes
            self.fused += n_bytes * operation.overloadpacket.__name__.removesuffix("_backward").endswith(PRODUCTS)
        return out


def bytes_of(network, precision, n_samples):
    """Return the bytes of a window in a training step, eager and fused; two windows less one leave the weights out."""
    device = next(network.parameters()).device
    counts = []
    for n_windows in (1, 2):
        step = training_step(network, torch.randn(n_windows, 1, n_samples, device=device), precision)
        with Traffic() as traffic:
            step()
        counts.append((traffic.eager, traffic.fused))
    return tuple(two - one for one, two in zip(*counts, strict=True))


def with_tf32(precision, call, n_times=1):
    """Return a call that allows TF32 for the precision "tf32" alone, and repeats so that launches overlap."""

    def way():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        for _ in range(n_times):
            call()

    return way


def networks_of(device):
    """Return the peers, with the same weights."""
    ours = build_model("net1d", n_leads=1, n_targets=TARGETS, seed=0)
    published = PublishedNet1D(1, TARGETS)
    published.load_state_dict(published_state_dict(ours))
    published.in_channels = 1
    found = {"published": published, "net1d": ours, "net1d channels-last": ChannelsLast(ours)}
    return {name: network.to(device) for name, network in found.items()}


def make_ways(options, networks, x_BLT, block, n_times):
    """Return the calls to time: copy, a matrix product of each precision, a training step of each way; and FLOP."""
    target = torch.empty_like(block)
    ways = {"copy": with_tf32("float32", lambda: target.copy_(block), n_times)}
    product_flop = {}
    for precision in options.precisions:
        values = "bf16" if precision == "bf16" else "float32"
        product, product_flop[precision] = matmul(values, block.device, options.size)
        ways["matmul", precision] = with_tf32(precision, product, n_times)
        for name, network in networks.items():
            for form in options.forms:
                mode = "reduce-overhead" if form == "graphs" else None
                run = network if form == "eager" else torch.compile(network, mode=mode)
                ways[name, precision, form] = with_tf32(precision, training_step(run, x_BLT, precision), n_times)
    return ways, product_flop


def print_table(options, networks, found, *, copied, multiplied, flop):
    """Print a line for each way; rates of copies in bytes and of products in FLOP a second, by round."""
    print("| network | precision | form | windows/s | x published | of arithmetic | of memory, eager | fused |")
    print("|---|---|---|---|---|---|---|---|")
    for precision in options.precisions:
        limit = statistics.median(multiplied[precision]) / 1e12
        print(f"| matrix product | {precision} | | {limit:.3g} TFLOP/s | | | | |")
        peer = rates(1, found["published", precision, options.forms[0]])
        for name, network in networks.items():
            traffic = bytes_of(network, precision, options.samples)
            for form in options.forms:
                steps = rates(1, found[name, precision, form])
                windows = [options.batch * rate for rate in steps]
                arithmetic = share([flop * rate for rate in windows], multiplied[precision])
                eager, fused = (
                    f"{share([n_bytes * rate for rate in windows], copied):.1%} of {n_bytes / 1e6:.0f} MB"
                    for n_bytes in traffic
                )
                print(
                    f"| {name} | {precision} | {form} | {statistics.median(windows):.1f} "
                    f"| {share(steps, peer):.2f} | {arithmetic:.1%} | {eager} | {fused} |"
                )


def main():
    """Print the machine, its limits, then a line for each network, precision and form."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="time to measure after warm-up and compilation")
    parser.add_argument("--batch", type=int, default=256, help="windows of a batch")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--size", type=int, default=8192, help="rows and columns of the matrices that set the limit")
    parser.add_argument("--precisions", nargs="+", default=["float32", *["tf32"] * on_gpu, "bf16"])
    parser.add_argument("--forms", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled", "graphs"])
    options = parser.parse_args()
    device, n_times = ("cuda", 5) if on_gpu else ("cpu", 1)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    networks = networks_of(device)
    x_BLT = torch.randn(options.batch, 1, options.samples, device=device)
    # 1 GiB on a GPU, far beyond its caches.
    block = torch.zeros((1 << 28) if on_gpu else (1 << 24), device=device)
    ways, product_flop = make_ways(options, networks, x_BLT, block, n_times)

    def clock():
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    found = {name: [s / n_times for s in seconds] for name, seconds in in_rounds(ways, options.seconds, clock).items()}
    copied = rates(2 * block.nbytes, found["copy"])
    multiplied = {precision: rates(flop, found["matmul", precision]) for precision, flop in product_flop.items()}
    flop = 3 * flop_of(networks["net1d"], options.samples)
    name = torch.cuda.get_device_name() if on_gpu else processor()
    print(f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}; load {os.getloadavg()[0]:.1f}")
    print(f"batches of {options.batch} x 1 x {options.samples}; medians of {len(copied)} rounds of {n_times} steps")
    print(f"{flop / 1e9:.2f} GFLOP a window and training step; the published network's {options.forms[0]} form is 1")
    print(f"copy of {block.nbytes >> 20} MiB: {statistics.median(copied) / 1e9:.0f} GB/s, read and written\n")
    print_table(options, networks, found, copied=copied, multiplied=multiplied, flop=flop)


if __name__ == "__main__":
    main()
