"""The form of an index: what must stand in ``index.json`` and its tables, checked before anything is done with it."""

import io
import json
import math
import os
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError, model_validator

from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import read_document
from anyecg.loaders.shard_parse import CHUNK_WINDOWS, MAX_LEADS, MAX_SAMPLES, chunk_sizes, open_plain, scale_columns

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
_MAX_BYTES = 16 << 20
# Row numbers are int32.
_MAX_ROWS = 2**31

_Count = Annotated[int, Field(ge=0, le=2**48)]
_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Names = Json[list[str]]


class _Form(BaseModel):
    model_config = ConfigDict(strict=True)


class _Lengths(_Form):
    draws: _Count
    visits: _Count
    windows: _Count
    pairs: _Count


class _Shard(_Form):
    name: Annotated[str, Field(pattern="^shard-[0-9]{5,9}[.]h5$")]
    sha256: _Hash
    n_bytes: _Count
    split: Literal["train", "val", "test"]
    lengths: _Lengths
    horizons: Annotated[list[_Count], Field(min_length=3, max_length=3)]


class _Table(_Form):
    sha256: _Hash
    n_bytes: _Count
    shape: Annotated[list[_Count], Field(min_length=1, max_length=2)]


class _Head(_Form):
    """What must stand in ``index.json`` for the tables and shards to be read; the rest may be anything."""

    fs: Annotated[int, Field(ge=1, le=100_000)]
    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
    leads: Json[Annotated[list[str], Field(min_length=1, max_length=MAX_LEADS)]]
    targets: _Names
    components: _Names
    preset: str
    filter: Literal["none", "bitshuffle-lz4"]
    hash: str
    patients_in_two_splits: _Count
    counts: dict[str, _Count]
    shards: Annotated[list[_Shard], Field(min_length=1)]
    tables: dict[str, _Table]

    @model_validator(mode="after")
    def _together(self):
        if set(self.tables) != {*TABLES, "chunks"}:
            raise ValueError(f"tables {sorted(self.tables)}")
        for what in _Lengths.model_fields:
            if sum(getattr(shard.lengths, what) for shard in self.shards) >= _MAX_ROWS:
                raise ValueError(f"more than {_MAX_ROWS} {what}")
        if any(max(shard.horizons) > shard.lengths.pairs for shard in self.shards):
            raise ValueError("more pairs with a horizon than pairs")
        return self


def read_head(folder):
    """Read ``index.json``; every name, number and shape in it is checked, so that it leads nowhere else."""
    path = Path(folder) / "index.json"
    if path.is_symlink() or (path.exists() and not (path.is_file() and path.stat().st_size <= _MAX_BYTES)):
        raise ShardError(f"{path}: a link, no plain file, or over {_MAX_BYTES} bytes; refuse files from elsewhere")
    head = read_document(
        path, "anyecg-index", error=ShardError,
        missing=f"{folder} has no index: sharding did not finish. "
        "Run the same command again; finished shards are kept.",
    )  # fmt: skip
    try:
        _Head.model_validate(head)
    except ValidationError as cause:
        first = cause.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ShardError(f"{path}: damaged ({where}: {first['msg']}); run 'anyecg shard' again") from None
    return head


def table_path(folder, name):
    """Return the file of a table of the index."""
    return Path(folder) / f"index-{name}.npy"


def table_dtype(name):
    """Return the dtype of a table."""
    return np.dtype(np.int64 if name == "chunks" else TABLES[name][1])


def table_shapes(shards, n_targets, n_leads):
    """Return the shape of each table of some shards."""
    n_rows = {what: sum(shard["lengths"][what] for shard in shards) for what in shards[0]["lengths"]}
    shapes: dict[str, tuple[int, ...]] = {
        name: (n_rows[source.split("/")[0]],) for name, (source, *_) in TABLES.items()
    }
    shapes["draw_labels"] += (n_targets,)
    shapes["window_scale"] += scale_columns(n_leads)
    n_chunks = sum(-(-shard["lengths"]["windows"] // CHUNK_WINDOWS) for shard in shards)
    shapes["chunks"] = (n_chunks, len(CHUNK_COLUMNS))
    return shapes


def table_head(name, shape):
    """Return what stands before the values of a table in its NPY file."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": table_dtype(name).str, "fortran_order": False, "shape": shape}
    )  # fmt: skip
    return head.getvalue()


def map_tables(folder, head):
    """Map every table of an index into memory; each must be just what its shards make of it."""
    shapes = table_shapes(head["shards"], *(len(json.loads(head[what])) for what in ("targets", "leads")))
    tables = {name: _map_table(table_path(folder, name), name, shape) for name, shape in shapes.items()}
    sizes = chunk_sizes(head["filter"], len(json.loads(head["leads"])) * head["samples"])
    _check_chunks(np.asarray(tables["chunks"]), head["shards"], sizes, table_path(folder, "chunks"))
    return tables


def _map_table(path, name, shape):
    head, dtype = table_head(name, shape), table_dtype(name)
    n_bytes = len(head) + dtype.itemsize * math.prod(shape)
    with os.fdopen(open_plain(path), "rb") as file:
        if os.fstat(file.fileno()).st_size != n_bytes or file.read(len(head)) != head:
            raise ShardError(f"{path}: not {dtype} {shape} in {n_bytes} bytes; run 'anyecg shard' again")
        # As a plain array: parts of a memmap cost several times as much to make.
        return np.memmap(file, dtype, "r", len(head), shape).view(np.ndarray)


def _check_chunks(table, shards, sizes, path):
    """Refuse chunks that are not those of the shards, in order, each within its file."""
    shard, first, n_windows, offset, n_bytes, _ = table.T
    windows_S = np.array([entry["lengths"]["windows"] for entry in shards], np.int64)
    chunks_S = -(-windows_S // CHUNK_WINDOWS)
    of_shard = np.repeat(np.arange(len(shards)), chunks_S)
    within = np.arange(len(of_shard)) - (np.cumsum(chunks_S) - chunks_S)[of_shard]
    first_S = np.cumsum(windows_S) - windows_S
    ends = np.array([entry["n_bytes"] for entry in shards], np.int64)[of_shard]
    if not (
        np.array_equal(shard, of_shard)
        and np.array_equal(first, first_S[of_shard] + within * CHUNK_WINDOWS)
        and np.array_equal(n_windows, np.minimum(windows_S[of_shard] - within * CHUNK_WINDOWS, CHUNK_WINDOWS))
        and ((offset >= 0) & (n_bytes >= sizes[0]) & (n_bytes <= sizes[1]) & (offset <= ends - n_bytes)).all()
    ):
        raise ShardError(f"{path}: its chunks are not those of the shards; run 'anyecg shard' again")
