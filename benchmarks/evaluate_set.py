"""Made-up results of the paper's size, to measure the evaluation with: shards, their index, and scores of all windows.

    python -m benchmarks.evaluate_set --out FOLDER            # validation and test split, 1.5 GB, a minute
    python -m benchmarks.evaluate_set --out FOLDER --train    # and the train split, without scores

FOLDER/shards opens with ``open_index``, FOLDER/scores.h5 with ``read_scores``. A visit's recordings are patchy, its
draws overlap: a window is stored once and belongs to two or three draws. The numbers of pairs at 60, 30 and 15 min
are the paper's; so are, for each target and scaled to the split, the windows measured and the positive ones, to within
a draw. Labels and scores agree within a patient. The signal is ten zeros a window: nobody evaluates it.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import polars as pl
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from anyecg.kernels.prepare import preset_hash
from anyecg.loaders.cohort import Cohort
from anyecg.loaders.files import FORMATS, digest, make_folder
from anyecg.loaders.index import write_index
from anyecg.loaders.shard_file import ShardWriter, describe_shard
from anyecg.loaders.splits import SPLITS
from anyecg.loaders.stream import open_index
from anyecg.loaders.targets import read_targets
from anyecg.train.scores import read_scores, write_scores

# The paper's test split, a fifth of all: pairs with each horizon, visits, draws; patients as its Table 1 suggests.
PAIRS = {60: 3_934_378, 30: 3_026_394, 15: 2_043_526}
VISITS, DRAWS, PATIENTS = 9_154, 53_806, 7_400
PAPER_PAIRS = 19_514_541
PAIRS_PER_WINDOW = 2.5
CAP = 200
# Parts made at a time, each a share of all visits.
PARTS = {"train": (0.1,) * 7, "val": (0.1,), "test": (0.2,)}
SHARDS_PER_PART = 27
# Of labels and of scores, between two draws, or windows, of one patient.
LABEL_RHO, SCORE_RHO = 0.7, 0.3
UNSCORED = 1e-3
FS = 1
HOUR_US = 3_600_000_000


def make_part(split, share, targets, rng):
    """Return the sets of some visits of a split as a shard has them, and their scores.

    Parameters
    ----------
    share : float
        Of all visits.
    targets : list of anyecg.loaders.targets.Target

    Returns
    -------
    dict of arrays, float32 array (windows, targets) or None for the train split
    """
    size = share / 0.2
    patient = np.concatenate([np.arange(round(PATIENTS * size)), rng.integers(0, round(PATIENTS * size), 10**6)])
    patient = rng.permutation(patient[: round(VISITS * size)])
    sets = _pairs(len(patient), size, rng)
    visit = {"patient": rng.integers(1, 2**63, round(PATIENTS * size))[patient],
             "visit": rng.integers(1, 2**63, len(patient)), "split": np.full(len(patient), SPLITS.index(split)),
             "age": rng.integers(18, 91, patient.max() + 1)[patient],
             "sex": rng.integers(0, 2, patient.max() + 1)[patient]}  # fmt: skip
    sets |= {f"visits/{name}": values for name, values in visit.items()}
    _add_labels(sets, patient[sets["draws/visit"]], targets, rng)
    scores = None if split == "train" else _scores(sets, patient[sets["windows/visit"]], targets, rng)
    return sets, scores


def _shares(n_all, weights, rng, at_least=1):
    """Return whole numbers that sum to ``n_all``, in proportion to the weights but for chance."""
    return at_least + rng.multinomial(n_all - at_least * len(weights), weights / weights.sum())


def _pairs(n_visits, size, rng):
    """Return windows, draws and pairs: windows lie about the draws of their visit, the nearest pairs have bits."""
    n_pairs = [round(n * size) for n in PAIRS.values()]
    n_draws = _shares(round(DRAWS * size), rng.gamma(1.5, size=n_visits), rng)
    n_windows = _shares(round(n_pairs[0] / PAIRS_PER_WINDOW), n_draws * rng.lognormal(0, 0.6, n_visits), rng)
    draw_visit = np.repeat(np.arange(n_visits), n_draws)
    draw_time = rng.random(len(draw_visit)) * (rng.lognormal(np.log(4), 0.5, n_visits) * HOUR_US)[draw_visit]
    order = np.lexsort([draw_time, draw_visit])
    draw_time = draw_time[order].astype(np.int64)
    first_draw = np.cumsum(n_draws) - n_draws

    window_visit = np.repeat(np.arange(n_visits), n_windows)
    about = first_draw[window_visit] + (rng.random(len(window_visit)) * n_draws[window_visit]).astype(np.int64)
    start = draw_time[about] + rng.laplace(0, 0.3 * HOUR_US, len(about))
    start = start.astype(np.int64) // 10_000_000 * 10_000_000
    start = start[np.lexsort([start, window_visit])]

    window = np.repeat(np.arange(len(window_visit)), n_draws[window_visit])
    n_before = np.cumsum(n_draws[window_visit]) - n_draws[window_visit]
    draw = np.arange(len(window)) - n_before[window] + first_draw[window_visit[window]]
    offset = start[window] - draw_time[draw]
    nearest = np.lexsort([np.abs(offset), draw])
    first = np.searchsorted(draw[nearest], np.arange(len(draw_visit)))
    within = nearest[np.arange(len(nearest)) - first[draw[nearest]] < CAP]
    chosen = within[np.argsort(np.abs(offset[within]), kind="stable")[: n_pairs[0]]]
    if len(chosen) < n_pairs[0]:
        raise ValueError(f"{len(chosen)} pairs, wanted {n_pairs[0]}: more windows or longer visits")
    horizons = np.repeat(np.array([7, 3, 1], np.uint8), [n_pairs[2], n_pairs[1] - n_pairs[2], n_pairs[0] - n_pairs[1]])
    in_order = np.argsort(chosen)
    chosen, horizons = chosen[in_order], horizons[in_order]
    kept, row = np.unique(window[chosen], return_inverse=True)
    return {
        "windows/visit": window_visit[kept], "windows/start": start[kept], "windows/scale": np.full(len(kept), 1e-3),
        "windows/flags": np.zeros(len(kept)), "draws/time": draw_time, "draws/visit": draw_visit, "pairs/window": row,
        "pairs/draw": draw[chosen], "pairs/offset": offset[chosen] / 1e6, "pairs/horizons": horizons,
    }  # fmt: skip


def _components(targets):
    return list(dict.fromkeys(target.component for target in targets))


def _add_labels(sets, draw_patient, targets, rng):
    """Measure components in draws at random; the lowest and highest values are abnormal, as many as the paper's."""
    n_D = np.bincount(sets["pairs/draw"], minlength=len(draw_patient))
    scale = len(sets["pairs/draw"]) / PAPER_PAIRS
    components = _components(targets)
    sets["draws/values"] = np.full((len(n_D), len(components)), np.nan, np.float32)
    sets["draws/labels"] = np.full((len(n_D), len(targets)), -1, np.int8)
    of_draw = rng.standard_normal((draw_patient.max() + 1, len(components)))[draw_patient]
    value_DV = np.sqrt(LABEL_RHO) * of_draw + np.sqrt(1 - LABEL_RHO) * rng.standard_normal(of_draw.shape)
    measured = {}
    for number, target in enumerate(targets):
        column = components.index(target.component)
        if column not in measured:
            measured[column] = _about(rng.permutation(len(n_D)), n_D, scale * target.paper_windows)
        rows = measured[column]
        value = value_DV[rows, column]
        worst_first = rows[np.argsort(value if target.direction == "low" else -value)]
        sets["draws/values"][rows, column] = value
        sets["draws/labels"][rows, number] = 0
        sets["draws/labels"][_about(worst_first, n_D, scale * target.paper_positives), number] = 1


