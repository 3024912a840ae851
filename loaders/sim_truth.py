"""The best AUROC that any model can reach on the simulated double, by Monte Carlo from its law."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.special import ndtr

from anyecg.kernels.auroc import auroc
from anyecg.kernels.coverage import windows_by_epoch
from anyecg.loaders.index import HORIZON_BIT
from anyecg.loaders.sim_law import (
    LAW,
    LEVEL_CORRELATION,
    OF_TRUTH,
    PLANTED,
    WINDOW_SHARE,
    component_laws,
    generator,
    levels,
    visit_times,
)

N_BATCHES, VISITS_A_BATCH = 55, 20_000
LEVELS = ("window", "draw", "draw_mean")
WINDOWS_A_DRAW = 200
SCHEMA = ("target", "horizon_min", "level", "auroc", "standard_error", "n_visits")


@dataclass(frozen=True)
class _Seen:
    """One draw of each visit at one horizon: how many windows lie nearest to each draw, and one of them by chance."""

    visits: np.ndarray
    draw_N: np.ndarray
    counts_ND: np.ndarray
    chosen_N: np.ndarray
    n_draws_N: np.ndarray


def nuisance_of(component):
    """Return the nuisance SD, in SDs of the level, of the best linear reading of all parameters that it moves.

    Each parameter gives level + nuisance; independent nuisances are averaged with weights 1 / variance. Visit and
    window parts have the same ratio in every parameter, so these weights are best for both.
    """
    return sum(effect.nuisance**-2 for effect in LAW if effect.component == component) ** -0.5


def _see(rng, times, draw_N, horizon_min):
    time_ND, n_draws_N, start_NS, stop_NS = times
    counts_ND = windows_by_epoch(start_NS, stop_NS, time_ND, n_draws_N, draw_N, half_s=horizon_min * 60)
    total_N = counts_ND.sum(axis=1)
    visits = np.flatnonzero(total_N)
    counts_ND, total_N = counts_ND[visits], total_N[visits]
    place_N = np.floor(rng.random(len(visits)) * total_N)
    chosen_N = (np.cumsum(counts_ND, axis=1) <= place_N[:, None]).sum(axis=1)
    # A sample of at most 200 windows takes the same share of each epoch, on average.
    kept_ND = counts_ND * np.minimum(1, WINDOWS_A_DRAW / total_N)[:, None]
    return _Seen(visits, draw_N[visits], kept_ND, chosen_N, n_draws_N[visits])


def _draw_score(seen, level_ND, visit_part_N, rng, k, edge):
    """Return {direction: P(label | parameters of all windows of the draw)} and the mean parameter, (visits,) each.

    The mean parameter of the n windows nearest to draw e is level_e + visit part + noise of variance k^2 WINDOW_SHARE /
    n. Given all of them the level of the draw is normal; the matrix is diagonal plus a constant (Sherman and Morrison).
    """
    has_ND = seen.counts_ND > 0
    n_ND = np.where(has_ND, seen.counts_ND, 1.0)
    noise_ND = rng.standard_normal(n_ND.shape) * k * np.sqrt(WINDOW_SHARE / n_ND)
    mean_ND = np.where(has_ND, level_ND[seen.visits] + visit_part_N[seen.visits, None] + noise_ND, 0.0)
    weight_ND = np.where(has_ND, 1 / (1 - LEVEL_CORRELATION + k**2 * WINDOW_SHARE / n_ND), 0.0)
    common = LEVEL_CORRELATION + k**2 * (1 - WINDOW_SHARE)
    covariance_ND = np.full(n_ND.shape, LEVEL_CORRELATION)
    np.put_along_axis(covariance_ND, seen.draw_N[:, None], 1.0, axis=1)
    shrink_N = common / (1 + common * weight_ND.sum(axis=1))
    towards_N = (weight_ND * covariance_ND).sum(axis=1)
    expected_N = (weight_ND * covariance_ND * mean_ND).sum(axis=1) - shrink_N * towards_N * (weight_ND * mean_ND).sum(1)
    explained_N = (weight_ND * covariance_ND**2).sum(axis=1) - shrink_N * towards_N**2
    probability = {
        direction: ndtr((sign * expected_N - sign * edge[direction]) / np.sqrt(1 - explained_N))
        for direction, sign in (("low", -1.0), ("high", 1.0))
        if direction in edge
    }
    return probability, (seen.counts_ND * mean_ND).sum(axis=1) / seen.counts_ND.sum(axis=1)


def batch_truth(batch, hours):
    """Return {(target, horizon_min, level): (AUROC, visits)} of one batch of simulated visits.

    Of each visit one draw is taken by chance, with the weight of all its draws; of each draw one window, with the
    weight of all its windows: the same expectation as all pairs of windows and draws.
    """
    rng = generator(0, OF_TRUTH, batch)
    times = visit_times(rng, VISITS_A_BATCH, hours)
    time_ND, n_draws_N = times[:2]
    draw_N = np.floor(rng.random(VISITS_A_BATCH) * n_draws_N).astype(np.int64)
    seen_at = {horizon: _see(rng, times, draw_N, horizon) for horizon in HORIZON_BIT}
    found = {}
    for law in component_laws():
        if law.component not in PLANTED:
            continue
        k = nuisance_of(law.component)
        level_ND = levels(rng, time_ND.shape)
        visit_part_N = k * np.sqrt(1 - WINDOW_SHARE) * rng.standard_normal(VISITS_A_BATCH)
        limits = {"low": law.low, "high": law.high}
        edge = {direction: law.edge(direction) for direction, limit in limits.items() if not np.isnan(limit)}
        for horizon, seen in seen_at.items():
            rows = np.arange(len(seen.visits))
            shown_N = level_ND[seen.visits, seen.chosen_N] + visit_part_N[seen.visits]
            shown_N = shown_N + k * np.sqrt(WINDOW_SHARE) * rng.standard_normal(len(rows))
            by_draw, mean_N = _draw_score(seen, level_ND, visit_part_N, rng, k, edge)
            mine_N = level_ND[seen.visits, seen.draw_N]
            n_windows_N = seen.counts_ND.sum(axis=1)
            for direction, level in edge.items():
                sign = 1 if direction == "high" else -1
                label_N = sign * mine_N > sign * level
                # P(label | parameters of a window) rises with the parameter, so its rank is the parameter's own.
                scores = sign * shown_N, by_draw[direction], sign * mean_N
                weights = seen.n_draws_N * n_windows_N, seen.n_draws_N, seen.n_draws_N
                for name, score, weight in zip(LEVELS, scores, weights, strict=True):
                    found[f"{law.component} {direction}", horizon, name] = auroc(score, label_N, weight), len(rows)
    return found


def combine(batches, targets):
    """Return truth.csv as a table: the mean over batches and its standard error; 0.5 exactly for unplanted targets."""
    rows = []
    n_all = len(batches) * VISITS_A_BATCH
    for target in targets:
        for horizon in HORIZON_BIT:
            for level in LEVELS:
                key = (target.name, horizon, level)
                if target.component not in PLANTED:
                    rows.append((*key, 0.5, 0.0, n_all))
                    continue
                values = np.array([batch[key][0] for batch in batches])
                error = values.std(ddof=1) / np.sqrt(len(values))
                rows.append((*key, float(values.mean()), float(error), sum(batch[key][1] for batch in batches)))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")
