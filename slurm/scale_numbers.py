"""From measured blocks of work to rates, efficiencies, costs, a fitted law and a forecast: pure functions."""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

PARTS = ("shard", "stream", "finetune", "evaluate")
KINDS = ("strong", "weak")
# A measurement is precise when its 95 % CI is this near, after so many blocks.
PRECISION, MIN_BLOCKS = 0.03, 5
# Fewer points than this cannot show whether the law holds.
MIN_POINTS = 3
N_SAMPLES = 1000
# A forecast beyond this many times the largest measurement is given with a warning.
FAR = 2
MINUTE = 60_000_000
# Terms of the law that may differ from zero.
TERMS: tuple[tuple[int, ...], ...] = ((0,), (0, 1), (0, 2), (0, 1, 2))


class Full(NamedTuple):
    """MC-MED in full, as the paper counts it; pairs are windows counted once a draw."""

    train_pairs: int = 15_580_163
    # Of the test split at 60, 30 and 15 min.
    test_pairs: tuple = (3_934_378, 3_026_394, 2_043_526)
    test_draws: float = 3_934_378 / 73
    epochs: int = 20
    replicates: int = 1000
    # Windows that a draw's sample holds at most, and windows in two hours, one hour, half an hour.
    cap: int = 200
    in_horizon: tuple = (720, 360, 180)


class Law(NamedTuple):
    """1 / rate = a / n + b + c n: work that is shared, work that is not, and work that grows with n; each >= 0."""

    a: float
    b: float
    c: float

    def rate(self, n):
        """Return the rate on ``n`` nodes."""
        return 1 / (self.a / n + self.b + self.c * n)


def rate_of(blocks):
    """Return (windows a second, its relative standard error, degrees of freedom) of blocks of work.

    Parameters
    ----------
    blocks : list of dict
        With "windows" and "seconds".

    Notes
    -----
    The ratio of sums, and its standard error by the residuals of the blocks; NaN with one block.
    """
    windows, seconds = (np.array([block[key] for block in blocks], float) for key in ("windows", "seconds"))
    n = len(blocks)
    if n < 2:
        return windows.sum() / seconds.sum(), math.nan, 0
    return *ratio_of(windows, seconds), n - 1


def half_width(relative_se, df):
    """Return half the width of the 95 % CI, relative to the rate."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.975)) * relative_se if df else math.inf


def is_precise(blocks):
    """Say whether blocks are enough: the rule by which a measurement stops early."""
    return len(blocks) >= MIN_BLOCKS and half_width(*rate_of(blocks)[1:]) <= PRECISION


def unit_of(documents):
    """Return what the jobs differ in: "nodes", or "ranks" where all of them ran on one machine."""
    return "nodes" if any(document["nodes"] > 1 for document in documents) else "ranks"


def points_of(documents):
    """Return one row (dict) for every part, kind and number of nodes, with efficiency and cost.

    Parameters
    ----------
    documents : list of dict
        As ``anyecg.slurm.scale.measure`` gives them, of different numbers of nodes or ranks.

    Notes
    -----
    Efficiency is the rate a node over that of the smallest job of the same part and kind, in both kinds of scaling: in
    weak scaling the work grows with the job, and the rate counts all of it.
    """
    unit = unit_of(documents)
    rows = [
        _point(document, measured, unit)
        for document in sorted(documents, key=lambda document: document[unit])
        for measured in document["measured"]
    ]
    rows.sort(key=lambda row: (PARTS.index(row["part"]), KINDS.index(row["kind"]), row["n"]))
    first: dict = {}
    for row in rows:
        base = first.setdefault((row["part"], row["kind"]), row)
        row["speed_up"] = row["windows_per_s"] / base["windows_per_s"] * base["n"]
        row["efficiency"] = row["speed_up"] / row["n"]
    return rows


def _point(document, measured, unit):
    blocks = measured["blocks"]
    rate, relative_se, df = rate_of(blocks)
    half = half_width(relative_se, df)
    sums = {key: sum(block[key] for block in blocks) for key in blocks[0]}
    hours = 1e6 / rate / 3600
    return {
        "part": measured["part"], "kind": measured["kind"], "unit": unit, "n": document[unit],
        **{key: document[key] for key in ("nodes", "ranks", "cores", "gpus")},
        "windows_per_s": rate, "windows_per_s_low": rate * max(0.0, 1 - half), "windows_per_s_high": rate * (1 + half),
        "relative_se": relative_se, "df": df, "mb_per_s": sums["n_bytes"] / sums["seconds"] / 1e6,
        "waiting_share": (sums["waited_data"] + sums["waited_others"]) / sums["rank_seconds"],
        "waiting_for_data": sums["waited_data"] / sums["rank_seconds"],
        "waiting_for_others": sums["waited_others"] / sums["rank_seconds"],
        "node_seconds_per_million": document["nodes"] * 1e6 / rate,
        "core_hours_per_million": document["cores"] * hours, "gpu_hours_per_million": document["gpus"] * hours,
        "blocks": len(blocks), "seconds": sums["seconds"], "stopped": measured["stopped"],
        "batch": measured["batch"], "learning_rate": measured["learning_rate"],
        "warmup_steps": measured["warmup_steps"], "replicates": measured["replicates"], "note": measured["note"],
    }  # fmt: skip


def fit_law(n, rate, terms=(0, 1, 2)):
    """Fit the law to rates by non-negative least squares of the relative errors of 1 / rate.

    Parameters
    ----------
    n, rate : float arrays, shape (points,)
    terms : tuple of int
        Which of a, b, c may differ from zero.

    Returns
    -------
    Law
    """
    from scipy.optimize import nnls

    n, rate = np.asarray(n, float), np.asarray(rate, float)
    # Columns of about one size; at the smallest n each is 1 before the rate is brought in.
    x = n / n.min()
    columns = np.stack([1 / x, np.ones_like(x), x], axis=1) * rate[:, None]
    found = np.zeros(3)
    found[list(terms)], _ = nnls(columns[:, list(terms)], np.ones_like(x))
    return Law(*(found * [n.min(), 1, 1 / n.min()]).tolist())


def _misfit(law, n, rate, scale):
    """Return the sum of squares of the relative errors of a law's rates, each over its own scale."""
    return float((((rate / law.rate(n) - 1) / scale) ** 2).sum())


