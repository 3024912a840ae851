"""Write shards: windows, draws and pairs of whole visits in one HDF5 file each, by MPI ranks, restartable."""

import csv
import json
import logging
import zlib
from collections import Counter
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import polars as pl
from pydantic import Field

from anyecg.kernels.prepare import preset_hash
from anyecg.kernels.segment import DROPPED, FLAG_NAMES
from anyecg.loaders.cohort import SPLITS
from anyecg.loaders.errors import AnyECGError, RecordError, ShardError
from anyecg.loaders.files import FORMATS, check_format, code_version, digest, file_hash, replacing, write_quarantine
from anyecg.loaders.index import HORIZON_BIT, write_index
from anyecg.loaders.pairs import pair_windows
from anyecg.loaders.progress import Progress
from anyecg.loaders.ranks import share_error
from anyecg.loaders.records import open_record
from anyecg.loaders.settings import Section
from anyecg.loaders.windows import SECONDS, drop_reasons, find_windows, store_windows

log = logging.getLogger(__name__)
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
    train_horizon_min: Literal[60, 30, 15] = Field(
        60, description="horizon whose windows the train split stores, in minutes; val and test store all three"
    )
    windows_per_draw: int = Field(200, ge=1, description="windows sampled per draw and horizon, at most")
    before_only: bool = Field(False, description="take only windows that end before the draw")
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
        if not len(rows):
            continue
        rows = rows[np.argsort(keys[rows], kind="stable")]
        n_before = np.concatenate([[0], np.cumsum(seconds[rows] // SECONDS)[:-1]])
        shard_of = n_before // config.windows_per_shard
        shards += [rows[shard_of == number] for number in np.unique(shard_of)]
    return shards


def _read_visit(records, cohort, config, reach, counts, quarantine):
    """Return [(FoundWindows, start in us)] of the readable records of a visit that come near a draw."""
    found = []
    for path, fs, start, n_samples in records.select("path", "fs", "start", "n_samples").iter_rows():
        counts["records"] += 1
        if reach is not None and not any(
            start < last and start + n_samples / fs * 1e6 > first for first, last in reach
        ):
            counts["records dropped: near no draw"] += 1
            continue
        try:
            record = open_record(cohort.root / path, lead=config.lead or None, root=cohort.root)
            windows = find_windows(record, pad_short=config.pad_short)
        except RecordError as cause:
            counts["records dropped: unreadable"] += 1
            quarantine.append((path, f"unreadable: {cause}"))
            continue
        counts["windows cut"] += len(windows.flags_W)
        counts.update(drop_reasons(windows.flags_W))
        if not ((windows.flags_W & DROPPED) == 0).any():
            reason = "every window dropped" if len(windows.flags_W) else "shorter than a window"
            counts[f"records dropped: {reason}"] += 1
            quarantine.append((path, reason))
            continue
        found.append((path, windows, start))
    return found


def _pair_visit(start_W, time_D, key, split, cohort, config, seed):
    """Return (window, draw, horizon bits) of a visit's good windows."""
    if cohort.pairing == "all":
        window, draw = np.nonzero(np.ones((len(start_W), len(time_D)), bool))
        return window, draw, np.full(len(window), ALL_HORIZONS, np.uint8)
    horizons = (config.train_horizon_min,) if split == 0 else tuple(HORIZON_BIT)
    return pair_windows(
        start_W, time_D, key, seed=seed, before_only=config.before_only, cap=config.windows_per_draw, horizons=horizons
    )  # fmt: skip


def _collect_visit(visit, records, time_D, cohort, config, seed, counts, quarantine):
    """Return a visit's stored windows (signal, scale, start, flags) and its pairs, rows counting within the visit."""
    reach = None
    if cohort.pairing == "horizon":
        half = 60_000_000 * (config.train_horizon_min if visit["split"] == 0 else max(HORIZON_BIT))
        reach = [(time - half, time if config.before_only else time + half) for time in time_D.tolist()]
    found = _read_visit(records, cohort, config, reach, counts, quarantine)
    starts = [start + np.round(windows.start_W / windows.fs * 1e6).astype(np.int64) for _, windows, start in found]
    good = [(windows.flags_W & DROPPED) == 0 for _, windows, _ in found]
    start_W = np.concatenate([np.empty(0, np.int64), *(s[g] for s, g in zip(starts, good, strict=True))])
    window, draw, bits = _pair_visit(start_W, time_D, visit["visit"], visit["split"], cohort, config, seed)
    paired_W = np.bincount(window, minlength=len(start_W)) > 0
    counts["windows dropped: in no draw's horizon or sample"] += int((~paired_W).sum())
    stored, first, lost = [], 0, np.zeros(len(start_W), bool)
    for (path, windows, _), start, good_W in zip(found, starts, good, strict=True):
        here = slice(first, first + int(good_W.sum()))
        first = here.stop
        chosen_W = good_W.copy()
        chosen_W[good_W] = paired_W[here]
        try:
            signal_WT, scale_W = store_windows(windows, chosen_W, fs=config.fs, preset=config.preset)
        except RecordError as cause:
            counts["records dropped: unreadable"] += 1
            counts["windows dropped: unreadable"] += int(chosen_W.sum())
            quarantine.append((path, f"unreadable: {cause}"))
            lost[here] = True
            continue
        counts["records kept" if chosen_W.any() else "records dropped: no window sampled"] += 1
        stored.append((signal_WT, scale_W, start[chosen_W], windows.flags_W[chosen_W]))
    kept_W = paired_W & ~lost
    counts["windows kept"] += int(kept_W.sum())
    row_of = np.cumsum(kept_W) - 1
    pairs = kept_W[window]
    return stored, (row_of[window[pairs]], draw[pairs], bits[pairs])


def _collect(cohort, rows, config, seed):
    """Return the sets of one shard, its counts and its quarantine rows."""
    visits = cohort.visits[rows]
    of_shard = pl.col("visit_row").is_in(rows.tolist())
    by_visit = cohort.records.filter(of_shard).partition_by("visit_row", as_dict=True)
    draws = cohort.draws.filter(of_shard)
    local = {int(row): number for number, row in enumerate(rows)}
    draw_visit = draws["visit_row"].replace_strict(local, return_dtype=pl.Int32).to_numpy()
    order = np.lexsort([draws["time"].to_numpy(), draw_visit])
    draws, draw_visit = draws[order], draw_visit[order]
    counts: Counter = Counter({"records kept": 0, "windows cut": 0, "windows kept": 0})
    quarantine: list[tuple[str, str]] = []
    n_samples = SECONDS * config.fs
    parts = [(np.empty((0, n_samples), np.int16), *(np.empty(0) for _ in range(3)))]
    window_visit, pairs = [np.empty(0, np.int32)], [tuple(np.empty(0, np.int64) for _ in range(3))]
    n_windows = 0
    for number, row in enumerate(rows):
        mine = np.flatnonzero(draw_visit == number)
        stored, (window, draw, bits) = _collect_visit(
            visits.row(number, named=True), by_visit[(row,)], draws["time"].to_numpy()[mine], cohort, config, seed,
            counts, quarantine,
        )  # fmt: skip
        n_stored = sum(len(part[1]) for part in stored)
        parts += stored
        window_visit.append(np.full(n_stored, number, np.int32))
        pairs.append((n_windows + window, mine[draw], bits))
        n_windows += n_stored
    signal, scale, start, flags = (np.concatenate(column) for column in zip(*parts, strict=True))
    window, draw, bits = (np.concatenate(column).astype(np.int64) for column in zip(*pairs, strict=True))
    start, time = start.astype(np.int64), draws["time"].to_numpy()
    for flag, what in FLAG_NAMES.items():
        n_flagged = int(((flags.astype(np.uint8) & flag) > 0).sum())
        if n_flagged:
            counts[f"windows kept but flagged: {what}"] = n_flagged
    values = draws.select(f"value:{component}" for component in cohort.components).to_numpy()
    sets = {
        "windows/signal": signal[:, None, :],
        "windows/scale": scale, "windows/visit": np.concatenate(window_visit), "windows/start": start,
        "windows/flags": flags,
        "draws/labels": draws.select(cohort.targets).to_numpy().reshape(-1, len(cohort.targets)),
        "draws/values": values.reshape(draws.height, len(cohort.components)), "draws/time": time,
        "draws/visit": draw_visit,
        "pairs/window": window, "pairs/draw": draw, "pairs/offset": (start[window] - time[draw]) / 1e6,
        "pairs/horizons": bits,
        **{f"visits/{name}": visits[name].to_numpy() for name in ("patient", "visit", "split", "age", "sex")},
    }  # fmt: skip
    sets = {name: values.astype(SETS.get(name, np.int16), copy=False) for name, values in sets.items()}
    counts.update({name: len(sets[f"{name}/visit"]) for name in ("windows", "draws", "visits")})
    counts["pairs"] = len(window)
    return sets, +counts, quarantine


def shard_attributes(cohort, config, split, plan_hash):
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
        "targets": json.dumps(cohort.targets),
        "target_hash": digest([cohort.targets, cohort.definition]),
        "components": json.dumps(cohort.components),
        "split": SPLITS[split],
        "plan_hash": plan_hash,
    }


def _write_shard(path, sets, attributes, counts):
    """Write a shard, read it back whole, and describe it for the index."""
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
        described = describe_shard(temporary)
    return {**described, "name": path.name}


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
    group, leaf = name.split("/")
    if not isinstance(file.get(group, getlink=True), h5py.HardLink) or leaf not in file[group]:
        raise ShardError(f"{path}: {name} is missing or linked from elsewhere; make the shard again")
    if not isinstance(file[group].get(leaf, getlink=True), h5py.HardLink):
        raise ShardError(f"{path}: {name} is linked from elsewhere; refuse files from elsewhere")
    dataset = file[name]
    wanted = np.dtype(SETS.get(name, np.int16))
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise ShardError(f"{path}: {name} is not stored in the file itself; refuse files from elsewhere")
    n_filters = dataset.id.get_create_plist().get_nfilters()
    if dataset.dtype != wanted or not dataset.fletcher32 or n_filters != 1:
        raise ShardError(f"{path}: {name} has type {dataset.dtype} or other filters; wanted {wanted} with Fletcher32")
    dataset[...]
    return len(dataset)


def _make_shard(folder, number, rows, cohort, config, seed, plan_hash):
    path = folder / f"shard-{number:05d}.h5"
    if path.exists():
        try:
            kept = describe_shard(path)
            if kept["plan_hash"] == plan_hash:
                log.info("kept shard=%d", number)
                return kept
        except ShardError as cause:
            log.warning("made again shard=%d reason=%s", number, cause)
    sets, counts, quarantine = _collect(cohort, rows, config, seed)
    split = int(cohort.visits["split"][int(rows[0])])
    write_quarantine(folder / f"shard-{number:05d}.quarantine.csv", quarantine)
    described = _write_shard(path, sets, shard_attributes(cohort, config, split, plan_hash), counts)
    log.info("wrote shard=%d windows=%d", number, counts["windows"])
    return described


def _remove_leftovers(folder, n_shards):
    """Remove temporaries of a killed run and shards beyond the plan; the run folder's lock keeps writers apart."""
    stale = [path for path in folder.glob("shard-*") if int(path.name[6:11]) >= n_shards]
    for path in [*folder.glob(".*.tmp"), *stale]:
        path.unlink(missing_ok=True)


def write_shards(folder, cohort, config, comm, *, seed, stage_hash):
    """Write every shard of the plan over the ranks of ``comm``, then the index.

    Finished shards of the same plan are kept, so the same command continues after a kill. Same cohort and config give
    the same bytes on any number of ranks.

    Raises
    ------
    ShardError
        More than ``max_bad_fraction`` of the records are bad, or the disk refuses a write.
    """
    folder = Path(folder)
    shards = plan(cohort, config)
    if comm.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder, len(shards))
        (folder / "index.json").unlink(missing_ok=True)
    comm.barrier()
    plan_hash = digest([cohort.hash, config.identity("ranks", "max_bad_fraction"), seed, code_version()])
    described, error = {}, None
    with Progress("shard", len(shards), " shards", shown=comm.rank == 0) as progress:
        try:
            for number in range(comm.rank, len(shards), comm.size):
                described[number] = _make_shard(folder, number, shards[number], cohort, config, seed, plan_hash)
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
        except OSError as cause:
            error = ShardError(f"{folder}: {cause}; free space or mend the disk, then run again")
    share_error(comm, error)


def _finish(folder, cohort, config, described, stage_hash):
    """Check the count of records, write the quarantine table and the index."""
    counts: Counter = Counter()
    lines = list(cohort.quarantine.iter_rows())
    for number in sorted(described):
        counts.update(described[number]["counts"])
        with (folder / f"shard-{number:05d}.quarantine.csv").open(newline="", encoding="utf-8") as file:
            lines += list(csv.reader(file))[1:]
    write_quarantine(folder / "quarantine.csv", lines)
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
    lost = sum(n for what, n in counts.items() if what.startswith("windows dropped"))
    assert counts["windows cut"] == counts["windows kept"] + lost
    assert counts["windows kept"] == counts["windows"]
    attributes = shard_attributes(cohort, config, 0, "")
    del attributes["split"], attributes["plan_hash"], attributes["format"], attributes["version"]
    head = {**attributes, "stage_hash": stage_hash, "cohort_hash": cohort.hash, "counts": dict(sorted(counts.items()))}
    write_index(folder, [described[number] for number in sorted(described)], head, may_overlap=cohort.may_overlap)
