"""What counting costs: ns an event, with one thread and four, and its share of a batch's time in a real profile."""

import argparse
import json
import threading
import time
from pathlib import Path

from anyecg.loaders.counters import Counters

N_EVENTS = 200_000


def _add(counters, n_events):
    start = time.perf_counter_ns()
    for _ in range(n_events):
        counters.add("read", start, n_bytes=640_000, n_windows=64)


def ns_per_event(n_threads, *, traced=False):
    """Return the time that one event takes when so many threads count at once."""
    counters = Counters(traced=traced)
    threads = [threading.Thread(target=_add, args=(counters, N_EVENTS // n_threads)) for _ in range(n_threads)]
    start = time.perf_counter_ns()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter_ns() - start) / N_EVENTS


def main():
    """Print the best of several rounds, the kinds in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", type=Path, help="profile.json of 'anyecg profile'")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    kinds = {"1 thread": (1, False), "4 threads": (4, False), "1 thread, traced": (1, True)}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(arguments.rounds):
        for name, (n_threads, traced) in kinds.items():
            found[name].append(ns_per_event(n_threads, traced=traced))
    whole = json.loads(arguments.profile.read_text(encoding="utf-8"))["whole"]
    events = whole["n_events"] / whole["n_batches"]
    batch_ns = whole["seconds"] * whole["ranks"] * 1e9 / whole["n_batches"]
    print(f"{events:.1f} events a batch, {batch_ns / 1e6:.3f} ms a batch, {whole['windows_per_s']:,.0f} windows/s")
    for name, values in found.items():
        best = min(values)
        print(f"{name:17} {best:4.0f} ns an event, {events * best / batch_ns:.4%} of a batch's time")


if __name__ == "__main__":
    main()
