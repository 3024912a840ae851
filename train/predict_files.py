"""Scores of any recordings: a CSV with a row for each record and one for each of its windows."""

import csv
from pathlib import Path

import numpy as np

from anyecg.kernels.prepare import preset_hash
from anyecg.kernels.segment import FLAT, NONFINITE
from anyecg.loaders.errors import ModelError, RecordError
from anyecg.loaders.files import remove, replacing, write_quarantine
from anyecg.loaders.progress import Progress
from anyecg.loaders.records import find_records, open_record
from anyecg.loaders.windows import find_windows, store_windows
from anyecg.train.heads import scores_of
from anyecg.train.scoring import open_scorer

# Windows prepared, and windows scored at a time.
_PREPARED, BATCH = 512, 64


def _batches(found, number_W, card):
    """Yield the windows with these numbers as float32 mV (windows, samples), a batch at a time."""
    for numbers in np.split(number_W, range(_PREPARED, len(number_W), _PREPARED)):
        chosen_W = np.zeros(len(found.flags_W), bool)
        chosen_W[numbers] = True
        signal_WT, scale_W = store_windows(found, chosen_W, fs=card["fs"], preset=card["preset"])
        for first in range(0, len(numbers), BATCH):
            rows = slice(first, first + BATCH)
            yield signal_WT[rows] * scale_W[rows, None]


def score_record(scorer, record):
    """Return the scores of one recording.

    Parameters
    ----------
    scorer : from ``anyecg.train.scoring.open_scorer``
    record : anyecg.loaders.records.Record

    Returns
    -------
    (start_W, score_WC, score_C)
        Window starts in seconds, and what ``scores_of`` makes of the outputs of the windows and of the record: of their
        mean, or of the head that reads all its windows together. NaN for windows that are flat or not finite, which the
        record's own leave out; a short recording is one padded window.
    """
    found = find_windows(record, pad_short=True)
    output_WC = np.full((len(found.flags_W), len(scorer.card["targets"])), np.nan, np.float32)
    own_C = np.full(output_WC.shape[1], np.nan, np.float32)
    number_W = np.flatnonzero((found.flags_W & (FLAT | NONFINITE)) == 0)
    if len(number_W):
        output_WC[number_W], own_C = scorer.outputs(_batches(found, number_W, scorer.card))
    score_WC = scores_of(np.vstack([own_C, output_WC]), scorer.card)
    return found.start_W / found.fs, score_WC[1:], score_WC[0]


def _find(source):
    """Return the names of the records and the folder they count from."""
    names, root = (
        (find_records(source), source) if source.is_dir() else ([source.name.removesuffix(".hea")], source.parent)
    )
    if not names:
        raise RecordError(f"{source}: no record (.hea) below it; give a folder of WFDB records")
    return names, root


def _open(path):
    """Open a model that scores single leads, prepared as this code prepares them."""
    scorer = open_scorer(path)
    card = scorer.card
    if len(card["leads"]) > 1:
        raise ModelError(f"{path}: takes {len(card['leads'])} leads; wanted a model of one lead")
    here = preset_hash(card["preset"], card["fs"])
    if card.get("preset_hash") != here:
        raise ModelError(
            f"{path}: made for windows prepared as {card['preset']} {card.get('preset_hash')}; this code makes {here}; "
            "use the release that made it"
        )
    return scorer


def predict_files(model, source, out):
    """Score any recordings with a model and write a CSV.

    Parameters
    ----------
    model : path
        What ``anyecg.train.scoring.open_scorer`` opens.
    source : path
        A folder of WFDB records, or one record.
    out : path
        CSV: record, start_s (empty on the record's own row), then one column of scores a target. A record that cannot
        be read keeps its own row, without numbers, and stands with its reason in ``OUT.quarantine.csv``.

    Returns
    -------
    (int, int)
        Records, and how many of them could not be read.

    Raises
    ------
    ModelError, RecordError
        No such model; no record there.
    """
    source, out = Path(source), Path(out)
    scorer = _open(model)
    names, root = _find(source)
    if out.is_dir():
        raise ModelError(f"{out}: a folder; give the path of the CSV to write")
    card = scorer.card
    lead = None if card["leads"] == ["first"] else card["leads"][0]
    form = "{:.6g}" if card["head"] == "regression" else "{:.6f}"
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
                record = open_record(root / name, lead=lead, root=root)
                start_W, score_WC, own_C = score_record(scorer, record)
            except RecordError as cause:
                if not source.is_dir():
                    raise
                bad.append((name, str(cause)))
                start_W, score_WC, own_C = [], [], np.full(len(card["targets"]), np.nan)
            for start, score_C in zip(["", *(f"{start:.10g}" for start in start_W)], [own_C, *score_WC], strict=True):
                writer.writerow([name, start, *("" if np.isnan(score) else form.format(score) for score in score_C)])
            progress.advance(1)
    quarantine = out.with_name(f"{out.name}.quarantine.csv")
    if bad:
        write_quarantine(quarantine, bad)
    else:
        remove(quarantine)
    return len(names), len(bad)
