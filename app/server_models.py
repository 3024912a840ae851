"""The models of the page: those shipped, of run folders and imported; what they say of a recording, and why."""

import csv
import secrets
import threading
from collections import OrderedDict
from importlib.resources import files
from pathlib import Path

import numpy as np

from anyecg.app.server_records import NotThere
from anyecg.loaders.errors import AnyECGError, ModelError, RecordError
from anyecg.loaders.records import Record
from anyecg.loaders.windows import find_leads, store_leads

SHIPPED = "Rhythm of one lead (shipped)"
SHIPPED_TARGETS = {"N": "normal rhythm", "A": "atrial fibrillation", "O": "other rhythm", "~": "too noisy to tell"}
# A patch that is taken out of a window to see what the score loses; models that stay open.
PATCH_SECONDS = 0.2
_MOST_OPEN, _MOST_CSV_BYTES = 3, 1 << 30


def _newest(path):
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        # A better one has taken its place.
        return 0


def occluded(window_T, fs, patch_seconds=PATCH_SECONDS):
    """Return copies of a window, each with one patch, in all its leads, replaced by straight lines between its ends.

    Parameters
    ----------
    window_T : float32 array, shape (T,) or (leads, T)
    fs : int

    Returns
    -------
    float32 array, shape (patches, T) or (patches, leads, T)
    """
    width, n_samples = max(2, round(patch_seconds * fs)), window_T.shape[-1]
    starts = range(0, n_samples, width)
    copy_PT = np.repeat(window_T[None], len(starts), axis=0)
    for patch_T, first in zip(copy_PT, starts, strict=True):
        last = min(first + width, n_samples) - 1
        line = np.linspace(window_T[..., first], window_T[..., last], last + 1 - first, axis=-1)
        patch_T[..., first : last + 1] = line
    return copy_PT


