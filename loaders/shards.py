"""Write shards: windows, draws and pairs of whole visits in one HDF5 file each, by MPI ranks, restartable."""

import csv
import io
import json
import logging
import zlib
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import polars as pl
from pydantic import Field

from anyecg.kernels.prepare import prepare, preset_hash
from anyecg.kernels.resample import resample
from anyecg.kernels.segment import DROPPED, FLAG_NAMES, GAP_FILLED, PADDED, grid, quality, quantise, stretches
from anyecg.loaders.cohort import SPLITS
from anyecg.loaders.errors import AnyECGError, RecordError, ShardError
from anyecg.loaders.files import FORMATS, check_format, code_version, digest, file_hash, replacing, write_text
from anyecg.loaders.index import write_index
from anyecg.loaders.progress import Progress
from anyecg.loaders.ranks import share_error
from anyecg.loaders.records import open_record
from anyecg.loaders.settings import Section

log = logging.getLogger(__name__)
SECONDS = 10
CHUNK_WINDOWS = 64
ALL_HORIZONS = 0b111
SETS = {
    "windows/scale": np.float32,
    "windows/visit": np.int32,
    "windows/start": np.int64,
    "windows/flags": np.uint8,
    "draws/labels": np.int8,
    "draws/values": np.float32,
    "draws/time": np.int64,
    "draws/visit": np.int32,
    "pairs/window": np.int32,
    "pairs/draw": np.int32,
    "pairs/offset": np.float32,
    "pairs/horizons": np.uint8,
    "visits/patient": np.uint64,
    "visits/visit": np.uint64,
    "visits/split": np.int8,
    "visits/age": np.float32,
    "visits/sex": np.int8,
}


class ShardConfig(Section):
    """How recordings become windows, and windows shards."""

    preset: str = Field(
        "ecgfounder",
        pattern="^(ecgfounder|ecgfounder-paper|none)$",
        description="filters of each window: ecgfounder, ecgfounder-paper or none",
    )
    fs: int = Field(500, ge=101, le=10_000, description="sampling rate of the stored windows in Hz")
    lead: str = Field("", description="name of the lead to take; empty for the first")
    pad_short: bool = Field(False, description="zero-pad recordings shorter than a window instead of dropping them")
    windows_per_shard: int = Field(50_000, ge=1, description="about how many windows a shard holds (10 kB each)")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="stop when more than this share of records is bad")
    ranks: int = Field(2, ge=1, description="MPI ranks that shard, started on this machine")