def _about(rows, n_D, n_wanted):
    """Return the first of ``rows`` that have as many windows as wanted, to within a draw."""
    rows = rows[n_D[rows] > 0]
    return rows[: 1 + np.argmin(np.abs(np.cumsum(n_D[rows]) - n_wanted))]


def _scores(sets, window_patient, targets, rng):
    """Return float32 logits: the log-odds of two normal distributions as far apart as the paper's AUROC says.

    A window of several draws lies between the two by the share of its measured draws that are abnormal. A thousandth
    is NaN: flat windows have no score.
    """
    window, draw = sets["pairs/window"], sets["pairs/draw"]
    logit_WC = np.empty((len(window_patient), len(targets)), np.float32)
    for number, target in enumerate(targets):
        label = sets["draws/labels"][:, number][draw]
        n_measured = np.bincount(window[label >= 0], minlength=len(window_patient))
        share = np.bincount(window[label == 1], minlength=len(window_patient)) / np.maximum(n_measured, 1)
        shift = np.sqrt(2) * norm.ppf(max(target.paper_auroc, 0.501))
        of_patient = rng.standard_normal(window_patient.max() + 1, np.float32)[window_patient]
        of_window = rng.standard_normal(len(window_patient), np.float32)
        x = shift * share + np.sqrt(SCORE_RHO) * of_patient + np.sqrt(1 - SCORE_RHO) * of_window
        odds = target.paper_positives / (target.paper_windows - target.paper_positives)
        logit_WC[:, number] = shift * (x - shift / 2) + np.log(odds)
    logit_WC[rng.random(len(logit_WC)) < UNSCORED] = np.nan
    return logit_WC


