"""Tables as ``results.json`` and ``compare.json`` hold them, with made-up numbers, for tests of how they are shown."""

import math

import numpy as np

METRICS = (
    "auroc", "auprc", "sensitivity", "specificity", "f1", "balanced_accuracy", "brier", "calibration_slope", "ece",
)  # fmt: skip
GROUPS = {"sex": ("F", "M"), "age": ("18-44", "45-64", "65-79", "80+"), "race": ("Asian", "Black", "White", "Other")}
MODELS = ("age-sex", "heart", "age-sex-heart", "ecg", "ecg+age-sex-heart")
NAN = math.nan


def _spread(name, value, width, *, least=0.0, most=1.0):
    return {name: value, f"{name}_low": max(value - width, least), f"{name}_high": min(value + width, most)}


def _empty(name):
    return {name: NAN, f"{name}_low": NAN, f"{name}_high": NAN}


def _counts(generator, share):
    n_patients = int(generator.integers(200, 1800))
    n_patients_positive = max(1, int(n_patients * share))
    return {
        "n": 5 * n_patients, "n_positive": 4 * n_patients_positive, "n_patients": n_patients,
        "n_patients_positive": n_patients_positive,
    }  # fmt: skip


def _band(auroc):
    return "" if math.isnan(auroc) else ">= 0.65" if auroc >= 0.65 else "0.55-0.65" if auroc >= 0.55 else "< 0.55"


def _row(generator, where, auroc, share, paper, internal):
    row = {**where, **_counts(generator, share)}
    few = row["n_patients_positive"] < 10
    width = 0.6 / math.sqrt(row["n_patients_positive"])
    for metric in METRICS:
        value = auroc if metric == "auroc" else float(generator.uniform(0.02, 0.98))
        row |= _spread(metric, value, width / 2, most=3 if metric == "calibration_slope" else 1)
    row |= {"threshold": share, "n_replicates": 1000, "few_positive": int(few), "band": _band(auroc)}
    row |= {"auroc_se": width / 2, "auroc_se_delong": width / 3, "auroc_se_clustered": width / 2.1, "reason": ""}
    row |= {"paper_auroc": paper, "internal_auroc": NAN, "internal_low": NAN, "internal_high": NAN, "n_unscored": 3}
    if internal:
        row |= {"internal_auroc": auroc + 0.02, "internal_low": auroc - 0.01, "internal_high": auroc + 0.05}
    if row["n_patients_positive"] < 2:
        row |= {f"auroc{end}": NAN for end in ("_low", "_high")} | {"reason": "1 positive patient; wanted 2 or more"}
    return row


def _bins(generator, where, share):
    predicted = np.clip(share * np.linspace(0.2, 2.2, 10) ** 1.5, 0, 0.97)
    observed = np.clip(predicted * generator.uniform(0.7, 1.3, 10), 0, 1)
    return [
        {**where, "bin": k + 1, "n": 100, "predicted": float(predicted[k]), "observed": float(observed[k])}
        for k in range(10)
    ]


def _subgroups(generator, where, auroc, share):
    rows = []
    for attribute, names in GROUPS.items():
        for name in names:
            row = {**where, "attribute": attribute, "group": name, **_counts(generator, share), "reason": ""}
            if row["n_patients_positive"] < 10:
                row |= dict.fromkeys(("n", "n_positive", "n_patients", "n_patients_positive"), NAN) | _empty("auroc")
                row["reason"] = "too small: fewer than 10 patients of a class"
            else:
                row |= _spread("auroc", auroc + float(generator.normal(0, 0.03)), 1 / math.sqrt(row["n_patients"]))
            rows.append(row)
    return rows


def _baselines(generator, where, auroc, share):
    rows = []
    counts = _counts(generator, share)
    for number, model in enumerate(MODELS):
        value = auroc - 0.08 + 0.02 * number
        row = {**where, "model": model, **counts, **_spread("auroc", value, 0.03), **_spread("auprc", share, 0.02)}
        row |= {**_empty("difference"), "z": NAN, "p": NAN, "p_holm": NAN}
        if number > 2:
            gain = float(generator.normal(0.02 * (number - 2), 0.03))
            row |= _spread("difference", gain, 0.025, least=-1) | {"z": gain / 0.0125, "p": 0.01}
            row["p_holm"] = 0.0004 if gain > 0.04 else 0.2
        rows.append(row)
    return rows


def made_tables(
    targets, *, paper=(), horizons=(60, 30, 15), levels=("window", "draw", "visit"), internal=False, seed=0
):
    """Return all tables of a ``results.json``; the last target is never positive, the one before in one patient.

    Parameters
    ----------
    targets : list of str
    paper : list of float
        The paper's AUROC of each target; empty for none.
    internal : bool
        Put the same model's figures on its own cohort beside them.
    """
    generator = np.random.default_rng(seed)
    tables = {
        name: [] for name in ("rows", "macro", "calibration", "subgroups", "baselines", "decisions", "regression")
    }
    best = paper or generator.uniform(0.45, 0.9, len(targets))
    shares = generator.beta(0.8, 5, len(targets)) + 0.002
    shares[-2:] = 0
    for horizon in horizons:
        for level in levels:
            for number, target in enumerate(targets):
                where = {"target": target, "horizon_min": horizon, "level": level}
                auroc = float(np.clip(best[number] + generator.normal(0, 0.03), 0.3, 0.97))
                share = shares[number]
                row = _row(generator, where, auroc, share, paper[number] if paper else NAN, internal)
                if number == len(targets) - 1:
                    row |= {f"{metric}{end}": NAN for metric in METRICS for end in ("", "_low", "_high")}
                    row |= {"n_positive": 0, "n_patients_positive": 0, "band": "", "reason": "no positive draw"}
                else:
                    tables["calibration"] += _bins(generator, where, share)
                tables["rows"].append(row)
                if horizon == horizons[0]:
                    tables["baselines"] += _baselines(generator, where, auroc, share)
                    tables["subgroups"] += _subgroups(generator, where, auroc, share) if level == "draw" else []
            for metric in METRICS:
                mean = float(np.nanmean([row[metric] for row in tables["rows"][-len(targets) :]]))
                head = {"horizon_min": horizon, "level": level, "metric": metric, "n_targets": len(targets) - 1}
                tables["macro"].append(head | _spread("value", mean, 0.012))
    return tables


def made_comparison(targets, seed=0):
    """Return a document as ``compare.json`` holds it, of two models."""
    generator = np.random.default_rng(seed)
    rows = []
    for metric in ("auroc", "auprc"):
        for target in [*targets, "mean"]:
            for name in ("runs/a", "runs/b"):
                value, gain = float(generator.uniform(0.5, 0.9)), float(generator.normal(0.01, 0.02))
                row = {"target": target, "metric": metric, "model": name, "n": 500, "n_positive": 50, "n_patients": 90}
                row |= _spread("value", value, 0.03) | _empty("difference") | {"t": NAN, "p": NAN, "p_holm": NAN}
                if name == "runs/b":
                    row |= _spread("difference", gain, 0.02, least=-1) | {"t": gain / 0.01, "p": 0.04, "p_holm": 0.2}
                rows.append({key: None if value != value else value for key, value in row.items()})
    model = {"level": "draw", "model": "Net1D", "n_parameters": 30_700_000, "epoch": 7}
    return {
        "models": [{"name": name, **model} for name in ("runs/a", "runs/b")], "horizon_min": 60, "unit": "patient",
        "n_replicates": 1000, "confidence": 0.95, "left_out": [], "rows": rows,
    }  # fmt: skip
