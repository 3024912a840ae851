"""Measure how well an epoch is mixed, beside a perfect shuffle of the same pairs, and what reading it costs.

    python -m benchmarks.mixing --index FOLDER_OF_SHARDS
    python -m benchmarks.mixing --windows 1000000 --visits 5900        # an index without signal, of that size

Reading is simulated from the order alone: a rank keeps the runs of chunks that it used last, and reads a run that it
does not have whole.
"""

import argparse
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from anyecg.loaders.choice import Choice
from anyecg.loaders.index import open_index
from anyecg.loaders.stream import batch, epoch_order, n_batches, rows_of_rank
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
    """Return the run of each chunk, and the windows of each run: ``run_chunks`` chunks that follow each other."""
    chunks = np.asarray(index.tables["chunks"])
    shard, n_windows = chunks[:, 0], chunks[:, 2]
    within = np.arange(len(chunks)) - np.searchsorted(shard, shard)
    run = np.cumsum(within % run_chunks == 0) - 1
    return run, np.bincount(run, n_windows).astype(np.int64)


def rank_of_position(n_pairs, batch_size, n_ranks):
    """Return the rank that reads each position of an epoch, by ``rows_of_rank``."""
    rank_P = np.empty(n_pairs, np.int64)
    for rank in range(n_ranks):
        whole = rows_of_rank(np.arange(batch_size), rank, n_ranks)
        n_whole = n_pairs // batch_size
        rank_P[(np.arange(n_whole)[:, None] * batch_size + whole).ravel()] = rank
        rank_P[rows_of_rank(np.arange(n_whole * batch_size, n_pairs), rank, n_ranks)] = rank
    return rank_P


def accesses(run_P, number_P):
    """Return the runs that are needed one after the other, each once a batch; ``number_P`` is the batch of a pair."""
    n_runs = int(run_P.max()) + 1
    return np.unique(number_P * n_runs + run_P) % n_runs


def misses(needed, n_slots):
    """Return which of the accesses find a run that is not among the ``n_slots`` used last."""
    held: OrderedDict = OrderedDict()
    missed = np.zeros(len(needed), bool)
    for place, run in enumerate(needed.tolist()):
        if run in held:
            held.move_to_end(run)
            continue
        missed[place] = True
        held[run] = None
        if len(held) > n_slots:
            held.popitem(last=False)
    return missed


def amplification(run_P, windows_R, *, batch_size, n_ranks, n_slots):
    """Return windows read by window stored in the runs that the epoch touches, over all ranks, each with its slots."""
    rank_P = rank_of_position(len(run_P), batch_size, n_ranks)
    number_P = np.arange(len(run_P)) // batch_size
    n_read = 0
    for rank in range(n_ranks):
        here = rank_P == rank
        needed = accesses(run_P[here], number_P[here])
        n_read += int(windows_R[needed[misses(needed, n_slots)]].sum())
    return n_read / int(windows_R[np.unique(run_P)].sum())


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


def print_reads(title, index, pair_P, arguments, slots):
    """Print the read amplification for each number of ranks and of slots."""
    run_of_chunk, windows_R = runs_of(index, arguments.run_chunks)
    window_P = np.asarray(index.tables["pair_window"])[pair_P]
    first_windows = np.asarray(index.tables["chunks"])[:, 1]
    run_P = run_of_chunk[np.searchsorted(first_windows, window_P, side="right") - 1]
    used = int(windows_R[np.unique(run_P)].sum()) / len(np.unique(window_P))
    print(f"\n{title}: runs of {arguments.run_chunks} chunks; windows stored in them by window used: {used:.3f}")
    n_bytes = 2 * 64 * arguments.run_chunks * len(index.leads) * index.head["samples"]
    for n_ranks in arguments.ranks:
        for n_slots in slots(n_ranks):
            found = amplification(
                run_P, windows_R, batch_size=arguments.batch_size, n_ranks=n_ranks, n_slots=n_slots
            )  # fmt: skip
            memory = n_slots * n_bytes / 1e6
            print(f"  {n_ranks:3d} ranks, {n_slots:5d} runs each ({memory:6.0f} MB): read {found:.3f} times")


def check_slices(index, pair_P, batch_size):
    """Hold a few batches, the first and the last among them, against the epoch."""
    n = n_batches(index, batch_size=batch_size)
    for number in sorted({0, 1 % n, n // 2, n - 1}):
        found = batch(index, number, seed=0, epoch=0, batch_size=batch_size)
        np.testing.assert_array_equal(found, pair_P[number * batch_size : (number + 1) * batch_size])


def measure(index, arguments):
    """Print mixing and reading of the order and of a perfect shuffle."""
    start = time.perf_counter()
    pair_P = epoch_order(index, seed=0, epoch=0)
    taken = time.perf_counter() - start
    check_slices(index, pair_P, arguments.batch_size)
    print(f"{processor()}; {len(pair_P):,} pairs of train, batches of {arguments.batch_size}; order in {taken:.1f} s")
    perfect_P = np.random.default_rng(0).permutation(pair_P)
    print_mixing("the order of training", index, pair_P, arguments.batch_size)
    print_mixing("a perfect shuffle", index, perfect_P, arguments.batch_size)
    choice = Choice()

    def slots(n_ranks):
        pool = -(-choice.lanes * choice.pool_runs // n_ranks)
        return [arguments.slots] if arguments.slots else [pool, pool * 5 // 4, pool * 3 // 2, 2 * pool]

    print_reads("the order of training", index, pair_P, arguments, slots)
    print_reads("a perfect shuffle", index, perfect_P, arguments, lambda n_ranks: slots(n_ranks)[-1:])


def main():
    """Measure an index that exists, or one made for this."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="folder of shards")
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--visits", type=int, default=5_900)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--run-chunks", type=int, default=Choice().run_chunks)
    parser.add_argument("--slots", type=int, default=0, help="runs that a rank keeps; 0: 1 to 2 times its pools")
    arguments = parser.parse_args()
    if arguments.index:
        measure(open_index(arguments.index), arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_index(Path(folder), arguments.windows, arguments.visits)
        measure(open_index(folder), arguments)


if __name__ == "__main__":
    main()
