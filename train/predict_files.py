"""Scores of any recordings: a CSV with a row for each record and one for each of its windows."""

import csv
import math
from pathlib import Path

import numpy as np
import torch

from anyecg.kernels.segment import FLAT, NONFINITE
from anyecg.loaders.errors import ModelError, RecordError
from anyecg.loaders.files import replacing, write_quarantine
from anyecg.loaders.progress import Progress
from anyecg.loaders.records import find_records, open_record
from anyecg.loaders.windows import find_windows, store_windows
from anyecg.train.model import open_model

BATCH = 256


def _standardise(signal_WT, scale_W):
    mv_WT = signal_WT * scale_W[:, None]
    centred = mv_WT - mv_WT.mean(1, keepdims=True)
    return (centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-16)).astype(np.float32)


def score_record(model, card, record):
    """Return the logits of one recording.

    Returns
    -------
    (start_W, logit_WC)
        Window starts in seconds and float32 logits, NaN for windows that are flat or not finite; a short recording is
        one padded window.
    """
    found = find_windows(record, pad_short=True)
    flags_W = found.flags_W
    signal_WT, scale_W = store_windows(found, np.ones(len(flags_W), bool), fs=card["fs"], preset=card["preset"])
    logit_WC = np.full((len(scale_W), len(card["targets"])), np.nan, np.float32)
    good = (flags_W & (FLAT | NONFINITE)) == 0
    if good.any():
        x = torch.from_numpy(_standardise(signal_WT[good], scale_W[good]))[:, None]
        with torch.no_grad():
            logit_WC[good] = torch.cat([model(part) for part in x.split(BATCH)]).numpy()
    return found.start_W / found.fs, logit_WC


def predict_files(model_folder, source, out):
    """Score any recordings with a published model and write a CSV.

    Parameters
    ----------
    model_folder : path
        A published model (``card.json`` beside ``model.safetensors``), or its ``.safetensors`` file.
    source : path
        A folder of WFDB records, or one record.
    out : path
        CSV: record, start_s (empty on the record's own row), then one column of probabilities a target. The record's
        own row has the sigmoid of the mean logit of its windows. An unreadable record keeps its row, without numbers,
        and stands with its reason in ``OUT.quarantine.csv``.

    Returns
    -------
    (int, int)
        Records, and how many of them could not be read.

    Raises
    ------
    ModelError, RecordError
        No such model; no record there.
    """
    model_folder, source = Path(model_folder), Path(source)
    if model_folder.suffix == ".safetensors":
        model_folder = model_folder.parent
    model, card = open_model(model_folder)
    if source.is_dir():
        names, root = find_records(source), source
    else:
        names, root = [source.name.removesuffix(".hea")], source.parent
    if not names:
        raise RecordError(f"{source}: no record (.hea) below it; give a folder of WFDB records")
    out = Path(out)
    if out.is_dir():
        raise ModelError(f"{out}: a folder; give the path of the CSV to write")
    lead = None if card["leads"] == ["first"] else card["leads"][0]
    bad = []
    with (
        Progress("predict", len(names), " records") as progress,
        replacing(out) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["record", "start_s", *card["targets"]])
        for name in names:
            try:
                start_W, logit_WC = score_record(model, card, open_record(root / name, lead=lead, root=root))
            except RecordError as cause:
                if not source.is_dir():
                    raise
                bad.append((name, str(cause)))
                start_W, logit_WC = np.empty(0), np.empty((0, len(card["targets"])), np.float32)
            seen = logit_WC[~np.isnan(logit_WC).any(1)]
            mean_C = seen.mean(0) if len(seen) else np.full(len(card["targets"]), np.nan)
            writer.writerow([name, "", *map(_probability, mean_C)])
            writer.writerows(
                [name, f"{start:g}", *map(_probability, row)] for start, row in zip(start_W, logit_WC, strict=True)
            )  # fmt: skip
            progress.advance(1)
    if bad:
        write_quarantine(out.with_name(f"{out.name}.quarantine.csv"), bad)
    return len(names), len(bad)


def _probability(logit):
    if math.isnan(logit):
        return ""
    return f"{0.5 * (1 + math.tanh(0.5 * float(logit))):.6f}"