def sample_laws(rows, *, seed=0, n_samples=N_SAMPLES):
    """Return (Law of the rows of one part and kind, Laws of rates drawn anew from their uncertainty, reason for none).

    Notes
    -----
    Each rate is multiplied by exp(s t), t from Student's distribution. s is the standard error of its blocks, or of all
    points the law's lack of fit, where there are more points than parameters and an F test at 5 % finds that it is
    larger. Laws without b, without c, or without both take equal shares of the draws where such a test does not refuse
    them: a term that is zero in truth comes out above zero in half of all draws, and never below. Points of one run
    each say nothing of what differs between runs.
    """
    from scipy.special import fdtri

    n, rate = (np.array([row[key] for row in rows], float) for key in ("n", "windows_per_s"))
    # Two points cannot tell b from c, one point tells neither.
    law = fit_law(n, rate, (0, 1, 2)[: len(rows)])
    if len(rows) < MIN_POINTS:
        return law, [], f"{len(rows)} point{'s' * (len(rows) > 1)}; an interval wants {MIN_POINTS} or more"
    if any(not row["df"] for row in rows):
        return law, [], "a point of one block; an interval wants two or more (--seconds)"
    scale = np.maximum([row["relative_se"] for row in rows], 1e-9)
    df = np.array([row["df"] for row in rows], float)
    n_free = len(rows) - sum(parameter > 0 for parameter in law)
    if n_free and _misfit(law, n, rate, scale) > n_free * fdtri(n_free, df.sum(), 0.95):
        scale = np.full(len(rows), math.sqrt(_misfit(law, n, rate, 1.0) / n_free))
        df = np.full(len(rows), float(n_free))
    rng = np.random.default_rng(seed)
    drawn = rate * np.exp(np.clip(scale * rng.standard_t(df, (n_samples, len(rows))), -3, 3))
    possible = [TERMS[-1]]
    for terms in TERMS[:-1]:
        n_free = len(rows) - len(terms)
        if _misfit(fit_law(n, rate, terms), n, rate, scale) <= n_free * fdtri(n_free, df.sum(), 0.95):
            possible.append(terms)
    laws = [fit_law(n, one, possible[number % len(possible)]) for number, one in enumerate(drawn)]
    return law, laws, ""


def ratio_of(some_V, others_V):
    """Return (sum of some / sum of others, its relative standard error), of pairs of visits or of blocks."""
    some, others = np.asarray(some_V, float), np.asarray(others_V, float)
    ratio, n = some.sum() / others.sum(), max(2, len(some))
    return ratio, math.sqrt(n / (n - 1) * float(((some - ratio * others) ** 2).sum())) / some.sum()


