"""Heart rate and its variability of every window of some shards, worked out once by MPI ranks and kept in a file."""

import logging
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from anyecg.kernels.beats import FEATURES, MIN_FS, heart_features
from anyecg.loaders.errors import AnyECGError, ModelError
from anyecg.loaders.files import FORMATS, check_format, code_version, remove, replacing
from anyecg.loaders.index_form import CHUNK_COLUMNS
from anyecg.loaders.progress import SharedProgress
from anyecg.loaders.ranks import share_error
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.shard_parse import CHUNK_WINDOWS
from anyecg.loaders.splits import SPLITS
from anyecg.train.shared import Node

log = logging.getLogger(__name__)
_SETS = ("window", "features")
_RUN_CHUNKS = 2
_RUN_WINDOWS = _RUN_CHUNKS * CHUNK_WINDOWS


@dataclass(frozen=True)
class Heart:
    """What was found of the heart in the windows of an index.

    Attributes
    ----------
    windows : dict of split -> (rows int64 (n,), features float32 (n, 4))
        Global rows, ascending; ``anyecg.kernels.beats.FEATURES``, NaN where too few beats were found.
    lead : str
        In which lead beats were looked for: II where it is there, else the first.
    n_damaged : int
        Windows that could not be read; their features are NaN.
    """

    windows: dict
    lead: str
    n_damaged: int


def make_heart(path, index, *, comm):
    """Write ``heart.h5``, unless it is there, whole, and of these shards.

    Every rank calls this and reads its share of the chunks, each once and in order; the file is the same on any number
    of ranks. A damaged chunk is counted and logged, and its windows have no features. Below 100 Hz no window has any.

    Parameters
    ----------
    path : path
    index : anyecg.loaders.index.Index
    comm : MPI communicator

    Raises
    ------
    ShardError
        The table of chunks was changed since it was written.
    """
    path = Path(path)
    if not comm.bcast(comm.rank == 0 and _is_there(path, index)):
        found, error = None, None
        try:
            found = _features_of_rank(index, comm)
        except AnyECGError as cause:
            error = cause
        share_error(comm, error)
        parts = comm.gather(found)
        if comm.rank == 0:
            features, wrong = zip(*parts, strict=True)
            _write(path, index, np.concatenate(features), [text for texts in wrong for text in texts])
    comm.barrier()


def _is_there(path, index):
    try:
        read_heart(path, index)
    except AnyECGError:
        return False
    return True


def _features_of_rank(index, comm):
    """Return the features of this rank's windows, float32 (n, 4), and (windows, what is wrong) of each bad chunk."""
    n_windows = len(index.tables["window_visit"])
    bounds = [*np.asarray(index.tables["chunks"])[:, CHUNK_COLUMNS.index("first_window")].tolist(), n_windows]
    mine = [rank * (len(bounds) - 1) // comm.size for rank in (comm.rank, comm.rank + 1)]
    start, stop = (bounds[number] for number in mine)
    feature_WF = np.full((stop - start, len(FEATURES)), np.nan, np.float32)
    progress = SharedProgress("heart", n_windows, " windows", comm, lambda counts, _: f"damaged={counts['damaged']}")
    wrong: dict[int, str] = {}
    try:
        with closing(WindowReader(index, run_chunks=_RUN_CHUNKS, n_slots=4)) as reader:
            for first in range(start, stop, _RUN_WINDOWS):
                rows, then = (np.arange(at, min(at + _RUN_WINDOWS, stop)) for at in (first, first + _RUN_WINDOWS))
                signal_WLT, is_bad_W = reader.read_what_is_whole(rows, then=then)
                if index.head["fs"] >= MIN_FS:
                    feature_WF[rows - start] = heart_features(signal_WLT[:, index.rhythm_lead], index.head["fs"])
                feature_WF[rows[is_bad_W] - start] = np.nan
                progress.advance(len(rows), {"damaged": int(is_bad_W.sum())})
                # A run may reach into the next rank's share.
                wrong |= {number: text for number, text in reader.bad.items() if number in range(*mine)}
    finally:
        progress.finish()
    return feature_WF, [(bounds[number + 1] - bounds[number], text) for number, text in sorted(wrong.items())]


def _write(path, index, feature_WF, wrong):
    n_damaged = sum(n for n, _ in wrong)
    for _, text in wrong:
        log.warning("heart: %s", text)
    n_without = int(np.isnan(feature_WF[:, 0]).sum())
    log.info("heart windows=%d without_beats=%d damaged=%d", len(feature_WF), n_without - n_damaged, n_damaged)
    remove(*path.parent.glob(f".{path.name}.*.tmp"))
    with replacing(path) as temporary, h5py.File(temporary, "w", libver=("v110", "v110")) as file:
        file.attrs.update(
            {
                "format": "anyecg-heart", "version": FORMATS["anyecg-heart"], "code_version": code_version(),
                "index_hash": index.hash, "lead": index.leads[index.rhythm_lead], "n_damaged": n_damaged,
            }
        )  # fmt: skip
        for split in SPLITS:
            rows = index.windows_of(split)
            for name, values in zip(_SETS, (rows.astype(np.int64), feature_WF[rows]), strict=True):
                chunk = (min(16_384, max(1, len(values))), *values.shape[1:])
                file.create_dataset(
                    f"{split}/{name}", data=values, maxshape=(None, *values.shape[1:]), chunks=chunk, fletcher32=True
                )  # fmt: skip


def read_heart(path, index, *, node=None):
    """Read ``heart.h5``, with a ``Node`` one copy for all its ranks.

    Returns
    -------
    Heart

    Raises
    ------
    ModelError
        Missing, damaged, or made from other shards.
    """
    path = Path(path)
    again = "run 'anyecg evaluate' again"
    if not path.exists():
        raise ModelError(f"{path}: no features of the heart; {again}")
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
            form, version = attributes.get("format"), int(attributes.get("version", -1))
            check_format(path, "anyecg-heart", form, version, ModelError)
            node = node or Node()
            windows = {
                split: tuple(node.made(lambda group=file[split], name=name: group[name][...]) for name in _SETS)
                for split in SPLITS
            }
            heart = Heart(windows, str(attributes["lead"]), int(attributes["n_damaged"]))
            index_hash = attributes["index_hash"]
    except (OSError, KeyError, ValueError, RuntimeError) as cause:
        raise ModelError(f"{path}: damaged ({cause}); {again}") from None
    if index_hash != index.hash:
        raise ModelError(f"{path}: made from other shards than those in {index.folder}; {again}")
    return heart
