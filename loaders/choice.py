"""Which pairs an epoch has, and how often each."""

import numpy as np

from anyecg.kernels.counter import uniform
from anyecg.kernels.occurrences import count_by_run, draw_windows, limits, occurrences
from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import digest
from anyecg.loaders.index_form import HORIZON_BIT


class Chosen:
    """The pairs of one epoch, run by run.

    A pair of the split with the horizon's bit occurs once, unless the choice says otherwise:

    - ``patients`` below 1: only if a hash of (seed, patient) in [0, 1) is below it; a larger share holds a smaller one.
    - ``windows_per_draw`` n: only if its hash of (seed, epoch, pair) is among the n smallest of its draw.
    - ``balance`` b: floor(w + u) times, u in [0, 1) a hash of (seed, epoch, pair), and w the largest
      (n of the commonest target / n) ^ b over the abnormal targets of its draw, n counting the abnormal draws of the
      split; w is at least 1 and at most ``max_repeats``.
    - ``windows_per_sample`` k: as with one window a draw; each is followed by k - 1 others of its draw (``samples``).

    Parameters
    ----------
    index : anyecg.loaders.index.Index
    choice : Choice
    split, horizon_min : str, int
    seed, epoch : int

    Attributes
    ----------
    runs_R : int64 array
        Numbers of the split's runs, counted through the index.
    first_R, stop_R : int64 arrays
        Where the pairs of each of them begin and end in the pair table.
    counts_R : int64 array
        How many pairs of the epoch each of them holds, repetitions counted.
    """

    def __init__(self, index, choice, *, split, horizon_min, seed, epoch):
        self.index, self.choice = index, choice
        self._bit = HORIZON_BIT[horizon_min]
        self._key = int(digest(["pairs", seed, epoch]), 16)
        self._shards = index.shards_of(split)
        self.runs_R, self.first_R, self.stop_R = _runs_of(index, self._shards, choice.run_chunks)
        if choice.takes_all:
            self.counts_R = self._count_all(index.n_pairs(split, horizon_min))
            return
        self._limit_D = np.full(len(index.tables["draw_visit"]), 2**64 - 1, np.uint64)
        self._weight_D = np.zeros(len(self._limit_D))
        ratio_C = self._ratios()
        for shard in self._shards:
            self._weigh(shard, ratio_C, int(digest(["patients", seed]), 16))
            self._limit(shard)
        self.counts_R = np.concatenate([np.empty(0, np.int64), *(self._count(shard) for shard in self._shards)])

    def _count_all(self, n_wanted):
        tables = self.index.tables
        counts_R = count_by_run(self.first_R, self.stop_R, tables["pair_horizons"], self._bit)
        if counts_R.sum() != n_wanted:
            raise ShardError(
                f"{self.index.folder}: {counts_R.sum()} pairs have this split and horizon, the index says {n_wanted}; "
                "run 'anyecg shard' again"
            )
        return counts_R

    def _ratios(self):
        """Return the weight of an abnormal draw by target."""
        labels = self.index.tables["draw_labels"]
        n_C = sum((labels[shard.draws] == 1).sum(0) for shard in self._shards)
        ratio_C = (np.max(n_C, initial=1) / np.maximum(n_C, 1)) ** self.choice.balance
        return np.minimum(ratio_C, self.choice.max_repeats)

    def _weigh(self, shard, ratio_C, key):
        tables = self.index.tables
        kept_D = uniform(key, tables["visit_patient"][tables["draw_visit"][shard.draws]]) < self.choice.patients
        abnormal_DC = tables["draw_labels"][shard.draws] == 1
        self._weight_D[shard.draws] = np.where(kept_D, np.where(abnormal_DC, ratio_C, 1.0).max(1, initial=1.0), 0.0)

    def _limit(self, shard):
        draw_P, horizons_P = self._pairs(shard.pairs)
        if len(draw_P) and not shard.draws.start <= draw_P.min() <= draw_P.max() < shard.draws.stop:
            raise ShardError(
                f"{self.index.folder}: pairs of shard {shard.number} belong to draws of another; "
                "run 'anyecg shard' again"
            )
        n = 1 if self.choice.windows_per_sample > 1 else self.choice.windows_per_draw
        if n:
            n_draws = shard.draws.stop - shard.draws.start
            self._limit_D[shard.draws] = limits(
                shard.pairs.start, horizons_P, self._bit, draw_P - shard.draws.start, n_draws, n, self._key
            )  # fmt: skip

    def _count(self, shard):
        n_before = np.append(0, np.cumsum(self._times(shard.pairs)))
        here = slice(*np.searchsorted(self.first_R, (shard.pairs.start, shard.pairs.stop)))
        return n_before[self.stop_R[here] - shard.pairs.start] - n_before[self.first_R[here] - shard.pairs.start]

    def _pairs(self, pairs):
        """Return the draws of consecutive pairs, and their bits."""
        return self.index.tables["pair_draw"][pairs], self.index.tables["pair_horizons"][pairs]

    def _times(self, pairs):
        """Return how often each of consecutive pairs occurs."""
        draw_P, horizons_P = self._pairs(pairs)
        if self.choice.takes_all:
            return (horizons_P & self._bit > 0).astype(np.int64)
        return occurrences(
            pairs.start, horizons_P, self._bit, draw_P, self._limit_D, self._weight_D, self._key
        )  # fmt: skip

    def of_run(self, run):
        """Return the pairs of a run of the split, each as often as it occurs, and which occurrence each is.

        Returns
        -------
        (int64 array, int64 array), shape (counts_R[run],)
        """
        first, stop = int(self.first_R[run]), int(self.stop_R[run])
        times_P = self._times(slice(first, stop))
        pairs = np.repeat(np.arange(first, stop), times_P)
        return pairs, np.arange(len(pairs)) - np.repeat(np.cumsum(times_P) - times_P, times_P)

    def samples(self, pairs, copies):
        """Return the pairs of the samples that some pairs stand for: each pair's draw gives its next windows by hash.

        Returns
        -------
        int64 array, shape (samples, windows_per_sample)
            A draw with fewer windows gives them again.
        """
        tables = self.index.tables
        visit = np.asarray(tables["window_visit"])
        # The pairs of a visit follow one another.
        of_pair = tables["pair_window"]
        visit_U = visit[of_pair[pairs]]
        first_U = np.searchsorted(of_pair, np.searchsorted(visit, visit_U).astype(of_pair.dtype))
        stop_U = np.searchsorted(of_pair, np.searchsorted(visit, visit_U, side="right").astype(of_pair.dtype))
        return draw_windows(
            pairs, copies, first_U, stop_U, tables["pair_horizons"], self._bit, tables["pair_draw"], self._key,
            self.choice.windows_per_sample,
        )  # fmt: skip