def overlap_of_draws(visit_D, time_D, *, half_min):
    """Return (draws in whose reach a moment lies, over the moments in the reach of any; its relative standard error).

    Parameters
    ----------
    visit_D, time_D : int arrays, shape (draws,)
        Visit, and time in microseconds.
    half_min : float
        Half-width of the time around a draw, in minutes.

    Notes
    -----
    So many pairs a stored window has where draws take all windows in their reach, and ECG is there independently of
    the draws.
    """
    visit = np.concatenate([visit_D, visit_D])
    time = np.concatenate([time_D, time_D + int(2 * half_min * MINUTE)])
    order = np.lexsort([time, visit])
    visit, depth = visit[order], np.cumsum(np.repeat([1, -1], len(visit_D))[order])
    # After the last event of a visit nothing is in reach, so the next visit's time does not matter.
    length = np.where(depth > 0, np.append(np.diff(time[order]), 0), 0) / MINUTE
    _, place = np.unique(visit, return_inverse=True)
    return ratio_of(*(np.bincount(place, weights=weights) for weights in (length * depth, length)))


def stored_pairs(full=None):
    """Return the pairs of all splits that are stored, counted once for all horizons, in both cases of the cap.

    Notes
    -----
    Where the cap does not bind, what lies within 30 or 15 min lies within 60 too. Where it binds, a shorter horizon's
    sample holds windows that the longer one's did not take: both take the smallest of the same random numbers.
    """
    full = full or Full()
    kept = [min(1.0, full.cap / n) for n in full.in_horizon]
    new = [1.0, *(1 - before / here for before, here in pairwise(kept))]
    binds = full.train_pairs + sum(n * share for n, share in zip(full.test_pairs, new, strict=True))
    return {"cap binds": binds, "cap does not bind": float(full.train_pairs + full.test_pairs[0])}


def evaluation_steps(windows_of_targets, full=None):
    """Return the steps of ``anyecg.train.work.pieces_of`` for the full table: windows and draws at three horizons.

    Parameters
    ----------
    windows_of_targets : list of int
        Test windows at 60 min in which each target was measured.
    """
    from anyecg.train.work import Task, pieces_of

    full = full or Full()
    of_draws = full.test_draws / full.test_pairs[0]
    tasks = [
        Task((), int(n * share * n_read / full.test_pairs[0]), n_read, lambda: None)  # type: ignore[arg-type,return-value]
        for n_read in full.test_pairs
        for share in (1.0, of_draws)
        for n in windows_of_targets
    ]
    return float(sum(piece[3] for piece in pieces_of(tasks, full.replicates)))


def storage_forecast(data, *, seed=0, n_samples=N_SAMPLES):
    """Return a row for each case of the cap: windows stored and GB, with 95 % intervals, and the samples of windows.

    Parameters
    ----------
    data : dict
        bytes_a_window, and pairs_a_window: case -> (ratio, relative standard error).
    """
    rng = np.random.default_rng(seed)
    rows, samples = [], {}
    for case, pairs in stored_pairs().items():
        ratio, relative_se = data["pairs_a_window"][case]
        windows = pairs / ratio
        drawn = samples[case] = windows * np.exp(relative_se * rng.standard_normal(n_samples))
        low, high = np.quantile(drawn, (0.025, 0.975)) * data["bytes_a_window"] / 1e9
        rows.append(
            {
                "case": case, "windows": windows, "pairs_a_window": ratio, "gb": windows * data["bytes_a_window"] / 1e9,
                "gb_low": float(low), "gb_high": float(high),
            }
        )  # fmt: skip
    return rows, samples


def sizes_to_forecast(measured):
    """Return the numbers of nodes to forecast: those measured, twice and four times the largest."""
    return sorted({*measured, FAR * max(measured), 2 * FAR * max(measured)})


