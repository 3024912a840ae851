"""Re-read a folder of shards and compare everything with its index."""

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anyecg.loaders.errors import AnyECGError, ShardError
from anyecg.loaders.index import count_overlapping, open_index
from anyecg.loaders.index_form import read_head, table_path
from anyecg.loaders.progress import Progress
from anyecg.loaders.shard_file import describe_shard, read_through
from anyecg.loaders.shard_parse import open_plain


class Problem(NamedTuple):
    """What is wrong with a file, and with which of its windows, counted within it; None where that cannot be told."""

    file: str
    what: str
    first_window: int | None = None
    last_window: int | None = None

    def __str__(self):
        where = "" if self.first_window is None else f"windows {self.first_window} to {self.last_window}: "
        return f"{self.file}: {where}{self.what}"


def verify(folder):
    """Re-read every shard and table of a folder: hashes, Fletcher32, rows, counts, labels and splits.

    Returns
    -------
    (dict, list of Problem)
        Numbers of files, windows and bytes read; what is wrong, nothing when all is well.

    Raises
    ------
    ShardError
        No index there, or one of another version.
    """
    head = read_head(folder)
    shards = head["shards"]
    problems = _table_problems(folder, head)
    index = None if problems else open_index(folder)
    n_bytes = sum(entry["n_bytes"] for entry in (*shards, *head["tables"].values()))
    counts: Counter = Counter()
    with Progress("verify", n_bytes, "B") as progress, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        progress.advance(sum(table["n_bytes"] for table in head["tables"].values()))
        checks = pool.map(
            lambda number: _check_shard(Path(folder), head, number, _places(index, number)), range(len(shards))
        )
        for shard, (found, counted) in zip(shards, checks, strict=True):
            problems += found
            counts.update(counted)
            progress.advance(shard["n_bytes"], f"problems={len(problems)}")
    if index is not None:
        problems += _split_problems(index)
    if not problems and dict(counts) != head["counts"]:
        problems.append(Problem("index.json", f"counts {head['counts']}; the shards hold {dict(counts)}"))
    return {"n_shards": len(shards), "n_windows": counts["windows"], "n_bytes": n_bytes}, problems


def _table_problems(folder, head):
    problems = []
    for name, table in head["tables"].items():
        path = table_path(folder, name)
        try:
            with os.fdopen(open_plain(path), "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except (ShardError, OSError) as cause:
            problems.append(Problem(path.name, str(cause).removeprefix(f"{path}: ")))
            continue
        if found != table["sha256"]:
            problems.append(Problem(path.name, "changed since it was written; run 'anyecg shard' again"))
    return problems


def _split_problems(index):
    """Count the patients in two splits anew."""
    n_overlapping, said = count_overlapping(index.folder), index.head["patients_in_two_splits"]
    if n_overlapping == said:
        return []
    return [Problem("index.json", f"{n_overlapping} patients stand in two splits; the index says {said}")]


def _places(index, number):
    """Return the rows of the chunk table of one shard, windows counted within it; None without a whole index."""
    if index is None:
        return None
    chunks = np.asarray(index.tables["chunks"])
    first = sum(shard["lengths"]["windows"] for shard in index.head["shards"][:number])
    return [(row[1] - first, *row[2:]) for row in chunks[chunks[:, 0] == number].tolist()]


def _check_shard(folder, head, number, places):
    """Return the problems of a shard, and its counts."""
    wanted = head["shards"][number]
    name = wanted["name"]
    path = folder / name
    remake = "remove the file and run 'anyecg shard' again"
    if not path.is_file():
        return [Problem(name, "missing; run 'anyecg shard' again")], {}
    try:
        read = read_through(path, [place[:-1] for place in places or []])
        if read[1] != wanted["sha256"]:
            # A changed file is not shown to HDF5, which may crash on it.
            torn = [chunk for chunk, place in zip(read[0], places or [], strict=True) if chunk.crc32 != place[-1]]
            problems = [
                Problem(name, f"damaged; {remake}", c.first_window, c.first_window + c.n_windows - 1) for c in torn
            ]
            where = "" if places is None else ", outside of the signal"
            return problems or [Problem(name, f"changed since it was written{where}; {remake}")], {}
        found = describe_shard(path, None if places is None else read)
    except (AnyECGError, OSError) as cause:
        return [Problem(name, str(cause).removeprefix(f"{path}: "))], {}
    problems = []
    if places is not None and found["chunks"] != places:
        problems.append(Problem(name, f"its chunks lie elsewhere than index-chunks.npy says; {remake}"))
    problems += [
        Problem(name, f"{what} {found[what]}; the index says {wanted[what]}")
        for what in ("split", "lengths", "horizons") if found[what] != wanted[what]
    ]  # fmt: skip
    problems += [
        Problem(name, f"{what} {value!r}; the index says {head.get(what)!r}")
        for what, value in found["attributes"].items()
        if what not in ("format", "version") and value != head.get(what)
    ]
    return problems, found["counts"]