def _attributes(split, targets):
    names = [target.name for target in targets]
    return {
        "format": "anyecg-shard", "version": FORMATS["anyecg-shard"], "code_version": "0", "fs": FS, "samples": 10 * FS,
        "leads": '["II"]', "preset": "none", "filter": "none", "split": split, "preset_hash": preset_hash("none", FS),
        "targets": json.dumps(names), "target_hash": digest(names), "components": json.dumps(_components(targets)),
        "plan_hash": "0",
    }  # fmt: skip


def _write_shards(folder, first_number, split, sets, targets):
    """Write the visits of a part as shards and return their descriptions."""
    described = []
    n_visits = len(sets["visits/visit"])
    pair_visit = sets["windows/visit"][sets["pairs/window"]]
    for visits in np.array_split(np.arange(n_visits), SHARDS_PER_PART):
        ends = visits[0], visits[-1] + 1
        rows = {"visits": slice(*ends)}
        for name, of in (("windows", sets["windows/visit"]), ("draws", sets["draws/visit"]), ("pairs", pair_visit)):
            rows[name] = slice(*np.searchsorted(of, ends).tolist())
        own = {name: values[rows[name.split("/")[0]]] for name, values in sets.items()}
        for name, of in (("windows/visit", "visits"), ("draws/visit", "visits"), ("pairs/window", "windows"),
                         ("pairs/draw", "draws")):  # fmt: skip
            own[name] = own[name] - rows[of].start
        n = len(own["windows/visit"])
        path = folder / f"shard-{first_number + len(described):05d}.h5"
        with ShardWriter(path, _attributes(split, targets)) as writer:
            writer.append(np.zeros((n, 1, 10 * FS), np.int16))
            writer.finish(own, {"windows": n, "pairs": len(own["pairs/window"])})
        described.append(describe_shard(path))
    return described


