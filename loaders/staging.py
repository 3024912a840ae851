"""Shards copied to a node's own disk, each file checked against the index, for the ranks that read them there."""

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path

from anyecg.loaders.errors import AnyECGError, ShardError
from anyecg.loaders.files import file_hash
from anyecg.loaders.index_form import read_head, table_path
from anyecg.loaders.progress import SharedProgress
from anyecg.loaders.ranks import node_of

log = logging.getLogger(__name__)
_BLOCK = 4 << 20
# Of the disk's free bytes: others write there too.
_MOST_OF_DISK = 0.95


def stage_shards(folder, local, comm, *, splits=("train", "val", "test")):
    """Copy an index and the shards of some splits to a folder on each node's own disk, shared out over its ranks.

    What is there already and whole is kept. A node whose disk has no room, or refuses a write, reads the shards where
    they are; that is a warning, and all its ranks do the same.

    Parameters
    ----------
    folder : path
        Of whole shards, on a disk that all nodes see.
    local : path
        On the node's own disk.
    comm : MPI communicator
        Every rank calls this.

    Returns
    -------
    Path of the folder that this rank's node is to read from
    """
    folder, head = Path(folder), read_head(folder)
    target = Path(local) / f"anyecg-shards-{head['digest'][:16]}"
    node = node_of(comm)
    wanted = _files(folder, head, splits)
    n_nodes = sum(rank == 0 for rank in comm.allgather(node.rank))
    n_all = sum(n_bytes for _, n_bytes in wanted.values()) * n_nodes
    progress = SharedProgress("stage", n_all, "B", comm, lambda counts, _: f"{counts['files']} files")
    reason = _first_reason(node, lambda: None if node.rank else _make_ready(target, wanted))
    if not reason:
        mine = list(wanted.items())[node.rank :: node.size]
        reason = _first_reason(node, lambda: _copy_all(folder, target, mine, progress))
    if not reason:
        # Last, so that a folder with an index is whole.
        reason = _first_reason(node, lambda: None if node.rank else _copy_index(folder, target))
    progress.finish()
    node.Free()
    if reasons := [text for text in comm.allgather(reason) if text]:
        log.warning("shards are read where they are by %d of %d ranks: %s", len(reasons), comm.size, reasons[0])
    return folder if reason else target


def _files(folder, head, splits):
    """Return a dict of file name -> (hash, bytes), large files first."""
    files = {table_path(folder, name).name: table for name, table in head["tables"].items()}
    files |= {shard["name"]: shard for shard in head["shards"] if shard["split"] in splits}
    pairs = {name: (entry["sha256"], entry["n_bytes"]) for name, entry in files.items()}
    return dict(sorted(pairs.items(), key=lambda item: -item[1][1]))


def _first_reason(node, work):
    """Do ``work`` on all ranks of a node; return why it failed on one of them, on all of them, or None."""
    reason = None
    try:
        work()
    except (AnyECGError, OSError) as cause:
        reason = str(cause)
    return next((text for text in node.allgather(reason) if text), None)


def _make_ready(target, wanted):
    """Make the folder, of this user alone, and look whether there is room for what is not in it yet."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = target.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ShardError(f"{target}: others may write there; wanted a folder of your own")
    there = sum(_n_bytes(target / name) for name in wanted)
    n_bytes, disk = sum(n for _, n in wanted.values()) - there, os.statvfs(target)
    n_free = disk.f_bavail * disk.f_frsize
    if n_bytes > n_free * _MOST_OF_DISK:
        raise ShardError(f"{target}: {n_bytes / 1e9:.1f} GB to copy, {n_free / 1e9:.1f} GB free")


def _n_bytes(path):
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _copy_all(folder, target, files, progress):
    for name, (wanted, n_bytes) in files:
        path = target / name
        if _n_bytes(path) == n_bytes and file_hash(path) == wanted:
            progress.advance(n_bytes, {"files": 1})
            continue
        _copy(folder / name, path, wanted, progress)
        progress.advance(0, {"files": 1})


def _copy(source, path, wanted, progress):
    """Copy a file under a temporary name, and give it its own once its bytes are those that the index names."""
    temporary, found = path.with_name(f".{path.name}.{os.getpid()}.tmp"), hashlib.sha256()
    try:
        with source.open("rb") as read, temporary.open("wb") as written:
            while block := read.read(_BLOCK):
                written.write(block)
                found.update(block)
                progress.advance(len(block), {})
        if found.hexdigest() != wanted:
            raise ShardError(f"{source}: not the bytes of its index; run 'anyecg verify'")
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_index(folder, target):
    temporary = target / f".index.json.{os.getpid()}.tmp"
    temporary.write_bytes((folder / "index.json").read_bytes())
    temporary.rename(target / "index.json")
