"""``anyecg compare``: finished runs side by side, with paired intervals."""

import math
from pathlib import Path
from typing import get_args

from anyecg.app.config import load_config
from anyecg.app.report_text import aligned
from anyecg.loaders.errors import AnyECGError, ModelError
from anyecg.loaders.files import write_document
from anyecg.loaders.index import open_index
from anyecg.loaders.progress import Progress
from anyecg.train.compare import COLUMNS, Compared, check_comparable, compare
from anyecg.train.decide import ALL, MEAN
from anyecg.train.evaluate_config import Level
from anyecg.train.results import write_table
from anyecg.train.scores import index_of, read_scores

# Beyond this many targets the table shows those with the smallest p.
MANY_TARGETS = 24


def compare_runs(names, *, level, horizon_min, out):
    """Compare finished runs, write a CSV and, beside it, a JSON document; return the table as text.

    Parameters
    ----------
    names : list of str
        Run folders, each by choice with a level, as in "runs/a:draw-head".
    level : str
        Of the runs without a level of their own.
    horizon_min : int
    out : Path
        CSV to write.

    Raises
    ------
    AnyECGError
        A run that has not finished, or runs that cannot be compared.
    """
    if len(names) < 2:
        raise AnyECGError("compare wants two or more run folders, each by choice with a level, as in runs/a:draw-head")
    if out.suffix != ".csv" or out.is_dir():
        raise AnyECGError(f"{out}: wanted the path of a CSV to write")
    folders, levels = zip(*(_folder_and_level(name, level) for name in names), strict=True)
    config, index = load_config(folders[0] / "config.toml"), open_index(folders[0] / "shards")
    for folder in folders:
        if index_of(folder / "scores.h5") != index.hash:
            other = _differing(config, load_config(folder / "config.toml"))
            raise ModelError(
                f"{folder}: its scores are of other shards than those of {folders[0]}{other}; compare runs of one "
                "cohort with the same [cohort], [shard] and seed"
            )
    models = [
        Compared(name, read_scores(folder / "scores.h5", index), of_model)
        for name, folder, of_model in zip(_distinct(names), folders, levels, strict=True)
    ]
    targets, _ = check_comparable(models)
    with Progress("compare", len(targets), " targets") as progress:
        document = compare(
            index, models, config.evaluate, horizon_min=horizon_min, seed=config.seed, progress=progress.advance
        )  # fmt: skip
    rows = [{key: math.nan if value is None else value for key, value in row.items()} for row in document["rows"]]
    write_table(out, rows, COLUMNS)
    write_document(out.with_suffix(".json"), "anyecg-comparison", document)
    return comparison_text(document, rows)


def _differing(config, other):
    """Return the keys that make shards in which two configs differ, with what stands there."""
    found = [("seed", config.seed, other.seed)]
    for section in ("cohort", "shard"):
        one, two = getattr(config, section).model_dump(), getattr(other, section).model_dump()
        found += [(f"{section}.{key}", one[key], two[key]) for key in one if key != "ranks"]
    differing = ", ".join(f"{key}: {second!r} and {first!r}" for key, first, second in found if first != second)
    return f" ({differing})" if differing else ""


def _folder_and_level(name, level):
    folder, colon, own = name.rpartition(":")
    if colon and own in get_args(Level):
        return Path(folder), own
    if not Path(name).is_dir():
        raise AnyECGError(f"{name}: no such run folder; levels behind a colon are {', '.join(get_args(Level))}")
    return Path(name), level


def _distinct(names):
    """Return the names, a number behind those that stand there already."""
    return [f"{name} ({names[: k + 1].count(name)})" if name in names[:k] else name for k, name in enumerate(names)]


def _number(value, digits=3):
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _with_interval(row, column, sign=""):
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    interval = "no interval" if math.isnan(low) else f"{low:{sign}.3f} to {high:{sign}.3f}"
    return f"{row[column]:{sign}.3f} ({interval})" if not math.isnan(row[column]) else "–"


def comparison_text(document, rows):
    """Return a comparison as lines for a terminal.

    Parameters
    ----------
    document : dict
        From ``anyecg.train.compare.compare``.
    rows : list of dict
        Its rows, missing numbers as NaN.
    """
    letters = [chr(ord("A") + number) for number in range(len(document["models"]))]
    head: list[tuple] = [("", "run", "level", "network", "parameters", "epoch")]
    for letter, model in zip(letters, document["models"], strict=True):
        parameters = "–" if model["n_parameters"] is None else f"{model['n_parameters']:,}"
        head.append((letter, *(str(model[key]) for key in ("name", "level", "model")), parameters, str(model["epoch"])))
    parts = [aligned(head)]
    for metric in dict.fromkeys(row["metric"] for row in rows):
        parts.append(_metric_text(metric, [row for row in rows if row["metric"] == metric], letters))
    said = (
        f"{document['horizon_min']} min, {document['confidence']:.0%} intervals, {document['n_replicates']} replicates "
        f"that resample the {document['unit']}; p by Holm over the targets"
    )
    if document["left_out"]:
        said += f"; left out, not a target of every model: {', '.join(document['left_out'])}"
    return "\n\n".join([*parts, said])


def _metric_text(metric, rows, letters):
    """Return the table of one metric, a line a target."""
    by_target: dict[str, list] = {}
    for row in rows:
        by_target.setdefault(row["target"], []).append(row)
    shown = [of_target for name, of_target in by_target.items() if name not in (MEAN, ALL)]
    n_all = len(shown)
    if n_all > MANY_TARGETS:
        least = [min((row["p"] for row in of_target[1:] if not math.isnan(row["p"])), default=2) for of_target in shown]
        shown = [shown[number] for number in sorted(range(n_all), key=lambda k: least[k])[:MANY_TARGETS]]
    shown += [by_target[name] for name in (ALL, MEAN) if name in by_target]
    changed = [cell for letter in letters[1:] for cell in (f"{letter} - {letters[0]}", "p", "p Holm")]
    lines = [(metric, "n", "positive", *letters, *changed)]
    for of_target in shown:
        counts = ["" if math.isnan(of_target[0][key]) else str(of_target[0][key]) for key in ("n", "n_positive")]
        changes = [
            cell
            for row in of_target[1:]
            for cell in (_with_interval(row, "difference", "+"), _number(row["p"]), _number(row["p_holm"]))
        ]
        values = [_with_interval(row, "value") for row in of_target]
        lines.append((of_target[0]["target"], *counts, *values, *changes))
    more = [f"the {MANY_TARGETS} of {n_all} targets with the smallest p; the CSV holds all"]
    return "\n".join([aligned(lines), *(more if n_all > MANY_TARGETS else [])])