def make_set(folder, *, train=False, seed=0):
    """Write ``shards/`` and ``scores.h5`` into an existing folder; about 3 GB of memory.

    Returns
    -------
    Index
    """
    targets = read_targets()
    shards = Path(folder) / "shards"
    make_folder(shards)
    described: list = []
    outputs = {}
    for split, shares in PARTS.items():
        for number, share in enumerate(shares if train or split != "train" else ()):
            rng = np.random.default_rng([seed, SPLITS.index(split), number])
            sets, scores = make_part(split, share, targets, rng)
            described += _write_shards(shards, len(described), split, sets, targets)
            outputs[split] = scores
    counts = {what: sum(shard["counts"][what] for shard in described) for what in ("pairs", "windows")}
    write_index(shards, described, {"stage_hash": "0", "cohort_hash": "0", "counts": counts})
    index = open_index(shards)
    card = {
        "model": "net1d", "head": "multilabel", "join": "logits", "windows_per_sample": 1,
        "targets": list(index.targets), "leads": list(index.leads), "epoch": 1, "weights_sha256": "0" * 64,
        **{key: index.head[key] for key in ("fs", "samples", "preset", "preset_hash", "target_hash")},
    }  # fmt: skip
    found = {f"{split}/windows": (index.windows_of(split), outputs[split]) for split in ("val", "test")}
    write_scores(Path(folder) / "scores.h5", found, index, card, "0")
    return index


def cohort_of(index):
    """Return the cohort of such a set: nothing is known of anybody."""
    tables = index.tables
    people = {"visit": np.array(tables["visit_visit"]), "patient": np.array(tables["visit_patient"])}
    n = len(people["visit"])
    visits = pl.DataFrame({**people, "split": np.array(tables["visit_split"])}).with_columns(
        age=pl.Series(np.full(n, np.nan)), sex=pl.Series(np.full(n, -1, np.int8))
    )
    nothing = pl.DataFrame()
    return Cohort(
        targets=index.targets, visits=visits, records=nothing, draws=nothing, quarantine=nothing, flow=[], root=Path()
    )  # fmt: skip


def say(folder, index, targets):
    """Print what was made: counts against the paper's, and the AUROCs of the test split's windows."""
    tables = index.tables
    scores = read_scores(Path(folder) / "scores.h5", index)
    for split in scores.windows:
        visits = np.flatnonzero(np.asarray(tables["visit_split"]) == SPLITS.index(split))
        n_draws = int(np.isin(tables["draw_visit"], visits).sum())
        n_pairs = [index.n_pairs(split, horizon_min) for horizon_min in PAIRS]
        n_patients = len(np.unique(tables["visit_patient"][visits]))
        n_windows = len(scores.windows[split][0])
        print(f"{split}: {n_patients} patients, {len(visits)} visits, {n_draws} draws, {n_windows} windows, "
              f"{n_pairs} pairs at {list(PAIRS)} min, {n_pairs[0] / n_windows:.2f} a window")  # fmt: skip
    rows, logit_WC = scores.windows["test"]
    pairs = index.pairs_of("test", 60)
    window, draw = np.searchsorted(rows, tables["pair_window"][pairs]), tables["pair_draw"][pairs]
    n_off, positive_off = [], []
    for number, target in enumerate(targets):
        label = np.asarray(tables["draw_labels"])[:, number][draw]
        n_off.append(int((label >= 0).sum()) - target.paper_windows * len(pairs) / PAPER_PAIRS)
        positive_off.append(int((label == 1).sum()) - target.paper_positives * len(pairs) / PAPER_PAIRS)
        if number % 12 == 0:
            score = logit_WC[window, number]
            kept = (label >= 0) & ~np.isnan(score)
            found = roc_auc_score(label[kept], score[kept])
            print(f"{target.name}: {kept.sum()} windows, {(label[kept] == 1).sum()} positive, AUROC {found:.3f}, "
                  f"the paper's {target.paper_auroc:.3f}")  # fmt: skip
    print(f"farthest from the paper's counts: {np.abs(n_off).max():.0f} windows, {np.abs(positive_off).max():.0f} of "
          "the positive ones")  # fmt: skip


def main():
    """Make the set and say what it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    index = make_set(arguments.out, train=arguments.train, seed=arguments.seed)
    print(f"made in {time.perf_counter() - start:.0f} s")
    say(arguments.out, index, read_targets())


if __name__ == "__main__":
    main()
