"""The index of a folder of shards: written last, so its presence means complete; its tables are memory-mapped."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from anyecg.loaders.cohort import SPLITS
from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import digest, file_hash, read_document, replacing, write_document

log = logging.getLogger(__name__)

# Each table joins one set of all shards, row numbers made to count through the shards; dtype as stored.
TABLES = {
    "window_scale": ("windows/scale", np.float32, None),
    "window_visit": ("windows/visit", np.int32, "visits"),
    "window_start": ("windows/start", np.int64, None),
    "window_flags": ("windows/flags", np.uint8, None),
    "draw_labels": ("draws/labels", np.int8, None),
    "draw_time": ("draws/time", np.int64, None),
    "draw_visit": ("draws/visit", np.int32, "visits"),
    "pair_window": ("pairs/window", np.int32, "windows"),
    "pair_draw": ("pairs/draw", np.int32, "draws"),
    "pair_horizons": ("pairs/horizons", np.uint8, None),
    "visit_patient": ("visits/patient", np.uint64, None),
    "visit_visit": ("visits/visit", np.uint64, None),
    "visit_split": ("visits/split", np.int8, None),
}
CHUNK_COLUMNS = ("shard", "first_window", "n_windows", "offset", "n_bytes", "crc32")
HORIZON_BIT = {60: 1, 30: 2, 15: 4}


@dataclass(frozen=True)
class Index:
    """All shards of a folder as one set of tables; global rows count through the shards in order.

    Attributes
    ----------
    folder : Path
    head : dict
        Targets, preset, rate, hashes, counts, and one entry a shard.
    tables : dict of arrays
        See ``TABLES``; ``chunks`` has ``CHUNK_COLUMNS``, one row a chunk of signal, in order of windows.
    """

    folder: Path
    head: dict
    tables: dict = field(repr=False)
    _pairs: dict = field(default_factory=dict, repr=False)

    @property
    def targets(self):
        """Names of the targets, in the order of the labels."""
        return tuple(json.loads(self.head["targets"]))

    @property
    def leads(self):
        """Names of the leads of each window."""
        return tuple(json.loads(self.head["leads"]))

    @property
    def hash(self):
        """Hash of everything the shards hold."""
        return self.head["hash"]

    def windows_of(self, split):
        """Return the global rows of a split's windows, int64, ascending."""
        splits = np.asarray(self.tables["visit_split"])[self.tables["window_visit"]]
        return np.flatnonzero(splits == SPLITS.index(split))

    def pairs_of(self, split, horizon_min):
        """Return the numbers of a split's pairs with that horizon, int64, ascending."""
        if split not in SPLITS or horizon_min not in HORIZON_BIT:
            raise ValueError(
                f"split {split!r}, horizon {horizon_min!r}; wanted one of {SPLITS} and {list(HORIZON_BIT)}"
            )
        key = (split, horizon_min)
        if key not in self._pairs:
            visit = np.asarray(self.tables["window_visit"])[self.tables["pair_window"]]
            inside = np.asarray(self.tables["visit_split"])[visit] == SPLITS.index(split)
            inside &= (np.asarray(self.tables["pair_horizons"]) & HORIZON_BIT[horizon_min]) > 0
            self._pairs[key] = np.flatnonzero(inside)
        return self._pairs[key]


def _joined(folder, described):
    """Return the tables of all shards joined, with global row numbers."""
    parts: dict = {name: [] for name in TABLES}
    chunks = []
    base = {"windows": 0, "draws": 0, "visits": 0, "pairs": 0}
    for number, shard in enumerate(described):
        with h5py.File(folder / shard["name"], "r") as file:
            for name, (source, dtype, rows_of) in TABLES.items():
                parts[name].append((file[source][...] + (base[rows_of] if rows_of else 0)).astype(dtype))
        chunks += [(number, base["windows"] + first, *rest) for first, *rest in shard["chunks"]]
        for what, n in shard["lengths"].items():
            base[what] += n
    tables = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    tables["chunks"] = np.array(chunks, np.int64).reshape(-1, len(CHUNK_COLUMNS))
    return tables


