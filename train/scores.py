"""The file of scores: one row of outputs for each window, and for each draw of a head that joins windows."""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from anyecg.loaders.errors import ModelError
from anyecg.loaders.files import FORMATS, check_format, code_version, replacing
from anyecg.loaders.index_form import HORIZON_BIT
from anyecg.train.shared import Node

_CHUNK = 16_384


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


def write_scores(path, found, index, card, stage_hash):
    """Write ``scores.h5``: of "SPLIT/windows" or "SPLIT/draw_HORIZON" the rows and the outputs, a few at a time."""
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
            for key, values, kind in ((row_name, rows, np.int64), ("logit", outputs, np.float32)):
                chunk = (min(_CHUNK, max(1, len(rows))), *values.shape[1:])
                stored = file.create_dataset(
                    f"{where}/{key}", values.shape, kind, maxshape=(None, *values.shape[1:]), chunks=chunk,
                    fletcher32=True,
                )  # fmt: skip
                for start in range(0, len(rows), _CHUNK):
                    stored[start : start + _CHUNK] = values[start : start + _CHUNK]


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