def run_starts(index, run_chunks):
    """Return the first chunk of each run of whole chunks of one shard, int64, and at the end the number of chunks."""
    shard = np.asarray(index.tables["chunks"])[:, 0]
    within = np.arange(len(shard)) - np.searchsorted(shard, shard)
    return np.append(np.flatnonzero(within % run_chunks == 0), len(shard))


def _runs_of(index, shards, run_chunks):
    """Return the numbers of the runs of some shards, and where the pairs of each run begin and end."""
    starts = run_starts(index, run_chunks)[:-1]
    chunk = np.asarray(index.tables["chunks"])[starts]
    bounds = np.searchsorted(index.tables["pair_window"], chunk[:, 1].astype(np.int32))
    # Whatever the table holds, the runs of a shard part its pairs among them.
    parted = []
    for shard in shards:
        here = np.arange(*np.searchsorted(chunk[:, 0], (shard.number, shard.number + 1)))
        if len(here):
            inner = np.maximum.accumulate(np.clip(bounds[here[1:]], shard.pairs.start, shard.pairs.stop))
            edges = np.concatenate([[shard.pairs.start], inner, [shard.pairs.stop]])
            parted.append(np.stack([here, edges[:-1], edges[1:]]))
    return np.concatenate([np.empty((3, 0), np.int64), *parted], axis=1).astype(np.int64)
