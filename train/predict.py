"""Scores of shards: one logit vector for each distinct window of a split."""

import json
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from pydantic import Field

from anyecg.loaders.errors import AnyECGError, ModelError
from anyecg.loaders.files import FORMATS, check_format, code_version, replacing
from anyecg.loaders.index import Index
from anyecg.loaders.index_form import HORIZON_BIT
from anyecg.loaders.progress import Progress
from anyecg.loaders.ranks import share_error
from anyecg.loaders.settings import Section
from anyecg.train.batches import WindowBatches
from anyecg.train.model import check_target_table, open_model
from anyecg.train.shared import Node

BATCH = 256
_CHUNK = 16_384


class PredictConfig(Section):
    """Which model makes the scores."""

    model: str = Field(
        "", description="folder of a finished model to judge on this cohort; nothing is trained then; empty: train one"
    )


@dataclass(frozen=True)
class Scores:
    """What a model said of windows and draws.

    Attributes
    ----------
    card : dict
        Of the model.
    windows : dict of split -> (rows int64 (n,), output float32 (n, targets))
        Global rows, ascending. The outputs of one target lie side by side.
    draws : dict of (split, horizon in minutes) -> (rows int64 (n,), output float32 (n, targets))
        Of the head that joins windows; empty where a draw's output is the mean over its windows.
    """

    card: dict
    windows: dict
    draws: dict


