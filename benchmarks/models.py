"""Lay the networks side by side: parameters, FLOP, windows a second in training and inference, share of matmul's rate.

A round runs every way once, in turn, and the limits with them; a share is the median of the shares within a round,
because on a shared machine the speed changes from round to round. One thread is measured by its own processor time.
"""

import argparse
import os
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from anyecg.train.loss import masked_bce
from anyecg.train.model import MODELS, build_model
from benchmarks.kernels import processor

TARGETS = 108
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


def flop_of(network, n_samples):
    """Return the FLOP of a window forward, as torch counts them: convolutions and matrix products alone.

    What a batch costs however small it is (the state-space kernels) is left out: two windows less one.
    """
    counts = []
    for n_windows in (1, 2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(n_windows, network.in_channels, n_samples, device=next(network.parameters()).device))
        counts.append(counter.get_total_flops())
    return counts[1] - counts[0]


def training_step(network, x_BLT, precision):
    """Return a call that trains one batch: forward, masked loss of random labels, backward, AdamW."""
    label_BC = torch.randint(0, 2, (len(x_BLT), TARGETS), dtype=torch.int8, device=x_BLT.device)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-5, fused=True)

    def step():
        with torch.autocast(x_BLT.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logit_BC = network(x_BLT)
        masked_bce(logit_BC, label_BC).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def inference(network, x_BLT, precision):
    """Return a call that scores one batch."""

    @torch.no_grad()
    def step():
        with torch.autocast(x_BLT.device.type, torch.bfloat16, enabled=precision == "bf16"):
            network(x_BLT)

    return step


def matmul(precision, device, size):
    """Return a call that multiplies two square matrices, and its FLOP."""
    a, b = torch.randn(2, size, size, device=device).to(PRECISIONS[precision])
    return lambda: a @ b, 2 * size**3


def in_rounds(ways, seconds, clock):
    """Warm up, then run the ways in turn until the time is up, three times at least; return the seconds of each."""
    for way in ways.values():
        way()
    found, end = {name: [] for name in ways}, time.monotonic() + seconds
    while len(next(iter(found.values()))) < 3 or time.monotonic() < end:
        for name, way in ways.items():
            start = clock()
            way()
            found[name].append(clock() - start)
    return found


def share(done, limit):
    """Return the median over rounds of what was done in a second as a share of the limit: lists of rates."""
    return statistics.median(d / m for d, m in zip(done, limit, strict=True))


def rates(amount, seconds):
    """Return amounts a second."""
    return [amount / s for s in seconds]


def main():
    """Print the machine, then a line for each network, task and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180, help="time to measure; three rounds are run at least")
    parser.add_argument("--batch", type=int, default=16, help="windows of a batch")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--size", type=int, default=1024, help="rows and columns of the matrices that set the limit")
    options = parser.parse_args()
    torch.manual_seed(0)
    x_BLT = torch.randn(options.batch, 1, options.samples)
    networks = {name: build_model(name, n_leads=1, n_targets=TARGETS, seed=0) for name in MODELS}
    ways, limit_flop = {}, {}
    for precision in PRECISIONS:
        ways["matmul", "", precision], limit_flop[precision] = matmul(precision, "cpu", options.size)
        for name, network in networks.items():
            ways[name, "training", precision] = training_step(network, x_BLT, precision)
            ways[name, "inference", precision] = inference(network, x_BLT, precision)
    n_threads = torch.get_num_threads()
    found = in_rounds(ways, options.seconds, time.thread_time if n_threads == 1 else time.perf_counter)
    limits = {p: rates(limit_flop[p], found["matmul", "", p]) for p in PRECISIONS}
    print(
        f"{processor()}, {n_threads} of {os.cpu_count()} cores; torch {torch.__version__}; "
        f"load {os.getloadavg()[0]:.1f}; medians of {len(limits['float32'])} rounds"
    )
    for precision, limit in limits.items():
        print(f"matrix product of {options.size}, {precision}: {statistics.median(limit) / 1e9:.0f} GFLOP/s")
    print(
        f"batches of {options.batch} x 1 x {options.samples}; FLOP of convolutions and matrix products, not of FFT, "
        "normalisation, activation, pooling; training taken as three times forward\n"
    )
    print("| network | parameters | MFLOP a window | task | precision | windows/s | share of matmul |")
    print("|---|---|---|---|---|---|---|")
    for name, network in networks.items():
        n_parameters = sum(p.numel() for p in network.parameters())
        flop = flop_of(network, options.samples)
        for task, times in (("training", 3), ("inference", 1)):
            for precision in PRECISIONS:
                windows = rates(options.batch, found[name, task, precision])
                done = share(rates(times * flop * options.batch, found[name, task, precision]), limits[precision])
                print(
                    f"| {name} | {n_parameters / 1e6:.2f} M | {flop / 1e6:.0f} | {task} | {precision} "
                    f"| {statistics.median(windows):.1f} | {100 * done:.0f} % |"
                )


if __name__ == "__main__":
    main()
