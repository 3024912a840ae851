"""The index of a folder of shards: written last, so its presence means complete; its tables are memory-mapped."""

import json
import logging
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import NewFile, digest, file_hash, replacing, write_document
from anyecg.loaders.index_form import HORIZON_BIT, TABLES, map_tables, read_head, table_head, table_path, table_shapes
from anyecg.loaders.lead_names import find_lead
from anyecg.loaders.shard_parse import opened
from anyecg.loaders.splits import SPLITS

log = logging.getLogger(__name__)


class ShardRows(NamedTuple):
    """The number of a shard, and which rows of the index's tables are its draws and pairs."""

    number: int
    draws: slice
    pairs: slice


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
    orders : OrderedDict
        Orders of epochs that were worked out for this index (``anyecg.loaders.stream``).
    """

    folder: Path
    head: dict
    tables: dict = field(repr=False)
    orders: OrderedDict = field(default_factory=OrderedDict, init=False, repr=False, compare=False)

    @property
    def targets(self):
        """Names of the targets, in the order of the labels."""
        return tuple(json.loads(self.head["targets"]))

    @property
    def leads(self):
        """Names of the leads of each window."""
        return tuple(json.loads(self.head["leads"]))

    @property
    def rhythm_lead(self):
        """Position of the lead in which beats are looked for and that is shown: II if there, else the first."""
        return (find_lead("II", self.leads) or [0])[0]

    def scale_of(self, windows):
        """Return the mV a step of windows, given as global rows, in each lead: float32 (windows, leads)."""
        return self.tables["window_scale"][windows].reshape(len(windows), len(self.leads))

    @property
    def components(self):
        """Names of the components whose values the shards hold."""
        return tuple(json.loads(self.head["components"]))

    def names_of(self, windows):
        """Return windows, given as global rows, as ``SHARD:ROW``."""
        stop_S = np.cumsum([shard["lengths"]["windows"] for shard in self.head["shards"]])
        shard_W = np.searchsorted(stop_S, windows, side="right")
        first_S = stop_S - [shard["lengths"]["windows"] for shard in self.head["shards"]]
        return [
            f"{self.head['shards'][shard]['name']}:{row}"
            for shard, row in zip(shard_W.tolist(), (windows - first_S[shard_W]).tolist(), strict=True)
        ]

    @property
    def hash(self):
        """Hash of everything the shards hold."""
        return self.head["hash"]

    def windows_of(self, split):
        """Return the global rows of a split's windows, int64, ascending."""
        splits = np.asarray(self.tables["visit_split"])[self.tables["window_visit"]]
        return np.flatnonzero(splits == SPLITS.index(split))

    def shards_of(self, split):
        """Return the shards of a split as ``ShardRows``, in order."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r}; wanted one of {SPLITS}")
        n_SL = np.array([[shard["lengths"][what] for what in ("draws", "pairs")] for shard in self.head["shards"]])
        stop_SL = np.cumsum(n_SL, axis=0)
        return [
            ShardRows(number, *(slice(stop - n, stop) for n, stop in zip(n_SL[number].tolist(), row, strict=True)))
            for number, (row, shard) in enumerate(zip(stop_SL.tolist(), self.head["shards"], strict=True))
            if shard["split"] == split
        ]

    def n_pairs(self, split, horizon_min):
        """Return how many pairs a split and horizon have."""
        if horizon_min not in HORIZON_BIT:
            raise ValueError(f"horizon {horizon_min!r}; wanted one of {list(HORIZON_BIT)}")
        column = list(HORIZON_BIT).index(horizon_min)
        return sum(self.head["shards"][shard.number]["horizons"][column] for shard in self.shards_of(split))

    def pairs_of(self, split, horizon_min):
        """Return the numbers of a split's pairs with that horizon, int64, ascending."""
        n_wanted = self.n_pairs(split, horizon_min)
        found = np.concatenate([
            np.empty(0, np.int64),
            *(
                shard.pairs.start + np.flatnonzero(self.tables["pair_horizons"][shard.pairs] & HORIZON_BIT[horizon_min])
                for shard in self.shards_of(split)
            ),
        ])  # fmt: skip
        if len(found) != n_wanted:
            raise ShardError(
                f"{self.folder}: {len(found)} pairs of {split} have {horizon_min} min, the index says {n_wanted}; "
                "run 'anyecg shard' again"
            )
        return found


