"""Scores of shards: one logit vector for each distinct window of a split."""

import shutil
import time
from bisect import bisect_right
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from anyecg.loaders.errors import AnyECGError, ModelError
from anyecg.loaders.files import code_version, digest
from anyecg.loaders.index import Index
from anyecg.loaders.index_form import HORIZON_BIT
from anyecg.loaders.progress import SharedProgress
from anyecg.loaders.ranks import on_first, share_error
from anyecg.loaders.stop import Asked, share_stop
from anyecg.train.batches import WindowBatches
from anyecg.train.card import check_target_table
from anyecg.train.distributed import device_of
from anyecg.train.model import open_model
from anyecg.train.parts import Parts
from anyecg.train.scores import write_scores

BATCH = 256
# A rank keeps what is finished after so long, or when it is so much.
SECONDS_BETWEEN_FILES, MOST_BYTES = 20.0, 16 << 20


def predict_shards(path, index: Index, model_folder, *, stream, comm, stage_hash, splits=("val", "test")):
    """Write ``scores.h5``: outputs for every window of some splits, and for every draw where the model joins windows.

    A draw is given to the joining head with all its windows of a horizon (``Network.joined_of_all``). Every rank takes
    whole visits, and keeps the features of the one it is at. Finished visits are kept in files beside the checkpoint,
    so that the same call goes on after a kill; the scores are the same bytes on any number of ranks and after any kill.

    Raises
    ------
    ModelError
        The model is missing, or was made for another target table or preparation; the disk refuses a write.
    Stopped
        A signal asked for it; the same call goes on.
    """
    model, card = open_model(model_folder)
    check_target_table(model_folder, card, index)
    device = device_of(comm)
    model.to(device)
    parts = _parts_beside(path, digest([stage_hash, index.hash, card["weights_sha256"], code_version()]), comm)
    names = on_first(comm, parts.names)
    visits = [_Visits(index, split) for split in splits]
    left = {one: parts.left(names, one.split, len(one.visit)) for one in visits}
    n_left = sum(one.first[stop] - one.first[start] for one, runs in left.items() for start, stop in runs)
    n_all = sum(len(one.rows) for one in visits)
    progress = SharedProgress("predict", n_all, " windows", comm, lambda counts, _: "")
    if comm.rank == 0:
        progress.advance(n_all - n_left, {})
    mine = [(one, run) for one, runs in left.items() for run in one.dealt(runs, comm.rank, comm.size)]
    written, error, n_visits = [], None, sum(last - first for _, (first, last) in mine)
    with Asked().listening() as asked:
        try:
            for one, run in mine:
                for first, last, outputs in _outputs(model, card, one, run, stream, device, asked, progress):
                    written.append(parts.save(one.split, first, last, outputs))
                    n_visits -= last - first
        except (AnyECGError, RuntimeError, OSError) as cause:
            error = ModelError(f"predicting {one.split}: {cause}")
        progress.finish()
        share_error(comm, error)
        share_stop(comm, asked.number if n_visits else 0, "finished visits are kept")
    gathered = comm.gather(written)

    def finish():
        everything = sorted({*names, *(name for of_rank in gathered for name in of_rank)})
        none = np.empty(0, np.int64), np.empty((0, len(card["targets"])), np.float32)
        found: dict[str, tuple] = {}
        for one in visits:
            of_split = {"windows": none, **parts.gathered(everything, one.split)}
            if len(of_split["windows"][0]) != len(one.rows):
                raise ModelError(f"{path}: finished visits cannot be read back; run 'anyecg predict' again")
            found |= {f"{one.split}/{kind}": both for kind, both in of_split.items()}
        write_scores(path, found, index, card, stage_hash)
        parts.remove()

    on_first(comm, finish)


def _parts_beside(path, name, comm):
    """Return the finished visits of this prediction; those of others are removed."""
    folder = Path(path).parent / "checkpoint"
    if comm.rank == 0:
        for other in folder.glob("predict-*"):
            if other.name != f"predict-{name}":
                shutil.rmtree(other, ignore_errors=True)
    return Parts(folder / f"predict-{name}")


