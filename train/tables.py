"""The tables of an evaluation, made from its finished tasks."""

import numpy as np

from anyecg.kernels.calibration import N_BINS
from anyecg.train.added import MODELS
from anyecg.train.baselines import BASELINES
from anyecg.train.decide import check_classes, decision_rows
from anyecg.train.intervals import Intervals, holm, mean_of, no_interval
from anyecg.train.measures import METRICS
from anyecg.train.regress import regression_row
from anyecg.train.results import OTHER_TABLES, read_results

SCALE = {"calibration_slope": "plain"}
# The paper's bands of the AUROC: from where on each one reaches.
BANDS = ((0.65, ">= 0.65"), (0.55, "0.55-0.65"), (-np.inf, "< 0.55"))
# Fewer patients of a class than this: a target is marked, a subgroup is not shown.
FEW = 10
_COUNTS = ("n", "n_positive", "n_patients", "n_patients_positive")


def band_of(auroc):
    """Return the paper's band of an AUROC; empty without one."""
    return "" if np.isnan(auroc) else next(name for low, name in BANDS if auroc >= low)


class Tables:
    """The tables of one evaluation.

    Parameters
    ----------
    config : anyecg.train.evaluate_config.EvaluateConfig
    card : dict
        Of the model.
    reference : polars.DataFrame
        Of the cohort; the paper's figures are shown beside ours.
    """

    def __init__(self, config, card, reference):
        self._config, self._targets = config, card["targets"]
        self._intervals = Intervals(config.confidence, config.interval)
        self._paper = {row["target"]: row["auroc"] for row in reference.to_dicts() if row["source"] == "paper"}
        internal = read_results(config.internal) if config.internal else []
        self._internal = {(row["target"], row["horizon_min"], row["level"]): row for row in internal}

    def of(self, done):
        """Return the rows of each table.

        Parameters
        ----------
        done : list of anyecg.train.work.Done
        """
        tables: dict[str, list] = {name: [] for name in ("rows", *OTHER_TABLES)}
        for task in done:
            kind, *where = task.key
            if kind == "decisions":
                f1_classes = check_classes(self._config.f1_classes, self._targets)
                head = dict(zip(("horizon_min", "level"), where, strict=True))
                rows = decision_rows(task, self._targets, f1_classes, self._intervals)
                tables[kind] += [{"target": row.pop("target"), **head, **row} for row in rows]
                continue
            head = dict(zip(("target", "horizon_min", "level", "attribute", "group"), where, strict=False))
            if kind == "baselines":
                tables[kind] += [{**head, **row} for row in self._baselines(task)]
                continue
            make = {"rows": self._row, "subgroups": self._subgroup, "regression": self._regression}[kind]
            tables[kind].append({**head, **make(task)})
            if kind == "rows":
                tables["calibration"] += [{**head, **row} for row in _bins(task)]
        _adjust(tables["baselines"])
        tables["macro"] = self._macro([task for task in done if task.key[0] == "rows"])
        return tables

    def _regression(self, task):
        return regression_row(task, self._intervals)

    def _row(self, task):
        facts, (target, *_) = task.facts, task.key[1:]
        row = {name: facts[name] for name in _COUNTS}
        for number, metric in enumerate(METRICS):
            row |= self._intervals.columns(
                metric, task.value[number], task.replicates[:, number], df=facts["df"], scale=SCALE.get(metric, "logit")
            )  # fmt: skip
        valid = task.replicates[~np.isnan(task.replicates[:, 0]), 0]
        internal = self._internal.get(task.key[1:4], {})
        return {
            **row, "threshold": facts["threshold"], "n_replicates": len(valid),
            "auroc_se": float(valid.std(ddof=1)) if len(valid) > 1 else float("nan"),
            "auroc_se_delong": facts["auroc_se_delong"], "auroc_se_clustered": facts["auroc_se_clustered"],
            "band": band_of(row["auroc"]), "few_positive": int(row["n_patients_positive"] < FEW),
            "paper_auroc": self._paper.get(target, float("nan")),
            **{
                f"internal_{name}": internal.get(column, float("nan"))
                for name, column in (("auroc", "auroc"), ("low", "auroc_low"), ("high", "auroc_high"))
            },
            "n_unscored": facts["n_unscored"], "reason": self._reason(task),
        }  # fmt: skip

    def _reason(self, task):
        """Say why the AUROC has no value or no interval."""
        facts = task.facts
        if not facts["n"]:
            return "not measured" if not facts.get("n_unscored") else "no unit has a score"
        if facts["n_positive"] in (0, facts["n"]):
            return f"one class: {facts['n_positive']} of {facts['n']} are positive"
        return no_interval(task.value[0], task.replicates[:, 0], df=facts["df"], interval=self._config.interval)

    def _subgroup(self, task):
        few = min(task.facts["n_patients_positive"], task.facts["n_patients_negative"]) < FEW
        nan = float("nan")
        columns = self._intervals.columns("auroc", task.value[0], task.replicates[:, 0], df=task.facts["df"])
        return {
            **{name: nan if few else task.facts[name] for name in _COUNTS},
            **{name: nan if few else value for name, value in columns.items()},
            "reason": f"too small: fewer than {FEW} patients of a class" if few else self._reason(task),
        }  # fmt: skip

    def _baselines(self, task):
        """Return one row a model; what is more than the baselines also beside the best of them."""
        facts, rows = task.facts, []
        base = MODELS.index(BASELINES[-1])
        none = dict.fromkeys(("difference", "difference_low", "difference_high", "z", "p", "p_holm"), float("nan"))
        for number, model in enumerate(MODELS):
            row = {"model": model, **{name: facts[name] for name in _COUNTS}}
            for metric in range(2):
                row |= self._intervals.columns(
                    METRICS[metric], task.value[number, metric], task.replicates[:, number, metric], df=facts["df"]
                )  # fmt: skip
            row |= none
            if number > base:
                value, replicates = (of[..., number, 0] - of[..., base, 0] for of in (task.value, task.replicates))
                row |= self._intervals.difference(float(value), replicates, df=facts["df"])
            why = no_interval(
                task.value[number, 0], task.replicates[:, number, 0], df=facts["df"], interval=self._config.interval
            )  # fmt: skip
            rows.append({**row, "reason": facts["reasons"][number] or why})
        return rows

    def _macro(self, done):
        """Return the mean over targets of each metric, for each horizon and level."""
        rows = []
        for where in dict.fromkeys(task.key[2:4] for task in done):
            of_targets = [task for task in done if task.key[2:4] == where]
            df_C = [task.facts["df"] for task in of_targets]
            for number, metric in enumerate(METRICS):
                value_C = np.array([task.value[number] for task in of_targets])
                replicates_RC = np.stack([task.replicates[:, number] for task in of_targets], axis=1)
                value, replicates_R, df = mean_of(value_C, replicates_RC, df_C)
                columns = self._intervals.columns(
                    "value", value, replicates_R, df=df, scale=SCALE.get(metric, "logit")
                )  # fmt: skip
                n_targets = int((~np.isnan(value_C)).sum())
                head = {"horizon_min": where[0], "level": where[1], "metric": metric, "n_targets": n_targets}
                rows.append({**head, **columns})
        return rows


def _adjust(rows):
    """Adjust the p-values of each level and model for the number of targets."""
    for level, model in dict.fromkeys((row["level"], row["model"]) for row in rows):
        chosen = [row for row in rows if (row["level"], row["model"]) == (level, model)]
        for row, p in zip(chosen, holm([row["p"] for row in chosen]).tolist(), strict=True):
            row["p_holm"] = p


def _bins(task):
    """Return the bins of the calibration of one target."""
    keys = ("n", "predicted", "observed")
    return [
        {"bin": number + 1, **{key: task.facts["bins"][k][number] for k, key in enumerate(keys)}}
        for number in range(N_BINS)
    ]