def predict_shards(path, index: Index, model_folder, *, stream, comm, stage_hash, splits=("val", "test")):
    """Write ``scores.h5``: outputs for every window of some splits, and for every draw where the model joins windows.

    A draw is given to the joining head with all its windows of a horizon (``Network.joined_of_all``). Every rank takes
    whole visits, and keeps the features of the one it is at.

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
    found: dict[str, tuple] = {}
    n_done, error = 0, None
    with Progress("predict", sum(map(len, windows.values())), " windows", shown=comm.rank == 0) as progress:
        for split, rows in windows.items():
            outputs: dict[str, tuple] = {}
            try:
                visits = _Visits(index, split, rows, comm)
                outputs = _outputs(model, card, visits, stream, device, progress, comm.size)
            except (AnyECGError, RuntimeError) as cause:
                error = ModelError(f"predicting {split}: {cause}")
            share_error(comm, error)
            gathered = comm.gather(outputs)
            n_done += len(rows)
            progress.advance(n_done - progress.done)
            if comm.rank == 0:
                found |= {f"{split}/{name}": _joined_ranks([part[name] for part in gathered]) for name in outputs}
    if comm.rank == 0:
        write_scores(path, found, index, card, stage_hash)
    comm.barrier()


def _joined_ranks(parts):
    """Return rows and outputs of all ranks, by row."""
    rows, outputs = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(rows, kind="stable")
    return rows[order], outputs[order]


class _Visits:
    """The windows of a split, visit after visit, and the part of one rank: the visits that begin in its share of rows.

    Attributes
    ----------
    rows : int64 array
        The windows of the split, global rows.
    first : list of int
        Where each visit begins in ``rows``, and where the last one ends.
    mine : range
        Visits of this rank.
    read : slice
        What this rank reads of ``rows``: its visits, and what fills their first and last batch, so that a batch holds
        the same rows on any number of ranks.
    """

    def __init__(self, index, split, rows, comm):
        self.index, self.split = index, split
        visit = np.asarray(index.tables["window_visit"])[rows]
        order = np.argsort(visit, kind="stable")
        self.rows = rows[order]
        self.visit, first = np.unique(visit[order], return_index=True)
        share = [rank * len(rows) // comm.size for rank in (comm.rank, comm.rank + 1)]
        self.mine = range(*np.searchsorted(first, share).tolist())
        self.first = [*first.tolist(), len(rows)]
        self.start, self.stop = self.first[self.mine.start], self.first[self.mine.stop]
        self.read = slice(self.start // BATCH * BATCH, min(-(-self.stop // BATCH) * BATCH, len(rows)))
        if not self.mine:
            self.read = slice(0, 0)

    def batches(self, stream, device):
        """Return the windows that this rank reads, in batches; to be closed."""
        size = min(BATCH, len(self.rows))
        return WindowBatches(self.index, self.rows[self.read], stream, batch_size=size, device_id=device.index)

    def pairs(self, horizon_min):
        """Return (visit, draw, window), int64 each, of the pairs with a horizon, by visit, draw and time."""
        tables = self.index.tables
        pairs = self.index.pairs_of(self.split, horizon_min)
        window, draw = tables["pair_window"][pairs].astype(np.int64), tables["pair_draw"][pairs].astype(np.int64)
        visit = tables["draw_visit"][draw].astype(np.int64)
        order = np.lexsort([window, tables["window_start"][window], draw, visit])
        return visit[order], draw[order], window[order]


class _Draws:
    """The joining head's outputs for the draws of a rank's visits, each as soon as the features of its visit are there.

    Attributes
    ----------
    found : dict of str -> list of (draw, float32 output (targets,))
        "draw_60", "draw_30", "draw_15", those that the split stores.
    """

    def __init__(self, model, card, visits):
        self._model, self._n_each, self._visits = model, card["windows_per_sample"], visits
        horizons = [h for h in HORIZON_BIT if card["join"] == "features" and visits.index.n_pairs(visits.split, h)]
        self._pairs = {f"draw_{horizon_min}": visits.pairs(horizon_min) for horizon_min in horizons}
        self.found: dict[str, list] = {name: [] for name in self._pairs}
        self._left = visits.mine
        self._features, self._place = None, visits.read.start

    def add(self, feature_BF):
        """Take the features of the next batch."""
        if not self.found:
            return
        self._features = feature_BF if self._features is None else torch.cat([self._features, feature_BF])
        while self._left and (stop := self._visits.first[self._left[0] + 1]) <= self._place + len(self._features):
            start = self._visits.first[self._left[0]]
            rows = self._visits.rows[start:stop]
            self._visit(self._left[0], rows, self._features[start - self._place : stop - self._place])
            self._features, self._place, self._left = self._features[stop - self._place :], stop, self._left[1:]

    def _visit(self, number, rows, feature_WF):
        for name, (visit, draw, window) in self._pairs.items():
            here = slice(*np.searchsorted(visit, self._visits.visit[number] + np.arange(2)))
            draws, starts = np.unique(draw[here], return_index=True)
            places = np.split(np.searchsorted(rows, window[here]), starts[1:])
            self.found[name] += [
                (row, self._model.joined_of_all(feature_WF[of_draw], self._n_each).float().cpu().numpy())
                for row, of_draw in zip(draws, places, strict=False)
            ]


def _outputs(model, card, visits, stream, device, progress, n_ranks):
    """Return this rank's (rows, outputs): of the windows, and of the draws of each horizon."""
    draws = _Draws(model, card, visits)
    parts = [np.empty((0, len(card["targets"])), np.float32)]
    if visits.mine:
        with closing(visits.batches(stream, device)) as batches, torch.no_grad():
            for x_BLT in batches:
                feature_BF = model.features(x_BLT.to(device))
                parts.append(model.dense(feature_BF).float().cpu().numpy())
                draws.add(feature_BF)
                progress.advance(min(len(x_BLT) * n_ranks, progress.total - progress.done - 1))
    own = slice(visits.start - visits.read.start, visits.stop - visits.read.start) if visits.mine else slice(0, 0)
    outputs = {"windows": (visits.rows[visits.read][own], np.concatenate(parts)[own])}
    for name, found in draws.found.items():
        rows = np.array([draw for draw, _ in found], np.int64)
        outputs[name] = rows, np.stack([output for _, output in found]) if found else parts[0]
    return outputs


