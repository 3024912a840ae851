"""Scores of shards: one logit vector for each distinct window of a split."""

from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import torch
from pydantic import Field

from anyecg.loaders.errors import AnyECGError, ModelError
from anyecg.loaders.files import FORMATS, check_format, code_version, replacing
from anyecg.loaders.index import Index
from anyecg.loaders.progress import Progress
from anyecg.loaders.ranks import share_error
from anyecg.loaders.settings import Section
from anyecg.loaders.stream import rows_of_rank
from anyecg.train.batches import WindowBatches
from anyecg.train.model import check_target_table, open_model

BATCH = 256


class PredictConfig(Section):
    """Which model makes the scores."""

    model: str = Field(
        "", description="folder of a finished model to judge on this cohort; nothing is trained then; empty: train one"
    )


def predict_shards(path, index: Index, model_folder, *, stream, comm, stage_hash, splits=("val", "test")):
    """Write ``scores.h5``: for each split its windows' global rows and their logits (float32).

    Raises
    ------
    ModelError
        The model is missing, or was made for another target table or preparation.
    """
    model, card = open_model(model_folder)
    check_target_table(model_folder, card, index)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", comm.rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    model.to(device)
    windows = {split: index.windows_of(split) for split in splits}
    logits = {}
    n_all = sum(len(rows) for rows in windows.values())
    n_done, error = 0, None
    with Progress("predict", n_all, " windows", shown=comm.rank == 0) as progress:
        for split, rows in windows.items():
            mine = rows_of_rank(rows, comm.rank, comm.size)
            parts = [np.empty((0, len(index.targets)), np.float32)]
            try:
                parts += _logits(model, index, mine, stream, device, progress, comm.size)
            except (AnyECGError, RuntimeError) as cause:
                error = ModelError(f"predicting {split}: {cause}")
            share_error(comm, error)
            gathered = comm.gather(np.concatenate(parts))
            n_done += len(rows)
            progress.advance(n_done - progress.done)
            if comm.rank == 0:
                logits[split] = np.concatenate(gathered)
    if comm.rank == 0:
        _write_scores(path, windows, logits, index, card, stage_hash)
    comm.barrier()


def _logits(model, index, rows, stream, device, progress, n_ranks):
    if not len(rows):
        return []
    batches = WindowBatches(index, rows, stream, batch_size=min(BATCH, len(rows)), device_id=device.index)
    found = []
    with closing(batches), torch.no_grad():
        for x_BLT in batches:
            found.append(model(x_BLT.to(device)).float().cpu().numpy())
            progress.advance(min(len(x_BLT) * n_ranks, progress.total - progress.done - 1))
    return found


def _write_scores(path, windows, logits, index, card, stage_hash):
    with replacing(path) as temporary, h5py.File(temporary, "w", libver=("v110", "v110")) as file:
        file.attrs.update(
            {
                "format": "anyecg-scores", "version": FORMATS["anyecg-scores"], "code_version": code_version(),
                "index_hash": index.hash, "weights_sha256": card["weights_sha256"], "stage_hash": stage_hash,
                "target_hash": card["target_hash"],
            }
        )  # fmt: skip
        for split, rows in windows.items():
            for name, values in (("window", rows.astype(np.int64)), ("logit", logits[split])):
                chunk = (min(16_384, max(1, len(values))), *values.shape[1:])
                file.create_dataset(
                    f"{split}/{name}", data=values, maxshape=(None, *values.shape[1:]), chunks=chunk, fletcher32=True
                )  # fmt: skip


def read_scores(path, index, weights_sha256=None):
    """Read ``scores.h5``; with ``weights_sha256`` only those of that model.

    Returns
    -------
    dict of split -> (window rows int64 (n,), logits float32 (n, targets))

    Raises
    ------
    ModelError
        Missing, damaged, or made from other shards or by another model.
    """
    path = Path(path)
    if not path.exists():
        raise ModelError(f"{path}: no scores; run 'anyecg predict' with the same config first")
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
            found = attributes.get("format"), int(attributes.get("version", -1))
            check_format(path, "anyecg-scores", *found, ModelError)
            if attributes["index_hash"] != index.hash:
                raise ModelError(f"{path}: made from other shards than those in {index.folder}; run 'anyecg predict'")
            if weights_sha256 is not None and attributes["weights_sha256"] != weights_sha256:
                raise ModelError(f"{path}: made by another model; run 'anyecg predict'")
            return {split: (file[split]["window"][...], file[split]["logit"][...]) for split in file}
    except (OSError, KeyError, ValueError, RuntimeError) as cause:
        raise ModelError(f"{path}: damaged ({cause}); run 'anyecg predict' again") from None