def plan(cohort, config):
    """Return the visit rows of each shard, by split and pseudonymous key: a function of cohort and config alone."""
    seconds = np.zeros(cohort.visits.height)
    lengths = (cohort.records["n_samples"] / cohort.records["fs"]).to_numpy()
    np.add.at(seconds, cohort.records["visit_row"].to_numpy(), lengths)
    keys, splits = cohort.visits["visit"].to_numpy(), cohort.visits["split"].to_numpy()
    shards = []
    for split in range(len(SPLITS)):
        rows = np.flatnonzero(splits == split)
        rows = rows[np.argsort(keys[rows], kind="stable")]
        n_before = np.concatenate([[0], np.cumsum(seconds[rows] // SECONDS)[:-1]])
        shard_of = n_before // config.windows_per_shard
        shards += [rows[shard_of == number] for number in np.unique(shard_of)]
    return shards


def _pad(stretch, n):
    return np.concatenate([stretch, np.zeros(n - len(stretch), np.float32)])


def cut_record(record, config, *, keep_all=False):
    """Cut one recording into stored windows.

    Parameters
    ----------
    record : anyecg.loaders.records.Record
    config : ShardConfig
    keep_all : bool
        Drop no window but flag it, and pad a short recording (prediction).

    Returns
    -------
    (signal_WT int16, scale_W, start_W in seconds, flags_W uint8, counts)
        ``counts`` has windows cut, windows kept, and windows dropped by reason.
    """
    n_out = SECONDS * config.fs
    filled, bounds, was_filled = stretches(record.read(), fs=record.fs)
    lengths = [stop - start for start, stop in bounds]
    padded = bool(lengths) and max(lengths) < SECONDS * record.fs and (config.pad_short or keep_all)
    if padded:
        bounds = bounds[[int(np.argmax(lengths))]]
    counts: Counter = Counter()
    parts = []
    for start, stop in bounds:
        raw = filled[start:stop]
        starts_in = np.zeros(1, np.int64) if padded else grid(len(raw), fs=record.fs, seconds=SECONDS)
        if not len(starts_in):
            continue
        n_in = int(SECONDS * record.fs)
        raw_WT = raw[None] if padded else np.stack([raw[s : s + n_in] for s in starts_in])
        flags_W = quality(raw_WT, fs=record.fs)
        flags_W[[was_filled[start + s : start + s + n_in].any() for s in starts_in]] |= GAP_FILLED
        counts["windows cut"] += len(flags_W)
        good = np.ones(len(flags_W), bool) if keep_all else (flags_W & DROPPED) == 0
        for flags in flags_W[~good]:
            reason = next(name for flag, name in FLAG_NAMES.items() if flags & flag & DROPPED)
            counts[f"windows dropped: {reason}"] += 1
        if not good.any():
            continue
        rate_T = resample(raw, fs_in=record.fs, fs_out=config.fs)
        grid_out = grid(len(rate_T), fs=config.fs, seconds=SECONDS)[: len(starts_in)]
        if padded:
            enough = len(rate_T) >= config.fs
            window_WT = prepare(rate_T[None], fs=config.fs, preset=config.preset if enough else "none", zscore=False)
            window_WT = _pad(window_WT[0], n_out)[None]
            flags_W |= PADDED
        else:
            window_WT = np.stack([rate_T[s : s + n_out] for s in grid_out[good]])
            window_WT = prepare(window_WT, fs=config.fs, preset=config.preset, zscore=False)
        parts.append((*quantise(window_WT), (start + starts_in[good]) / record.fs, flags_W[good]))
    counts["windows kept"] = sum(len(part[1]) for part in parts)
    if not parts:
        empty = np.empty(0)
        return np.empty((0, n_out), np.int16), empty.astype(np.float32), empty, empty.astype(np.uint8), counts
    signal_WT, scale_W, start_W, flags_W = (np.concatenate(column) for column in zip(*parts, strict=True))
    return signal_WT, scale_W, start_W, flags_W, counts


def _collect(cohort, rows, config):
    """Return the sets of one shard, its counts and its quarantine rows."""
    visits = cohort.visits[rows]
    records = cohort.records.filter(pl.col("visit_row").is_in(rows.tolist()))
    draws = cohort.draws.filter(pl.col("visit_row").is_in(rows.tolist()))
    local = {int(row): number for number, row in enumerate(rows)}
    counts: Counter = Counter()
    quarantine: list[tuple[str, str]] = []
    signals, columns = [], []
    by_visit = records.partition_by("visit_row", as_dict=True)
    for row in rows:
        for path, start in by_visit[(row,)].select("path", "start").iter_rows():
            counts["records"] += 1
            try:
                record = open_record(cohort.root / path, lead=config.lead or None, root=cohort.root)
                signal_WT, scale_W, start_W, flags_W, found = cut_record(record, config)
            except RecordError as cause:
                counts["records dropped: unreadable"] += 1
                quarantine.append((path, f"unreadable: {cause}"))
                continue
            counts.update(found)
            if not len(scale_W):
                reason = "every window dropped" if found["windows cut"] else "shorter than a window"
                counts[f"records dropped: {reason}"] += 1
                quarantine.append((path, reason))
                continue
            counts["records kept"] += 1
            signals.append(signal_WT)
            start_us = start + np.round(start_W * 1e6).astype(np.int64)
            columns.append((scale_W, np.full(len(scale_W), local[int(row)], np.int32), start_us, flags_W))
    n_samples = SECONDS * config.fs
    sets = {name: np.empty(0, dtype) for name, dtype in SETS.items()}
    sets["windows/signal"] = np.concatenate([np.empty((0, n_samples), np.int16), *signals])[:, None, :]
    if columns:
        names = ("windows/scale", "windows/visit", "windows/start", "windows/flags")
        sets.update(zip(names, (np.concatenate(column) for column in zip(*columns, strict=True)), strict=True))
    for flag, what in FLAG_NAMES.items():
        n_flagged = int(((sets["windows/flags"] & flag) > 0).sum())
        if n_flagged:
            counts[f"windows kept but flagged: {what}"] = n_flagged
    draws = draws.with_columns(pl.col("visit_row").replace_strict(local, return_dtype=pl.Int32).alias("local"))
    draws = draws.sort("local", "time", maintain_order=True)
    sets["draws/labels"] = draws.select(cohort.targets).to_numpy().astype(np.int8).reshape(-1, len(cohort.targets))
    sets["draws/values"] = np.empty((draws.height, 0), np.float32)
    sets["draws/time"], sets["draws/visit"] = draws["time"].to_numpy(), draws["local"].to_numpy()
    # A folder's record is its own draw: every window of the visit is a pair with every horizon.
    window, draw = np.nonzero(sets["windows/visit"][:, None] == sets["draws/visit"][None, :])
    sets["pairs/window"], sets["pairs/draw"] = window, draw
    sets["pairs/offset"] = (sets["windows/start"][window] - sets["draws/time"][draw]) / 1e6
    sets["pairs/horizons"] = np.full(len(window), ALL_HORIZONS)
    for name in ("patient", "visit", "split", "age", "sex"):
        sets[f"visits/{name}"] = visits[name].to_numpy()
    sets = {name: values.astype(SETS.get(name, np.int16), copy=False) for name, values in sets.items()}
    counts.update({name: len(sets[f"{name}/visit"]) for name in ("windows", "draws", "visits")})
    counts["pairs"] = len(window)
    return sets, counts, quarantine


def shard_attributes(cohort_targets, config, split, plan_hash):
    """Return the attributes of a shard: what it means, never where or by whom it was made."""
    return {
        "format": "anyecg-shard",
        "version": FORMATS["anyecg-shard"],
        "code_version": code_version(),
        "fs": config.fs,
        "samples": SECONDS * config.fs,
        "leads": json.dumps([config.lead or "first"]),
        "preset": config.preset,
        "preset_hash": preset_hash(config.preset, config.fs),
        "targets": json.dumps(list(cohort_targets)),
        "target_hash": digest(list(cohort_targets)),
        "split": SPLITS[split],
        "plan_hash": plan_hash,
    }


def _write_shard(path, sets, attributes, counts):
    with replacing(path) as temporary:
        with h5py.File(temporary, "w", libver=("v110", "v110")) as file:
            file.attrs.update(attributes)
            file.attrs["counts"] = json.dumps(counts, sort_keys=True)
            for name, values in sorted(sets.items()):
                n_rows = CHUNK_WINDOWS if name == "windows/signal" else 16_384
                file.create_dataset(
                    name, data=values, maxshape=(None,) * values.ndim, fletcher32=True,
                    chunks=(n_rows, *(max(1, n) for n in values.shape[1:])),
                )  # fmt: skip
        describe_shard(temporary)


def describe_shard(path):
    """Read a whole shard, every checksum verified, and describe it for the index.

    Raises
    ------
    ShardError
        Damaged, another version, a set that is missing, an external link or storage, an unknown filter.
    """
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
            check_format(path, "anyecg-shard", attributes.get("format"), int(attributes.get("version", -1)), ShardError)
            lengths = {name: _check_set(file, name, path) for name in (*SETS, "windows/signal")}
            signal = file["windows/signal"]
            chunks = []
            for number in range(signal.id.get_num_chunks()):
                info = signal.id.get_chunk_info(number)
                stored = signal.id.read_direct_chunk(info.chunk_offset)[1]
                n_rows = min(CHUNK_WINDOWS, len(signal) - info.chunk_offset[0])
                chunks.append((info.chunk_offset[0], n_rows, info.byte_offset, info.size, zlib.crc32(stored)))
    except (OSError, KeyError, ValueError, RuntimeError) as cause:
        raise ShardError(f"{path}: damaged ({cause}); remove it and run 'anyecg shard' again") from None
    return {
        "name": Path(path).name,
        "sha256": file_hash(path),
        "n_bytes": Path(path).stat().st_size,
        "split": attributes["split"],
        "plan_hash": attributes["plan_hash"],
        "counts": json.loads(attributes["counts"]),
        "chunks": sorted(chunks),
        "lengths": {name: lengths[f"{name}/visit"] for name in ("windows", "draws", "visits")}
        | {"pairs": lengths["pairs/window"]},
    }


def _check_set(file, name, path):
    """Refuse a set that is not stored in the file itself as this code stores it; read it, return its length."""
    link = file.get(name, getlink=True)
    dataset = file[name]
    wanted = np.dtype(SETS.get(name, np.int16))
    n_filters = dataset.id.get_create_plist().get_nfilters()
    if not isinstance(link, h5py.HardLink) or dataset.file.id != file.id or dataset.external:
        raise ShardError(f"{path}: {name} is not stored in the file itself; refuse files from elsewhere")
    if dataset.dtype != wanted or not dataset.fletcher32 or n_filters != 1:
        raise ShardError(f"{path}: {name} has type {dataset.dtype} or other filters; wanted {wanted} with Fletcher32")
    dataset[...]
    return len(dataset)


def _make_shard(folder, number, rows, cohort, config, plan_hash):
    path = folder / f"shard-{number:05d}.h5"
    if path.exists():
        try:
            kept = describe_shard(path)
            if kept["plan_hash"] == plan_hash:
                log.info("kept shard=%d", number)
                return kept
        except AnyECGError as cause:
            log.warning("made again shard=%d reason=%s", number, cause)
    sets, counts, quarantine = _collect(cohort, rows, config)
    split = int(cohort.visits["split"][int(rows[0])])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(quarantine)
    write_text(folder / f"shard-{number:05d}.quarantine.csv", text.getvalue())
    _write_shard(path, sets, shard_attributes(cohort.targets, config, split, plan_hash), counts)
    log.info("wrote shard=%d windows=%d", number, counts["windows"])
    return describe_shard(path)


def _remove_temporaries(folder):
    """Remove what a killed run left behind; only files whose process is gone can be seen here."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_shards(folder, cohort, config, comm, *, stage_hash):
    """Write every shard of the plan over the ranks of ``comm``, then the index.

    Finished shards of the same plan are kept, so the same command continues after a kill. Same cohort and config give
    the same bytes on any number of ranks.

    Raises
    ------
    ShardError
        More than ``max_bad_fraction`` of the records are bad, or the disk refuses a write.
    """
    folder = Path(folder)
    if comm.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_temporaries(folder)
        (folder / "index.json").unlink(missing_ok=True)
    comm.barrier()
    shards = plan(cohort, config)
    plan_hash = digest([cohort.hash, config.identity("ranks", "max_bad_fraction"), FORMATS["anyecg-shard"]])
    described, error = {}, None
    with Progress("shard", len(shards), " shards", shown=comm.rank == 0) as progress:
        try:
            for number in range(comm.rank, len(shards), comm.size):
                described[number] = _make_shard(folder, number, shards[number], cohort, config, plan_hash)
                # Other ranks go at about the same pace; the bar ends exact because the last step is counted below.
                progress.advance(min(comm.size, len(shards) - progress.done))
        except AnyECGError as cause:
            error = cause
        except OSError as cause:
            error = ShardError(f"{folder}: {cause}; free space or mend the disk, then run again")
        share_error(comm, error)
    gathered = comm.gather(described)
    error = None
    if comm.rank == 0:
        try:
            _finish(folder, cohort, config, {n: d for part in gathered for n, d in part.items()}, stage_hash)
        except AnyECGError as cause:
            error = cause
    share_error(comm, error)


def _finish(folder, cohort, config, described, stage_hash):
    """Check the count of records, write the quarantine table and the index."""
    counts: Counter = Counter()
    lines = [["record", "reason"], *cohort.quarantine.iter_rows()]
    for number in sorted(described):
        counts.update(described[number]["counts"])
        with (folder / f"shard-{number:05d}.quarantine.csv").open(newline="", encoding="utf-8") as file:
            lines += list(csv.reader(file))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_text(folder / "quarantine.csv", text.getvalue())
    n_bad = counts["records dropped: unreadable"]
    if n_bad > config.max_bad_fraction * counts["records"]:
        raise ShardError(
            f"{n_bad} of {counts['records']} records are unreadable, more than max_bad_fraction "
            f"{config.max_bad_fraction}; see {folder / 'quarantine.csv'}"
        )
    if not counts["windows"]:
        raise ShardError(f"no window was kept of {counts['records']} records; see {folder / 'quarantine.csv'}")
    dropped = sum(n for what, n in counts.items() if what.startswith("records dropped"))
    assert counts["records"] == cohort.records.height == counts["records kept"] + dropped
    attributes = shard_attributes(cohort.targets, config, 0, "")
    del attributes["split"], attributes["plan_hash"], attributes["format"], attributes["version"]
    head = {**attributes, "stage_hash": stage_hash, "cohort_hash": cohort.hash, "counts": dict(sorted(counts.items()))}
    write_index(folder, [described[number] for number in sorted(described)], head)
