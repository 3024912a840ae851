"""Scores of any recordings: a CSV with a row for each record and one for each of its windows."""

import csv
import logging
import os
from pathlib import Path

import numpy as np

from anyecg.kernels.prepare import preset_hash
from anyecg.kernels.segment import FLAT, NONFINITE
from anyecg.loaders.errors import ModelError, RecordError
from anyecg.loaders.files import remove, replacing, write_quarantine
from anyecg.loaders.progress import Progress
from anyecg.loaders.records import Record, find_files, open_leads, open_record
from anyecg.loaders.wfdb_header import MAX_SAMPLES
from anyecg.loaders.windows import find_leads, store_leads
from anyecg.train.heads import scores_of
from anyecg.train.scoring import open_scorer

log = logging.getLogger(__name__)
# Windows prepared, and windows scored at a time.
_PREPARED, BATCH = 512, 64


def _unwatched(_):
    """Heed no progress."""


def _part_of(watch, number, n_all):
    return lambda share: watch((number + share) / n_all)


def _batches(found, number_W, card, watch):
    """Yield the windows with these numbers as float32 mV (windows, leads, samples), a batch at a time."""
    n_done = 0
    for numbers in np.split(number_W, range(_PREPARED, len(number_W), _PREPARED)):
        chosen_W = np.zeros(len(found.flags_W), bool)
        chosen_W[numbers] = True
        signal_WLT, scale_WL = store_leads(found, chosen_W, fs=card["fs"], preset=card["preset"])
        for first in range(0, len(numbers), BATCH):
            rows = slice(first, first + BATCH)
            watch(n_done / len(number_W))
            yield signal_WLT[rows] * scale_WL[rows, :, None]
            n_done += len(signal_WLT[rows])


def open_model_leads(card, path, root, *, number=None, zeros=False, **options):
    """Open the leads of a recording that a model takes: those it names, or of a model of any one lead the first.

    Parameters
    ----------
    card : dict
    path, root, zeros, **options
        As for ``anyecg.loaders.records.open_leads``.
    number : int, optional
        Position of the lead for a model of any one lead, instead of the first.

    Returns
    -------
    tuple of Record or None

    Raises
    ------
    RecordError
        As ``open_leads``; leads of more than 1e9 samples together.
    """
    named = [] if card["leads"] == ["first"] else card["leads"]
    if number is not None and not named:
        return (open_record(path, lead=number, root=root, **options),)
    records = open_leads(path, named, zeros=zeros, root=root, **options)
    n_samples = sum(record.n_samples for record in records if record)
    if n_samples > MAX_SAMPLES:
        raise RecordError(
            f"{path}: {n_samples} samples in {len(records)} leads; wanted at most {MAX_SAMPLES}: split the record"
        )
    return records


def score_record(scorer, records, *, watch=_unwatched):
    """Return the scores of one recording.

    Parameters
    ----------
    scorer : from ``anyecg.train.scoring.open_scorer``
    records : Record, or tuple of Record or None
        A lead, or those that ``open_model_leads`` gives.
    watch : function of float, optional
        Called before each batch with the share that is done; what it raises ends the work.

    Returns
    -------
    (start_W, score_WC, score_C)
        Window starts in seconds, and what ``scores_of`` makes of the outputs of the windows and of the record: of their
        mean, or of the head that reads all its windows together. NaN for windows that are flat or not finite in any
        lead, which the record's own leave out; a short recording is one padded window.
    """
    found = find_leads((records,) if isinstance(records, Record) else records, pad_short=True)
    output_WC = np.full((len(found.flags_W), len(scorer.card["targets"])), np.nan, np.float32)
    own_C = np.full(output_WC.shape[1], np.nan, np.float32)
    number_W = np.flatnonzero((found.flags_W & (FLAT | NONFINITE)) == 0)
    if len(number_W):
        output_WC[number_W], own_C = scorer.outputs(_batches(found, number_W, scorer.card, watch))
    score_WC = scores_of(np.vstack([own_C, output_WC]), scorer.card)
    return found.start_s_W, score_WC[1:], score_WC[0]


def _find(source, any_table, without):
    """Return the file of each record by its name, and the folder they count from; ``without`` is none of them."""
    if not source.is_dir():
        name = source.name.removesuffix(".hea")
        is_header = name != source.name or source.with_name(f"{name}.hea").exists() or not source.exists()
        return {name if is_header else source.stem: source.name}, source.parent
    files = find_files(source, any_table=any_table)
    files = {name: file for name, file in files.items() if file != os.path.relpath(without, source)}
    if not files:
        raise RecordError(f"{source}: no record below it; give a folder of recordings, of WFDB or another format")
    return files, source


def open_lead_scorer(path):
    """Open a model that scores leads of recordings, prepared as this code prepares them.

    Raises
    ------
    ModelError, UpgradeNeeded
        As ``anyecg.train.scoring.open_scorer``; a model made for windows prepared otherwise.
    """
    scorer = open_scorer(path)
    card = scorer.card
    here = preset_hash(card["preset"], card["fs"])
    if card.get("preset_hash") != here:
        raise ModelError(
            f"{path}: made for windows prepared as {card['preset']} {card.get('preset_hash')}; this code makes {here}; "
            "use the release that made it"
        )
    return scorer


def predict_files(model, source, out, *, zeros=False, watch=_unwatched, **options):
    """Score any recordings with a model and write a CSV.

    Parameters
    ----------
    model : path
        What ``anyecg.train.scoring.open_scorer`` opens.
    source : path
        A folder of recordings of any format, or one.
    out : path
        CSV: record, start_s (empty on the record's own row), then one column of scores a target. A record that cannot
        be read or lacks a lead of the model keeps its own row, without numbers, and stands with its reason in
        ``OUT.quarantine.csv``.
    zeros : bool
        Take zeros for leads that are missing, as long as one of the model's is there.
    watch : function of float, optional
        Called with the share that is done; what it raises ends the work, and no CSV is written.
    **options
        What files of plain numbers do not say: ``anyecg.loaders.formats.plain_options``.

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
    scorer = open_lead_scorer(model)
    files, root = _find(source, "fs" in options, out)
    if out.is_dir():
        raise ModelError(f"{out}: a folder; give the path of the CSV to write")
    card = scorer.card
    form = "{:.6g}" if card["head"] == "regression" else "{:.6f}"
    bad, n_lacking = [], 0
    with (
        Progress("predict", len(files), " records") as progress,
        replacing(out) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["record", "start_s", *card["targets"]])
        for number, (name, file_name) in enumerate(files.items()):
            watch(number / len(files))
            try:
                leads = open_model_leads(card, root / file_name, root, zeros=zeros, **options)
                start_W, score_WC, own_C = score_record(scorer, leads, watch=_part_of(watch, number, len(files)))
                n_lacking += None in leads
            except RecordError as cause:
                if not source.is_dir():
                    raise
                bad.append((name, str(cause)))
                start_W, score_WC, own_C = [], [], np.full(len(card["targets"]), np.nan)
            for start, score_C in zip(["", *(f"{start:.10g}" for start in start_W)], [own_C, *score_WC], strict=True):
                writer.writerow([name, start, *("" if np.isnan(score) else form.format(score) for score in score_C)])
            progress.advance(1)
    if n_lacking:
        log.warning("predict: zeros stand for missing leads in %d of %d records", n_lacking, len(files))
    quarantine = out.with_name(f"{out.name}.quarantine.csv")
    if bad:
        write_quarantine(quarantine, bad)
    else:
        remove(quarantine)
    return len(files), len(bad)
