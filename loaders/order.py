"""The order of an epoch: runs of whole chunks, shuffled, mixed in pools and taken from lanes in turn."""

import threading

import numpy as np

from anyecg.kernels.counter import permute
from anyecg.kernels.pools import places_in_lanes, pool_order
from anyecg.loaders.slots import Slots

# Pools whose inner order is kept, for each lane.
_KEPT_A_LANE = 2


class EpochOrder:
    """The order of the pairs that an epoch has.

    The runs are shuffled, and every ``pool_runs`` of them make a pool. Within a pool pairs stand in a shuffled order,
    but those of one window evenly spread, so that they lie as far apart as the pool allows. All pools one after the
    other are cut into lanes of equal length (to one pair), and the epoch takes a pair of each lane in turn; every
    second lane runs backwards, so that two lanes come to the pool that the cut between them goes through at the same
    time. So a rank that always takes the same rows of a batch reads the same lanes, each pool once, but for those that
    a cut between two ranks goes through.

    Parameters
    ----------
    chosen : anyecg.loaders.choice.Chosen
        The runs and their pairs.
    key : int
        64 bits; another key gives another order.

    Notes
    -----
    ``choice.lanes`` is halved until every lane has a pool of its own: a small set is mixed as a whole.
    """

    def __init__(self, chosen, *, key):
        choice = chosen.choice
        self.chosen, self._key, self._pool_runs = chosen, key, choice.pool_runs
        self._lock = threading.Lock()
        runs = np.flatnonzero(chosen.counts_R)
        self._runs = runs[permute(np.arange(len(runs)), len(runs), key)] if len(runs) else runs
        counts = chosen.counts_R[self._runs]
        starts = np.arange(0, len(runs), choice.pool_runs)
        n_P = np.add.reduceat(counts, starts) if len(runs) else counts
        self._pool_start = np.append(0, np.cumsum(n_P))
        self.n_lanes = choice.lanes
        while self.n_lanes > max(1, len(starts)):
            self.n_lanes //= 2
        self._slots = Slots(len(starts), _KEPT_A_LANE * self.n_lanes)
        self._kept = np.empty((self._slots.n_slots, n_P.max(initial=0), 2), np.int64)

    @property
    def n_units(self):
        """How many pairs, or samples of several, the epoch has."""
        return int(self._pool_start[-1])

    def at(self, positions):
        """Return what stands at some positions of the epoch.

        Parameters
        ----------
        positions : int64 array
            Each in 0 .. n_units - 1.

        Returns
        -------
        int64 array, shape (positions,)
            Pair numbers; shape (positions, windows_per_sample) where a sample has several windows.
        """
        positions = np.asarray(positions, np.int64)
        place = places_in_lanes(positions, self.n_units, self.n_lanes)
        pool = np.searchsorted(self._pool_start, place, side="right") - 1
        found = np.empty((len(positions), 2), np.int64)
        with self._lock:
            for pools, here in self._slots.parts(pool):
                taken = self._slots.take(pools)
                try:
                    for missing, slot in taken:
                        layout = self._layout(missing)
                        self._kept[slot, : len(layout)] = layout
                except BaseException:
                    for missing, _ in taken:
                        self._slots.drop(missing)
                    raise
                found[here] = self._kept[self._slots[pool[here]], (place - self._pool_start[pool])[here]]
        if self.chosen.choice.windows_per_sample == 1:
            return found[:, 0].copy()
        return self.chosen.samples(*np.ascontiguousarray(found.T))

    def _layout(self, pool):
        """Return the pairs of a pool in order, and which occurrence each is."""
        runs = self._runs[pool * self._pool_runs : (pool + 1) * self._pool_runs]
        pairs, copies = (np.concatenate(of_runs) for of_runs in zip(*map(self.chosen.of_run, runs), strict=True))
        window = self.chosen.index.tables["pair_window"][pairs].astype(np.int64)
        order = pool_order(window, pairs, copies, self._key)
        return np.stack([pairs[order], copies[order]], axis=1)