def _write_tables(folder, described, n_targets, n_leads):
    """Join the tables of all shards, one shard after the other, row numbers made global; return each table's shape."""
    shapes = table_shapes(described, n_targets, n_leads)
    base = dict.fromkeys(described[0]["lengths"], 0)
    with ExitStack() as stack:
        files = {}
        for name, shape in shapes.items():
            temporary = stack.enter_context(replacing(table_path(folder, name)))
            files[name] = stack.enter_context(NewFile(temporary))
            files[name].write(table_head(name, shape))
        for number, shard in enumerate(described):
            with opened(folder / shard["name"]) as (file, _):
                for name, (source, dtype, rows_of) in TABLES.items():
                    rows = file[source][...] + (base[rows_of] if rows_of else 0)
                    files[name].write(rows.astype(dtype).tobytes())
            chunks = [(number, base["windows"] + first, *rest) for first, *rest in shard["chunks"]]
            files["chunks"].write(np.array(chunks, np.int64).tobytes())
            for what in base:
                base[what] += shard["lengths"][what]
    return shapes


def count_overlapping(folder):
    """Return how many patients of an index stand in more than one split."""
    patient, split = (np.load(table_path(folder, f"visit_{name}"), allow_pickle=False) for name in ("patient", "split"))
    pairs = np.unique(np.stack([patient.view(np.int64), split]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


def write_index(folder, described, head, *, may_overlap=False):
    """Write the tables of all shards, then ``index.json``; the memory taken is that of one shard's tables.

    Parameters
    ----------
    described : list of dict
        What ``describe_shard`` found in each shard, in order.
    head : dict
        What was counted and from which cohort.

    Raises
    ------
    ShardError
        A patient stands in two splits, unless ``may_overlap`` (split by visit); shards of unlike meaning.
    """
    folder = Path(folder)
    meaning = described[0]["attributes"]
    for shard in described:
        if shard["attributes"] != meaning:
            raise ShardError(
                f"{folder / shard['name']}: another preset, rate or target table than {described[0]['name']}"
            )
    shapes = _write_tables(folder, described, *(len(json.loads(meaning[what])) for what in ("targets", "leads")))
    n_overlapping = count_overlapping(folder)
    if n_overlapping and not may_overlap:
        raise ShardError(f"{n_overlapping} patients stand in two splits; split by patient, then run 'anyecg run' again")
    if n_overlapping:
        log.warning("patients_in_two_splits=%d: split by visit", n_overlapping)
    hashes = {
        name: {"sha256": file_hash(path), "n_bytes": path.stat().st_size, "shape": shape}
        for name, shape in shapes.items()
        if (path := table_path(folder, name))
    }
    keys = ("name", "sha256", "n_bytes", "split", "lengths", "horizons")
    shards = [{key: shard[key] for key in keys} for shard in described]
    document = {
        **{key: value for key, value in meaning.items() if key not in ("format", "version")},
        **head,
        "patients_in_two_splits": n_overlapping,
        "shards": shards,
        "tables": hashes,
        "hash": digest([meaning["preset_hash"], meaning["target_hash"], hashes, [shard["sha256"] for shard in shards]]),
    }
    write_document(folder / "index.json", "anyecg-index", document)


def open_index(folder):
    """Open the index of a folder of shards.

    Returns
    -------
    Index

    Raises
    ------
    ShardError
        No index (sharding did not finish), another version, or a table that is missing or not of its form.
    """
    folder = Path(folder)
    head = read_head(folder)
    return Index(folder, head, map_tables(folder, head))


def lost_files(folder):
    """Return the files of a complete folder that are gone or of another size, by name; contents are not read."""
    head = read_head(folder)
    wanted = {shard["name"]: shard["n_bytes"] for shard in head["shards"]}
    wanted |= {f"index-{name}.npy": table["n_bytes"] for name, table in head["tables"].items()}
    return [
        name
        for name, n_bytes in wanted.items()
        if not (path := Path(folder) / name).is_file() or path.stat().st_size != n_bytes
    ]