def forecast(documents, windows_of_targets, *, seed=0):
    """Forecast full MC-MED from the measured points.

    Returns
    -------
    dict
        laws : rows of part, kind, a, b, c; rows : of part, kind, case and n, with hours, core-hours and GPU-hours and
        their 95 % intervals; storage : rows of ``storage_forecast``.
    """
    points = points_of(documents)
    data = documents[0]["data"]
    storage, stored = storage_forecast(data, seed=seed)
    work = _work_of_parts(documents, storage, stored, windows_of_targets)
    laws, rows = [], []
    for kind in KINDS:
        for case in stored:
            parts = []
            for number, part in enumerate(PARTS):
                of_part = [row for row in points if (row["part"], row["kind"]) == (part, kind)]
                if not of_part:
                    continue
                law, drawn, reason = sample_laws(of_part, seed=seed + number)
                if case == next(iter(stored)):
                    laws.append({"part": part, "kind": kind, **law._asdict(), "points": len(of_part), "reason": reason})
                made = _rows_of_part(of_part, law, drawn, reason, *work[part, case], data=data)
                parts.append((part, made))
                # Only sharding has other work in the other case.
                if part == "shard" or case == next(iter(stored)):
                    rows += [
                        {"part": part, "kind": kind, "case": case if part == "shard" else "", **row} for row in made
                    ]
            rows += _whole(parts, kind, case)
    order = (*PARTS, "all")
    rows.sort(key=lambda row: (KINDS.index(row["kind"]), order.index(row["part"]), row["case"], row["n"]))
    for row in rows:
        row.pop("samples")
    return {"laws": laws, "rows": rows, "storage": storage}


def _work_of_parts(documents, storage, stored, windows_of_targets):
    """Return (part, case) -> (windows to be done, samples of that number or None)."""
    full, work = Full(), {}
    for row in storage:
        case = row["case"]
        work["shard", case] = row["windows"], stored[case]
        work["stream", case] = work["finetune", case] = full.epochs * full.train_pairs, None
        steps = [m["steps_per_window"] for d in documents for m in d["measured"] if m["part"] == "evaluate"]
        work["evaluate", case] = (evaluation_steps(windows_of_targets) / steps[0] if steps else math.nan), None
    return work


def _rows_of_part(points, law, drawn, reason, windows, samples, *, data):
    """Return the forecast of one part at every size."""
    largest = points[-1]
    rows = []
    for n in sizes_to_forecast([point["n"] for point in points]):
        here = next((point for point in points if point["n"] == n), None)
        # Measured sizes differ in what they have; beyond them it grows with the size.
        each = {key: (here or largest)[key] * n / (here or largest)["n"] for key in ("cores", "gpus", "ranks")}
        busy, warning = n, ""
        if points[0]["part"] == "shard" and each["ranks"] > (most := windows / data["windows_per_shard"]):
            busy, warning = n * most / each["ranks"], f"{most:,.0f} shards: no more ranks than that are busy"
        if n > FAR * largest["n"]:
            warning = "; ".join(filter(None, (warning, f"more than {FAR} times the largest measurement")))
        hours = windows / law.rate(busy) / 3600
        of_samples = None
        if drawn:
            of_samples = (windows if samples is None else samples) / np.array([one.rate(busy) for one in drawn]) / 3600
        row = {
            "unit": largest["unit"], "n": n, **each, "measured": here is not None, "windows": windows,
            "windows_per_s": law.rate(busy), "hours": hours, "samples": of_samples, "reason": reason,
            "warning": warning,
        }  # fmt: skip
        rows.append(_with_costs(row))
    return rows


def _with_costs(row):
    """Add the intervals and what the hours cost."""
    low, high = (math.nan, math.nan) if row["samples"] is None else np.quantile(row["samples"], (0.025, 0.975))
    row |= {"hours_low": float(low), "hours_high": float(high)}
    for what in ("core", "gpu"):
        for end in ("", "_low", "_high"):
            row[f"{what}_hours{end}"] = row[f"hours{end}"] * row[f"{what}s"]
    return row


def _whole(parts, kind, case):
    """Return the sum of sharding, training and evaluation at the sizes that all of them have."""
    of = {part: {row["n"]: row for row in rows} for part, rows in parts if part != "stream"}
    if len(of) < len(PARTS) - 1:
        return []
    found = []
    for n in sorted(set.intersection(*(set(rows) for rows in of.values()))):
        here = [rows[n] for rows in of.values()]
        samples = None if any(row["samples"] is None for row in here) else sum(row["samples"] for row in here)
        row = {
            "part": "all", "kind": kind, "case": case, **here[0], "measured": all(row["measured"] for row in here),
            "windows": math.nan, "windows_per_s": math.nan, "hours": sum(row["hours"] for row in here),
            "samples": samples, "reason": next((row["reason"] for row in here if row["reason"]), ""),
            "warning": "; ".join(dict.fromkeys(row["warning"] for row in here if row["warning"])),
        }  # fmt: skip
        # Parts may have had other numbers of cores or GPUs: what an hour of all of them has on average.
        for what in ("core", "gpu"):
            row[f"{what}s"] = sum(one[f"{what}_hours"] for one in here) / row["hours"]
        found.append(_with_costs(row))
    return found