def write_scores(path, found, index, card, stage_hash):
    """Write ``scores.h5``: of "SPLIT/windows" or "SPLIT/draw_HORIZON" the rows and the outputs."""
    with replacing(path) as temporary, h5py.File(temporary, "w", libver=("v110", "v110")) as file:
        file.attrs.update(
            {
                "format": "anyecg-scores", "version": FORMATS["anyecg-scores"], "code_version": code_version(),
                "index_hash": index.hash, "weights_sha256": card["weights_sha256"], "stage_hash": stage_hash,
                "target_hash": card["target_hash"], "head": card["head"], "join": card["join"],
                "card": json.dumps(card),
            }
        )  # fmt: skip
        for name, (rows, outputs) in found.items():
            split, what = name.split("/")
            where, row_name = (split, "window") if what == "windows" else (name, "draw")
            for key, values in ((row_name, rows.astype(np.int64)), ("logit", outputs)):
                chunk = (min(_CHUNK, max(1, len(values))), *values.shape[1:])
                file.create_dataset(
                    f"{where}/{key}", data=values, maxshape=(None, *values.shape[1:]), chunks=chunk, fletcher32=True
                )  # fmt: skip


def index_of(path):
    """Return the hash of the index of the shards that scores were made from.

    Raises
    ------
    ModelError
        Missing, damaged, or no scores.
    """
    return _attributes(Path(path))["index_hash"]


@contextmanager
def _readable(path):
    """Say in one line what is wrong with scores that cannot be read."""
    try:
        yield
    except (OSError, KeyError, ValueError, RuntimeError) as cause:
        raise ModelError(f"{path}: damaged ({cause}); run 'anyecg predict' again") from None


def _attributes(path):
    if not path.exists():
        raise ModelError(f"{path}: no scores; run 'anyecg predict' with the same config first")
    with _readable(path):
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
        check_format(path, "anyecg-scores", attributes.get("format"), int(attributes.get("version", -1)), ModelError)
        return {name: attributes[name] for name in ("index_hash", "weights_sha256", "card")}


def check_scores(path, index, weights_sha256=None):
    """Refuse what ``read_scores`` would refuse at first sight; return the attributes."""
    attributes = _attributes(Path(path))
    if attributes["index_hash"] != index.hash:
        raise ModelError(f"{path}: made from other shards than those in {index.folder}; run 'anyecg predict'")
    if weights_sha256 is not None and attributes["weights_sha256"] != weights_sha256:
        raise ModelError(f"{path}: made by another model; run 'anyecg predict'")
    return attributes


def read_scores(path, index, weights_sha256=None, *, node=None):
    """Read ``scores.h5``; with ``weights_sha256`` only those of that model.

    Parameters
    ----------
    node : anyecg.train.shared.Node, optional
        The ranks of a node then hold one copy.

    Returns
    -------
    Scores

    Raises
    ------
    ModelError
        Missing, damaged, or made from other shards or by another model.
    """
    path, node = Path(path), node or Node()
    attributes = check_scores(path, index, weights_sha256)
    with _readable(path), h5py.File(path, "r") as file:
        return Scores(
            card=json.loads(attributes["card"]),
            windows={split: _shared(file[split], "window", node) for split in file},
            draws={
                (split, horizon_min): _shared(group, "draw", node)
                for split in file
                for horizon_min in HORIZON_BIT
                if (group := file[split].get(f"draw_{horizon_min}")) is not None
            },
        )


def _shared(group, name, node):
    """Return the rows and outputs of a group, one copy a node, the outputs of each target side by side."""
    path, logit = group.file.filename, group["logit"]

    def read():
        with _readable(path):
            return group[name][...].astype(np.int64)

    def turn(output_CW, rank, n_ranks):
        with _readable(path):
            for start in range(rank * _CHUNK, len(logit), n_ranks * _CHUNK):
                output_CW[:, start : start + _CHUNK] = logit[start : start + _CHUNK].T

    return node.made(read), node.filled(logit.shape[::-1], np.float32, turn).T
