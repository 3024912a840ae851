"""The report's pictures: ROC and training curves, calibration, and ECG windows as on paper."""

import csv
import math
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from anyecg.app.page import COLOURS, svg
from anyecg.kernels.segment import FLAG_NAMES
from anyecg.loaders.reader import WindowReader
from anyecg.train.heads import scores_of
from anyecg.train.units import one_target, units_of

# What a training of each head lowers, and what its validation is judged by.
CURVES = {
    "multilabel": ("Masked BCE", "Mean AUROC"),
    "exclusive": ("Cross-entropy", "Mean AUROC"),
    "regression": ("Huber loss", "Mean R2"),
}
MAX_ROC_TARGETS = 8
MAX_EXAMPLE_TARGETS = 6


def draw_roc(index, scores, rows, horizon_min, level):
    """Draw the ROC curves of the targets with the highest AUROC, at one horizon and level."""
    figure = Figure(figsize=(5.2, 4.8))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#b9c0c9", lw=1, ls="--")
    units = units_of(index, scores, "test", horizon_min, level)
    shown = [row for row in rows if (row["horizon_min"], row["level"]) == (horizon_min, level)]
    shown = sorted((row for row in shown if not np.isnan(row["auroc"])), key=lambda row: -row["auroc"])
    for row, colour in zip(shown[:MAX_ROC_TARGETS], COLOURS, strict=False):
        target = index.targets.index(row["target"])
        one = one_target(units, target, level)
        order = np.argsort(-one.logit, kind="stable")
        score, positive = one.logit[order], one.label[order] == 1
        ends = np.append(score[1:] != score[:-1], True)
        true_rate = np.concatenate([[0], (np.cumsum(positive) / positive.sum())[ends]])
        false_rate = np.concatenate([[0], (np.cumsum(~positive) / (~positive).sum())[ends]])
        axes.plot(false_rate, true_rate, color=colour, lw=1.8, label=f"{row['target']} ({row['auroc']:.3f})")
    axes.set(xlabel="1 - specificity", ylabel="Sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_title(f"ROC, {level} level", loc="left", fontsize=11)
    if shown:
        axes.legend(frameon=False, loc="lower right", title="AUROC", fontsize=9)
    return svg(figure, bbox_inches="tight")


def draw_calibration(bins, *, small=False):
    """Draw the observed share of positive units over the mean predicted probability, as an SVG.

    Parameters
    ----------
    bins : list of dict
        With "predicted" and "observed"; both axes end at the largest of them.
    small : bool
        Without ticks, to stand in a table.
    """
    largest = max((value for row in bins for value in (row["predicted"], row["observed"])), default=0) or 1.0
    step = 10.0 ** math.floor(math.log10(largest))
    end = next(k * step for k in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if k * step >= largest * (1 - 1e-9))
    points = [(100 * row["predicted"] / end, 100 - 100 * row["observed"] / end) for row in bins]
    line = " ".join(f"{x:.4g},{y:.4g}" for x, y in points)
    drawn = Markup('<path class="axes" d="M0 0V100H100M0 100L100 0"/><polyline points="{}"/>').format(line)
    if small:
        return Markup('<svg class="curve" viewBox="-4 -4 108 108" aria-hidden="true">{}</svg>').format(drawn)
    dots = Markup("").join(Markup('<circle cx="{:.4g}" cy="{:.4g}"/>').format(x, y) for x, y in points)
    ticks = Markup('<text x="0" y="110">0</text>')
    for x, y in ((100, 110), (-3, 6)):
        ticks += Markup('<text class="end" x="{}" y="{}">{:g}</text>').format(x, y, end)
    return Markup('<svg class="curve" viewBox="-22 -4 126 118" role="img" aria-label="{}">{}{}{}</svg>').format(
        f"calibration curve, axes from 0 to {end:g}", drawn, dots, ticks
    )


def draw_training(path, head):
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    figure = Figure(figsize=(9.6, 3.2))
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    left.plot(epochs, [row["train_loss"] for row in rows], "o-", ms=3, color=COLOURS[0], label="train")
    left.plot(epochs, [row["val_loss"] for row in rows], "o-", ms=3, color=COLOURS[1], label="validation")
    left.set(xlabel="epoch", ylim=(0, None))
    loss, score = CURVES[head]
    left.set_title(loss, loc="left", fontsize=11)
    left.legend(frameon=False)
    right.plot(epochs, [row["val_score"] for row in rows], "o-", ms=3, color=COLOURS[1])
    right.set(xlabel="epoch")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_title(f"{score} on the validation split", loc="left", fontsize=11)
    return svg(figure, bbox_inches="tight"), rows


def draw_ecg(mv_T, fs):
    """Draw one lead on ECG paper, 25 mm/s and 10 mm/mV.

    Parameters
    ----------
    mv_T : float array, shape (samples,)
    fs : float

    Returns
    -------
    markupsafe.Markup, an SVG 250 mm wide for 10 s
    """
    seconds = len(mv_T) / fs
    # Far beyond, the trace leaves the paper, as it does on real paper.
    low = np.clip(np.floor(mv_T.min() * 2) / 2, -2.0, -1.0)
    high = np.clip(np.ceil(mv_T.max() * 2) / 2, 1.5, 2.5)
    figure = Figure(figsize=(seconds * 25 / 25.4, (high - low) * 10 / 25.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, seconds), ylim=(low, high), xticks=[], yticks=[])
    for spacing, width, colour in ((1, 0.3, "#f6d5d2"), (5, 0.7, "#eba9a3")):
        axes.vlines(np.arange(0, seconds + 1e-9, spacing / 25), low, high, color=colour, lw=width)
        axes.hlines(np.arange(low, high + 1e-9, spacing / 10), 0, seconds, color=colour, lw=width)
    axes.plot(np.arange(len(mv_T)) / fs, mv_T, color="#1c2430", lw=0.9)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return svg(figure)


def examples(index, scores, horizon_min):
    """Show for each target the highest- and the lowest-scored positive and the highest-scored negative window."""
    units = units_of(index, scores, "test", horizon_min, "window")
    scored, output_WC = scores.windows["test"]
    reader, place = WindowReader(index, run_chunks=1, n_slots=4), index.rhythm_lead
    lead = f", lead {index.leads[place]}" if len(index.leads) > 1 else ""
    examples: list[dict] = []
    shown: set[int] = set()
    for number, target in enumerate(index.targets[:MAX_EXAMPLE_TARGETS]):
        one = one_target(units, number, "window").only(~np.isin(units.window, list(shown)))
        rows, logit, label = one.rows, one.logit, one.label
        for wanted, pick, what in (
            (1, np.argmax, "present, highest score"), (1, np.argmin, "present, lowest score"),
            (0, np.argmax, "absent, highest score"),
        ):  # fmt: skip
            if not (label == wanted).any():
                continue
            row = rows[label == wanted][pick(logit[label == wanted])]
            window = int(units.window[row])
            shown.add(window)
            mv_T = reader.read([window])[0, place] * index.scale_of([window])[0, place]
            flags = [name for flag, name in FLAG_NAMES.items() if index.tables["window_flags"][window] & flag]
            score_C = scores_of(output_WC[[np.searchsorted(scored, window)]], scores.card)[0]
            said = [f"{name} {score:.2f}" for name, score in zip(index.targets, score_C, strict=True)]
            caption = f"{target} {what}{lead}. Scores: {', '.join(said[:8])}"
            caption += f". Flags: {', '.join(flags)}." if flags else "."
            examples.append({"caption": caption, "picture": draw_ecg(mv_T, index.head["fs"])})
    reader.close()
    return examples