class _Visits:
    """The windows of a split, visit after visit.

    Attributes
    ----------
    rows : int64 array
        The windows of the split, global rows.
    visit : array
        The visits that have windows.
    first : list of int
        Where each visit begins in ``rows``, and where the last one ends.
    """

    def __init__(self, index, split):
        self.index, self.split, rows = index, split, index.windows_of(split)
        visit = np.asarray(index.tables["window_visit"])[rows]
        order = np.argsort(visit, kind="stable")
        self.rows = rows[order]
        self.visit, first = np.unique(visit[order], return_index=True)
        self.first = [*first.tolist(), len(rows)]

    def dealt(self, runs, rank, n_ranks):
        """Return a rank's part of runs of visits (first, last): the visits that begin in its share of their windows."""
        n_all, n_before, mine = sum(self.first[last] - self.first[first] for first, last in runs), 0, []
        share = [n * n_all // n_ranks for n in (rank, rank + 1)]
        for first, last in runs:
            begins = np.array(self.first[first:last]) - self.first[first] + n_before
            here = first + np.searchsorted(begins, share)
            mine += [tuple(here.tolist())] if here[0] < here[1] else []
            n_before += self.first[last] - self.first[first]
        return mine

    def read(self, first, last):
        """Return the slice of ``rows`` to read for some visits.

        It begins and ends with whole batches of the split, so that a batch holds the same rows whoever reads it.
        """
        return slice(
            self.first[first] // BATCH * BATCH, min(-(-self.first[last] // BATCH) * BATCH, len(self.rows))
        )  # fmt: skip

    def batches(self, rows, stream, device):
        """Return a slice of the windows in batches; to be closed."""
        size = min(BATCH, len(self.rows))
        return WindowBatches(self.index, self.rows[rows], stream, batch_size=size, device_id=device.index)

    def pairs(self, horizon_min):
        """Return (visit, draw, window), int64 each, of the pairs with a horizon, by visit, draw and time."""
        tables = self.index.tables
        pairs = self.index.pairs_of(self.split, horizon_min)
        window, draw = tables["pair_window"][pairs].astype(np.int64), tables["pair_draw"][pairs].astype(np.int64)
        visit = tables["draw_visit"][draw].astype(np.int64)
        order = np.lexsort([window, tables["window_start"][window], draw, visit])
        return visit[order], draw[order], window[order]


class _Draws:
    """The joining head's outputs for the draws of visits, each as soon as the features of its visit are there."""

    def __init__(self, model, card, visits, run):
        self._model, self._n_each, self._visits = model, card["windows_per_sample"], visits
        self._targets = len(card["targets"])
        horizons = [h for h in HORIZON_BIT if card["join"] == "features" and visits.index.n_pairs(visits.split, h)]
        self._pairs = {f"draw_{horizon_min}": visits.pairs(horizon_min) for horizon_min in horizons}
        self._found: dict[str, list] = {name: [] for name in self._pairs}
        self._features, self._place, self._left = None, visits.read(*run).start, range(*run)

    def add(self, feature_BF):
        """Take the features of the next batch."""
        if not self._found:
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
            self._found[name] += [
                (row, self._model.joined_of_all(feature_WF[of_draw], self._n_each).float().cpu().numpy())
                for row, of_draw in zip(draws, places, strict=False)
            ]

    def take(self):
        """Return a dict of "draw_60", "draw_30", "draw_15", those that the split stores -> (rows, outputs) since."""
        taken = {}
        for name, found in self._found.items():
            outputs = [output for _, output in found] or np.empty((0, self._targets), np.float32)
            taken[name] = np.array([draw for draw, _ in found], np.int64), np.asarray(outputs)
            found.clear()
        return taken


def _outputs(model, card, visits, run, stream, device, asked, progress):
    """Yield (first visit, last visit, outputs by kind) of a run of visits, whole visits whenever enough is there.

    A signal that ``asked`` heard ends it after the visits that are whole by then.
    """
    if asked.number:
        return
    first, last = run
    read, draws = visits.read(*run), _Draws(model, card, visits, run)
    kept, place, since = np.empty((0, len(card["targets"])), np.float32), read.start, time.monotonic()
    with closing(visits.batches(read, stream, device)) as batches, torch.no_grad():
        for x_BLT in batches:
            feature_BF = model.features(x_BLT.to(device))
            kept = np.concatenate([kept, model.dense(feature_BF).float().cpu().numpy()])
            draws.add(feature_BF)
            at = place + len(kept)
            progress.advance(_within(visits, run, at) - _within(visits, run, at - len(x_BLT)), {})
            is_due = time.monotonic() - since > SECONDS_BETWEEN_FILES or kept.nbytes > MOST_BYTES
            if not (is_due or asked.number or at == read.stop):
                continue
            done = bisect_right(visits.first, at, first, last + 1) - 1
            if done > first:
                start, stop = visits.first[first], visits.first[done]
                windows = visits.rows[start:stop], kept[start - place : stop - place]
                yield first, done, {"windows": windows, **draws.take()}
                kept, place, first, since = kept[stop - place :], stop, done, time.monotonic()
            if asked.number:
                return


def _within(visits, run, place):
    """Return a place among the windows, moved into those of a run of visits."""
    return min(max(place, visits.first[run[0]]), visits.first[run[1]])
