"""Which visits a shard holds and which rank makes it: functions of the cohort and the config alone."""

import heapq
from typing import NamedTuple

import numpy as np

from anyecg.loaders.shard_config import SECONDS
from anyecg.loaders.splits import SPLITS


class ShardPlan(NamedTuple):
    """One shard to make: its number, split, rows of ``cohort.visits``, and the windows that each visit can hold."""

    number: int
    split: int
    rows_V: np.ndarray
    windows_V: np.ndarray

    @property
    def n_windows(self):
        """The windows that its recordings can hold; what is kept of them is found out by reading."""
        return int(self.windows_V.sum())


def plan_shards(cohort, *, windows_per_shard):
    """Deal the visits onto shards, by split and pseudonymous key; all but a split's last are of about one size."""
    n_windows = np.zeros(cohort.visits.height, np.int64)
    of_record = (cohort.records["n_samples"] / cohort.records["fs"] / SECONDS + 1e-9).to_numpy().astype(np.int64)
    np.add.at(n_windows, cohort.records["visit_row"].to_numpy(), of_record)
    keys, splits = cohort.visits["visit"].to_numpy(), cohort.visits["split"].to_numpy()
    plans: list[ShardPlan] = []
    for split in range(len(SPLITS)):
        rows = np.flatnonzero(splits == split)
        rows = rows[np.argsort(keys[rows], kind="stable")]
        shard_of = (np.cumsum(n_windows[rows]) - n_windows[rows]) // windows_per_shard
        for shard in np.unique(shard_of):
            here = rows[shard_of == shard]
            plans.append(ShardPlan(len(plans), split, here, n_windows[here]))
    return plans


def deal(plans, n_ranks):
    """Return each rank's shards: the largest first, each to the rank that has the least to do (Graham 1969)."""
    shares: list[list[ShardPlan]] = [[] for _ in range(n_ranks)]
    load = [(0, rank) for rank in range(n_ranks)]
    for plan in sorted(plans, key=lambda plan: (-plan.n_windows, plan.number)):
        n_windows, rank = heapq.heappop(load)
        shares[rank].append(plan)
        heapq.heappush(load, (n_windows + plan.n_windows, rank))
    return shares
