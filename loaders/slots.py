"""Which of a fixed number of places in memory holds which thing; the one used longest ago gives way."""

import numpy as np


def sorted_set(keys):
    """Return the distinct ones of a few hundred keys, ascending: ``np.unique`` takes several times as long for them."""
    ordered = np.sort(keys)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


class Slots:
    """Places in memory for some of many numbered things.

    Parameters
    ----------
    n_keys : int
        The things are 0 .. n_keys - 1.
    n_slots : int
    """

    def __init__(self, n_keys, n_slots):
        self.n_slots = max(1, min(n_keys, n_slots))
        self._slot_of = np.full(n_keys, -1, np.int32)
        self._key_of = np.full(self.n_slots, -1, np.int64)
        self._used = np.zeros(self.n_slots, np.int64)
        self._now = 0

    def __contains__(self, key):
        return self._slot_of[key] >= 0

    def parts(self, keys):
        """Yield (keys, where they stand) in parts that fit into the slots at once, each of distinct, ascending keys."""
        distinct = sorted_set(keys)
        if len(distinct) <= self.n_slots:
            yield distinct, slice(None)
            return
        which = np.searchsorted(distinct, keys)
        for first in range(0, len(distinct), self.n_slots):
            some = distinct[first : first + self.n_slots]
            yield some, np.flatnonzero((which >= first) & (which < first + len(some)))

    def take(self, distinct):
        """Give each of some distinct keys, no more than there are slots, a slot.

        Returns
        -------
        list of (key, slot)
            Those that were not there: the caller fills their slots, or calls ``drop``.
        """
        self._now += 1
        slot = self._slot_of[distinct]
        self._used[slot[slot >= 0]] = self._now
        missing = distinct[slot < 0]
        if not len(missing):
            return []
        oldest = np.argpartition(self._used, len(missing) - 1)[: len(missing)]
        given_up = self._key_of[oldest]
        self._slot_of[given_up[given_up >= 0]] = -1
        self._slot_of[missing], self._key_of[oldest], self._used[oldest] = oldest, missing, self._now
        return list(zip(missing.tolist(), oldest.tolist(), strict=True))

    def drop(self, key):
        """Forget a key; its slot is the next to be given."""
        slot = self._slot_of[key]
        self._slot_of[key], self._key_of[slot], self._used[slot] = -1, -1, 0

    def __getitem__(self, keys):
        """Return the slots of keys that have one."""
        return self._slot_of[keys]