def write_index(folder, described, head, *, may_overlap=False):
    """Write the tables of all shards, then ``index.json``.

    Parameters
    ----------
    described : list of dict
        What ``shards.describe_shard`` found in each shard, in order.
    head : dict
        What the windows mean (targets, preset, rate) and what was dropped.

    Raises
    ------
    ShardError
        A patient stands in two splits, unless ``may_overlap`` (split by visit).
    """
    folder = Path(folder)
    tables = _joined(folder, described)
    patient_split = np.unique(np.stack([tables["visit_patient"].view(np.int64), tables["visit_split"]]), axis=1)
    patients, n_splits = np.unique(patient_split[0], return_counts=True)
    n_overlapping = int((n_splits > 1).sum())
    if n_overlapping and not may_overlap:
        raise ShardError(f"{n_overlapping} patients stand in two splits; split by patient, then run 'anyecg run' again")
    if n_overlapping:
        log.warning("patients_in_two_splits=%d of=%d: split by visit", n_overlapping, len(patients))
    hashes = {}
    for name, table in tables.items():
        path = folder / f"index-{name}.npy"
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, table, allow_pickle=False)
        hashes[name] = {"sha256": file_hash(path), "n_bytes": path.stat().st_size, "shape": table.shape}
    keys = ("name", "sha256", "n_bytes", "split", "lengths")
    shards = [{key: shard[key] for key in keys} for shard in described]
    document = {
        **head,
        "patients_in_two_splits": n_overlapping,
        "shards": shards,
        "tables": hashes,
        "hash": digest([head["preset_hash"], head["target_hash"], hashes, [shard["sha256"] for shard in shards]]),
    }
    write_document(folder / "index.json", "anyecg-index", document)


def _read_head(folder):
    return read_document(
        Path(folder) / "index.json", "anyecg-index", error=ShardError,
        missing=f"{folder} has no index: sharding did not finish. "
        "Run the same command again; finished shards are kept.",
    )  # fmt: skip


def open_index(folder):
    """Open the index of a folder of shards.

    Returns
    -------
    Index

    Raises
    ------
    ShardError
        No index (sharding did not finish), another version, or a table that is missing or of a wrong shape.
    """
    folder = Path(folder)
    head = _read_head(folder)
    tables = {}
    for name in (*TABLES, "chunks"):
        path = folder / f"index-{name}.npy"
        try:
            tables[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as cause:
            raise ShardError(f"{path}: missing or damaged ({cause}); run 'anyecg shard' again") from None
        wanted = np.int64 if name == "chunks" else TABLES[name][1]
        shape = head["tables"][name]["shape"]
        if tables[name].dtype != wanted or list(tables[name].shape) != shape:
            raise ShardError(
                f"{path}: {tables[name].dtype} {tables[name].shape}, wanted {np.dtype(wanted)} {tuple(shape)}; "
                "run 'anyecg shard' again"
            )
    return Index(folder, head, tables)


def lost_files(folder):
    """Return the files of a complete folder that are gone or of another size, by name; contents are not read."""
    head = _read_head(folder)
    wanted = {shard["name"]: shard["n_bytes"] for shard in head["shards"]}
    wanted |= {f"index-{name}.npy": table["n_bytes"] for name, table in head["tables"].items()}
    return [
        name
        for name, n_bytes in wanted.items()
        if not (path := Path(folder) / name).is_file() or path.stat().st_size != n_bytes
    ]


def verify(folder):
    """Compare every shard and table of a folder with the hashes in its index.

    Returns
    -------
    list of str
        One line for each file that is missing or not the one written; empty when all is well.
    """
    head = _read_head(folder)
    wanted = {shard["name"]: shard["sha256"] for shard in head["shards"]}
    wanted |= {f"index-{name}.npy": table["sha256"] for name, table in head["tables"].items()}
    wrong = []
    for name, sha256 in wanted.items():
        path = Path(folder) / name
        if not path.is_file():
            wrong.append(f"{path}: missing; run 'anyecg shard' again")
        elif file_hash(path) != sha256:
            wrong.append(f"{path}: changed since it was written; remove it and run 'anyecg shard' again")
    return wrong