class Models:
    """All models that can be chosen; at most three are kept open."""

    def __init__(self, private, runs=None):
        self._private, self._runs = private, runs
        self._paths: dict[str, tuple[str, Path]] = {}
        self._ids: dict[Path, str] = {}
        self._open: OrderedDict = OrderedDict()
        self._lock = threading.Lock()
        self._add(SHIPPED, Path(str(files("anyecg.app") / "cinc2017" / "model")))

    def _add(self, name, path):
        with self._lock:
            if path not in self._ids:
                self._ids[path] = secrets.token_hex(8)
                self._paths[self._ids[path]] = (name, path)
            return self._ids[path]

    def listed(self):
        """Return id, name and forms of every model: shipped, of runs, imported.

        A run that has not finished gives its best network so far, until a better one takes its place.
        """
        for run in sorted(self._runs.iterdir()) if self._runs is not None and self._runs.is_dir() else []:
            if (run / "model/card.json").exists():
                self._add(run.name, run / "model")
            elif best := sorted(run.glob("checkpoint/*/best-*.safetensors"), key=_newest):
                step = int(best[-1].stem.removeprefix("best-"))
                self._add(f"{run.name} (not finished, step {step})", best[-1])
        return [
            {"id": key, "name": name, "folder": path.is_dir(), "trainable": path.suffix != ".onnx"}
            for key, (name, path) in list(self._paths.items())
            if path.exists()
        ]

    def path(self, key):
        """Return where a model lies."""
        if key not in self._paths:
            raise NotThere("no such model; choose one again")
        return self._paths[key][1]

    def take_in(self, folder):
        """Check the model files of a folder, and list them; nothing in them is executed.

        JSON files beside them must be cards of these models, whatever their names: browsers rename downloads.

        Returns
        -------
        list of str
            Their ids.

        Raises
        ------
        ModelError
            Neither ONNX nor safetensors there, one that does not validate, or a card of another model.
        """
        from anyecg.train.onnx_file import is_card
        from anyecg.train.predict_files import open_lead_scorer

        found = [path for path in sorted(folder.rglob("*")) if path.suffix in (".onnx", ".safetensors")]
        if not found:
            raise ModelError("no model among these files; wanted .onnx or .safetensors that 'anyecg export' made")
        cards = [self._named(path, open_lead_scorer).card for path in found]
        for path in sorted(folder.rglob("*.json")):
            if not any(is_card(path, card) for card in cards):
                raise ModelError(
                    f"{path.name}: not the card of a model beside it; open the model alone, it holds its own"
                )
        return [self._add(path.name, path) for path in found]

    def _named(self, path, work):
        """Return ``work(path)``; its error names the file alone, not where the server keeps it."""
        try:
            return work(path)
        except AnyECGError as cause:
            raise ModelError(str(cause).replace(f"{path.parent}/", "")) from None

    def scorer(self, key):
        """Return a model, opened to score leads of recordings."""
        from anyecg.train.predict_files import open_lead_scorer

        path = self.path(key)
        with self._lock:
            if key not in self._open:
                self._open[key] = self._named(path, open_lead_scorer)
                while len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(key)
            return self._open[key]

    def describe(self, key):
        """Return what a model takes and gives, with the results of its own evaluation where its run has them."""
        card = self.scorer(key).card
        kept = (
            "model",
            "head",
            "targets",
            "leads",
            "fs",
            "preset",
            "join",
            "windows_per_sample",
            "n_parameters",
            "code_version",
            "from_weights",
        )
        found = {"id": key, **{name: card.get(name) for name in kept}, "results": self._results(key)}
        return found | ({"meanings": SHIPPED_TARGETS} if self._paths[key][0] == SHIPPED else {})

    def _results(self, key):
        """Return the rows of the run's results, by target; none for a model without them, or of another one.

        They are of what ``score`` gives of a whole recording: the head that reads its windows together, where the model
        has one, or their mean.
        """
        from anyecg.train.results import check_same_model

        run, card = self.path(key).parent, self.scorer(key).card
        try:
            check_same_model(run / "results.json", {"weights_sha256": "", **card})
            with (run / "results.csv").open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except (AnyECGError, OSError, csv.Error):
            return {}
        kept = ("n", "n_positive", "auroc", "auroc_low", "auroc_high", "threshold")
        # The first level of a target in the widest horizon stands for it.
        own = "draw-head" if card["join"] == "features" else "draw"
        ranked = sorted(rows, key=lambda row: (row["level"] != own, row["level"] != "draw", -int(row["horizon_min"])))
        found: dict = {}
        for row in ranked:
            found.setdefault(row["target"], {"level": row["level"], **{name: row[name] for name in kept}})
        return found

    def score(self, key, place, number, *, watch):
        """Score a recording in the leads that the model takes: each of its 10-s windows, and the whole.

        The lead ``number`` is for a model of any one lead; ``watch`` is told how far it is.

        Returns
        -------
        dict
            ``targets``, ``own`` (scores of the recording), ``start_s`` and ``scores`` of its windows; None where there
            is nothing to score.
        """
        from anyecg.train.predict_files import open_model_leads, score_record

        scorer = self.scorer(key)
        records = open_model_leads(scorer.card, place.root / place.file, place.root, number=number, **place.options)
        start_W, score_WC, own_C = score_record(scorer, records, watch=watch)
        return {
            "targets": scorer.card["targets"], "head": scorer.card["head"], "own": _plain(own_C),
            "start_s": start_W.tolist(), "scores": [_plain(score_C) for score_C in score_WC],
        }  # fmt: skip

    def saliency(self, key, place, number, start_s, target):
        """Say what of a window a score rests on, by occlusion.

        Returns
        -------
        dict
            ``start_s``, ``patch_s``, and ``fall``: by how much the window's log-odds of the target (or its value) fall
            when a patch of 0.2 s becomes a straight line.
        """
        from anyecg.train.heads import ranked_of
        from anyecg.train.predict_files import open_model_leads

        scorer = self.scorer(key)
        card = scorer.card
        if not 0 <= target < len(card["targets"]):
            raise NotThere("no such target")
        leads = open_model_leads(card, place.root / place.file, place.root, number=number, **place.options)
        parts = tuple(_part_of(record, start_s) for record in leads)
        found = find_leads(parts, pad_short=True)
        signal_WLT, scale_WL = store_leads(found, np.ones(1, bool), fs=card["fs"], preset=card["preset"])
        window_LT = signal_WLT[0] * scale_WL[0, :, None]
        if not window_LT.any():
            raise RecordError("this window is flat or has no samples; there is nothing to explain")
        batch_WLT = np.concatenate([window_LT[None], occluded(window_LT, card["fs"])]).astype(np.float32)
        ranked_W = ranked_of(scorer.outputs([batch_WLT])[0], card)[:, target]
        return {"start_s": start_s, "patch_s": PATCH_SECONDS, "fall": _plain(ranked_W[0] - ranked_W[1:])}

    def score_folder(self, key, root, options, *, watch):
        """Score all recordings below a folder, files of plain numbers by ``options``.

        Returns the path of the CSV, which the caller removes.
        """
        from anyecg.train.predict_files import predict_files

        out = self._private / f"{secrets.token_hex(8)}.csv"
        try:
            predict_files(self.path(key), root, out, watch=watch, **options)
            watch(1.0)
            if out.stat().st_size > _MOST_CSV_BYTES:
                raise ModelError("the CSV is larger than a browser takes; use 'anyecg predict'")
        except BaseException:
            out.unlink(missing_ok=True)
            raise
        finally:
            out.with_name(f"{out.name}.quarantine.csv").unlink(missing_ok=True)
        return out

    def export(self, key, form):
        """Return a model of a folder as one file of that form; "card" is what stands beside an ONNX file."""
        from anyecg.train.export import export_model
        from anyecg.train.onnx_file import card_path

        path = self.path(key)
        if form not in ("onnx", "card", "safetensors") or not path.is_dir():
            raise ModelError("wanted onnx, card or safetensors of a model that is not a single file already")
        made = "onnx" if form == "card" else form
        out = self._private / f"{secrets.token_hex(8)}.{made}"
        try:
            export_model(path, made, out)
            return (card_path(out) if form == "card" else out).read_bytes()
        finally:
            for file in (out, card_path(out)):
                file.unlink(missing_ok=True)


def _part_of(record, start_s):
    """Return ten seconds of a recording as a recording of their own."""
    first = min(max(0, round(start_s * record.fs)), record.n_samples - 1)
    n_samples = min(round(10 * record.fs), record.n_samples - first)

    def read(start, stop):
        return record.read(first + start, first + stop)

    return Record(record.name, record.fs, n_samples, record.leads, None, read)


def _plain(values):
    return [None if np.isnan(value) else round(float(value), 6) for value in values]
