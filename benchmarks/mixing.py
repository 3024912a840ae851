"""Measure how well an epoch is mixed, beside a perfect shuffle of the same pairs, and what reading it costs.

    python -m benchmarks.mixing --index FOLDER_OF_SHARDS
    python -m benchmarks.mixing --windows 1000000 --visits 5900        # an index without signal, of that size

Reading is simulated from the order and the reader's own slots alone: a rank keeps the runs of chunks that it used last,
and reads a run that it does not have whole. ``--read`` reads the shards as well, and the reader counts the bytes.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from anyecg.loaders.choice import run_starts
from anyecg.loaders.index import open_index
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.slots import Slots
from anyecg.loaders.stream import batch, epoch_order, n_batches, rows_of_rank, slots_of_rank
from anyecg.loaders.stream_config import Choice
from benchmarks.index_scale import make_index
from benchmarks.kernels import processor

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


def same_visit(visit_P, batch_size):
    """Return the mean number of couples of one visit in a batch, and the share of pairs that have such company.

    Parameters
    ----------
    visit_P : int array
        Visit of each pair, in the order of the epoch.
    """
    number_P = np.arange(len(visit_P)) // batch_size
    _, counts = np.unique(number_P * (int(visit_P.max()) + 1) + visit_P, return_counts=True)
    couples = (counts * (counts - 1) // 2).sum() / (number_P[-1] + 1)
    return float(couples), float(counts[counts > 1].sum() / len(visit_P))


def correlations(place_P):
    """Return Pearson's and Spearman's correlation of the position in the epoch with the place in the shards."""
    position_P = np.arange(len(place_P))
    ranks = rankdata(place_P)
    return float(np.corrcoef(position_P, place_P)[0, 1]), float(np.corrcoef(position_P, ranks)[0, 1])


def distances(window_P, batch_size):
    """Return the distances, in pairs, between one pair of a window and its next, and the share within one batch."""
    order = np.lexsort((np.arange(len(window_P)), window_P))
    again = np.flatnonzero(window_P[order][1:] == window_P[order][:-1])
    first, second = order[again], order[again + 1]
    together = first // batch_size == second // batch_size
    return second - first, float(together.mean()) if len(again) else 0.0


def runs_of(index, run_chunks):
    """Return the first window of each run of chunks that the reader reads in one go, and how many windows it has."""
    chunks, starts = np.asarray(index.tables["chunks"]), run_starts(index, run_chunks)
    return chunks[starts[:-1], 1], np.add.reduceat(chunks[:, 2], starts[:-1])


def rank_of_position(n_pairs, batch_size, n_ranks):
    """Return the rank that reads each position of an epoch, by ``rows_of_rank``."""
    rank_P = np.empty(n_pairs, np.int64)
    for rank in range(n_ranks):
        whole = rows_of_rank(np.arange(batch_size), rank, n_ranks)
        n_whole = n_pairs // batch_size
        rank_P[(np.arange(n_whole)[:, None] * batch_size + whole).ravel()] = rank
        rank_P[rows_of_rank(np.arange(n_whole * batch_size, n_pairs), rank, n_ranks)] = rank
    return rank_P


def of_ranks(n_pairs, batch_size, n_ranks):
    """Yield, for each rank, the positions that it reads, a list of arrays, one a batch in which it has any."""
    rank_P = rank_of_position(n_pairs, batch_size, n_ranks)
    for rank in range(n_ranks):
        here = np.flatnonzero(rank_P == rank)
        yield np.split(here, np.flatnonzero(np.diff(here // batch_size)) + 1)


def amplification(run_P, windows_R, *, batch_size, n_ranks, n_slots):
    """Return windows read by window stored in the runs that the epoch touches, over all ranks, each with its slots."""
    n_read = 0
    for parts in of_ranks(len(run_P), batch_size, n_ranks):
        slots = Slots(len(windows_R), n_slots)
        for part in parts:
            for runs, _ in slots.parts(run_P[part]):
                n_read += sum(int(windows_R[run]) for run, _ in slots.take(runs))
    return n_read / int(windows_R[np.unique(run_P)].sum())


def counted(index, run_P, window_P, choice, *, batch_size, n_ranks, n_slots):
    """Return the same in bytes, as the reader counts them while it reads the shards, one rank after the other."""
    n_read = 0
    for parts in of_ranks(len(window_P), batch_size, n_ranks):
        reader = WindowReader(index, run_chunks=choice.run_chunks, n_slots=n_slots)
        for part in parts:
            reader.read(window_P[part])
        n_read += reader.n_bytes_read
        reader.close()
    bytes_R = np.add.reduceat(np.asarray(index.tables["chunks"])[:, 4], run_starts(index, choice.run_chunks)[:-1])
    return n_read / int(bytes_R[np.unique(run_P)].sum())


def print_mixing(title, index, pair_P, batch_size):
    """Print every measure of one order."""
    window_P = np.asarray(index.tables["pair_window"])[pair_P]
    couples, share = same_visit(np.asarray(index.tables["window_visit"])[window_P], batch_size)
    pearson, spearman = correlations(pair_P)
    apart, together = distances(window_P, batch_size)
    print(f"\n{title}")
    print(f"  couples of one visit in a batch: {couples:.2f}; pairs with another of their visit: {share:.2%}")
    print(f"  position in the epoch and in the shards: Pearson {pearson:+.4f}, Spearman {spearman:+.4f}")
    if len(apart):
        found = ", ".join(f"{q:.0%} {np.quantile(apart, q):,.0f}" for q in QUANTILES)
        print(f"  pairs between two of one window: {found}; in one batch: {together:.2%}")


def print_reads(title, index, pair_P, choice, arguments, *, read=False):
    """Print the read amplification for each number of ranks, with the slots that training gives a rank and others."""
    first_R, windows_R = runs_of(index, choice.run_chunks)
    window_P = np.asarray(index.tables["pair_window"])[pair_P]
    run_P = np.searchsorted(first_R, window_P, side="right") - 1
    used = int(windows_R[np.unique(run_P)].sum()) / len(np.unique(window_P))
    print(f"\n{title}: runs of {choice.run_chunks} chunks; windows stored in them by window used: {used:.3f}")
    n_bytes = 2 * 64 * choice.run_chunks * len(index.leads) * index.head["samples"]
    for n_ranks in arguments.ranks:
        whole = slots_of_rank(choice, batch_size=arguments.batch_size, n_ranks=n_ranks)
        for share in arguments.slots:
            n_slots = max(1, round(share * whole))
            rows = arguments.batch_size * choice.windows_per_sample
            given_to = {"batch_size": rows, "n_ranks": n_ranks, "n_slots": n_slots}
            said = f"read {amplification(run_P, windows_R, **given_to):.3f} times"
            if read:
                said += f"; by the reader's count {counted(index, run_P, window_P, choice, **given_to):.3f}"
            print(
                f"  {n_ranks:3d} ranks, {n_slots:5d} runs each ({n_slots * n_bytes / 1e6:6.0f} MB, {share:g} of what "
                f"training gives): {said}"
            )


def check_slices(index, pair_P, order):
    """Hold a few batches, the first and the last among them, against the epoch."""
    n, size = n_batches(index, **order), order["batch_size"]
    for number in sorted({0, 1 % n, n // 2, n - 1}):
        np.testing.assert_array_equal(batch(index, number, **order), pair_P[number * size : (number + 1) * size])


def measure(index, choice, arguments):
    """Print mixing and reading of the order and of a perfect shuffle."""
    start = time.perf_counter()
    pair_P = epoch_order(index, seed=0, epoch=0, choice=choice)
    taken = time.perf_counter() - start
    check_slices(index, pair_P, {"seed": 0, "epoch": 0, "choice": choice, "batch_size": arguments.batch_size})
    # The windows of a sample are rows of one batch.
    pair_P, batch_size = pair_P.reshape(-1), arguments.batch_size * choice.windows_per_sample
    print(f"{processor()}; {len(pair_P):,} pairs of train, batches of {arguments.batch_size}; order in {taken:.1f} s")
    orders = {
        f"the order of training (up to {choice.lanes} lanes, pools of {choice.pool_runs} runs)": pair_P,
        "a perfect shuffle": np.random.default_rng(0).permutation(pair_P),
    }
    for title, order_P in orders.items():
        print_mixing(title, index, order_P, batch_size)
    for title, order_P in orders.items():
        print_reads(title, index, order_P, choice, arguments, read=arguments.read and order_P is pair_P)


def main():
    """Measure an index that exists, or one made for this."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="folder of shards")
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--visits", type=int, default=5_900)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--slots", type=float, nargs="+", default=[0.75, 1.0], help="by what training gives a rank")
    for name, field in Choice.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(field.default), default=field.default, help=field.description
        )  # fmt: skip
    parser.add_argument("--read", action="store_true", help="with --index: read the epoch too, and count the bytes")
    arguments = parser.parse_args()
    choice = Choice(**{name: getattr(arguments, name) for name in Choice.model_fields})
    if arguments.index:
        measure(open_index(arguments.index), choice, arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_index(Path(folder), arguments.windows, arguments.visits)
        measure(open_index(folder), choice, arguments)


if __name__ == "__main__":
    main()
