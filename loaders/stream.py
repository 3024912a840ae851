"""The order of the pairs, as a pure function of seed and epoch: the same on any number of ranks, after any restart."""

import threading

import numpy as np

from anyecg.loaders.choice import Chosen
from anyecg.loaders.files import digest
from anyecg.loaders.index import Index, open_index
from anyecg.loaders.order import EpochOrder
from anyecg.loaders.stream_config import Choice

__all__ = [
    "Index", "batch", "epoch_order", "n_batches", "n_units", "open_index", "order_of", "rows_of_rank",
    "slots_of_rank",
]  # fmt: skip
_DEFAULT = Choice()
# Orders, and choices of pairs, kept an index: this epoch's and the next one's, of two splits.
_KEPT = 8
_lock = threading.Lock()


def order_of(index, *, seed, epoch, split="train", horizon_min=60, choice=_DEFAULT):
    """Return the order of one epoch; the last few that were asked for are kept.

    Working it out takes time and memory of the runs of chunks, a choice of pairs also a pass over the pair table; a
    batch of it takes time and memory of the batch.

    Parameters
    ----------
    index : Index
    seed, epoch : int
    split : str
        train, val or test.
    horizon_min : int
        60, 30 or 15.
    choice : Choice, optional

    Returns
    -------
    EpochOrder
    """
    wanted = split, horizon_min, tuple(getattr(choice, name) for name in Choice.model_fields)
    # All pairs of a split are the same ones in every epoch.
    of_epoch = () if choice.takes_all else (seed, epoch)

    def chosen():
        return Chosen(index, choice, split=split, horizon_min=horizon_min, seed=seed, epoch=epoch)

    def order():
        key = int(digest([seed, epoch, split, horizon_min]), 16)
        return EpochOrder(_kept(index, ("chosen", wanted, of_epoch), chosen), key=key)

    with _lock:
        return _kept(index, ("order", wanted, (seed, epoch)), order)


def _kept(index, key, make):
    if key not in index.orders:
        index.orders[key] = make()
        if len(index.orders) > _KEPT:
            index.orders.popitem(last=False)
    index.orders.move_to_end(key)
    return index.orders[key]


def n_units(index, **order):
    """Return how many pairs an epoch has, or samples of several windows (``order`` as in ``order_of``)."""
    return order_of(index, **order).n_units


def n_batches(index, *, batch_size, **order):
    """Return how many batches an epoch has (``order`` as in ``order_of``); the last one may be smaller."""
    return -(-n_units(index, **order) // batch_size)


def batch(index, number, *, seed, epoch, batch_size, split="train", horizon_min=60, choice=_DEFAULT):
    """Return the pairs of one batch: a pure function of its arguments.

    Parameters
    ----------
    index : Index
    number : int
        0 .. n_batches - 1; the last batch of an epoch holds what is left.
    seed, epoch, split, horizon_min, choice
        As in ``order_of``.
    batch_size : int
        Global, over all ranks.

    Returns
    -------
    int64 array, shape (batch_size,) or less; (batch_size, windows_per_sample) where a sample has several windows
        Pair numbers, which count through the index in shard order.
    """
    order = {"seed": seed, "epoch": epoch, "split": split, "horizon_min": horizon_min, "choice": choice}
    whole = order_of(index, **order)
    first, last = number * batch_size, min((number + 1) * batch_size, whole.n_units)
    if not 0 <= first < last:
        raise ValueError(f"batch {number} of an epoch with {-(-whole.n_units // batch_size)} batches")
    return whole.at(np.arange(first, last))


def epoch_order(index, *, seed, epoch, split="train", horizon_min=60, choice=_DEFAULT):
    """Return an epoch's pair numbers in order, int64, as ``batch`` gives them; for small sets and tests."""
    order = {"seed": seed, "epoch": epoch, "split": split, "horizon_min": horizon_min, "choice": choice}
    whole = order_of(index, **order)
    return whole.at(np.arange(whole.n_units))


def rows_of_rank(rows, rank, n_ranks):
    """Return the part of a global batch that one rank takes: floor(rB/W) to floor((r+1)B/W)."""
    return rows[rank * len(rows) // n_ranks : (rank + 1) * len(rows) // n_ranks]


def slots_of_rank(choice, *, batch_size, n_ranks):
    """Return how many runs a rank must keep in memory to read each once.

    A rank takes the same rows of every batch. Where the batch size and the lanes divide one another, these rows belong
    to the same lanes again and again; otherwise it meets all lanes. Where the batch is larger than the lanes, several
    ranks share each lane, and each of them reads its chunks.

    Returns
    -------
    int
        The pools of its lanes, and room for runs that have gone out of use.
    """
    n_rows, lanes = -(-batch_size // n_ranks), choice.lanes
    if lanes % batch_size == 0:
        lanes = lanes // batch_size * n_rows
    elif batch_size % lanes == 0:
        lanes = min(lanes, n_rows)
    return lanes * choice.pool_runs + max(32, lanes // 2)
