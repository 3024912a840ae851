"""Hostile shards and indices, each of which must be refused: ``python -m tests.loaders.hostile make|try FOLDER``.

Trying prints one line of JSON: what each case said, the seconds it took, the peak memory of the process and its child.
Under strace, ``escapes`` tells what was opened outside.
"""

import functools
import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np

from anyecg.kernels.checksum import fletcher32
from anyecg.loaders.apart import end_children
from anyecg.loaders.errors import ShardError, UpgradeNeeded
from anyecg.loaders.files import write_document
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.shard_file import describe_shard
from anyecg.loaders.stream import epoch_order, open_index
from anyecg.loaders.verify import verify

from .checksums import find_blocks, mend
from .tiny import SAMPLES, write_tiny_set, write_tiny_shard

REPOSITORY = Path(__file__).parents[2]
LARGE = 10**12
TIME = "draws/time"
SIGNAL = "windows/signal"
SHARD_CASES, INDEX_CASES = {}, {}


def shard_case(change, name=None):
    """Note a change of a shard's path."""
    name = name or change.__name__
    assert name not in SHARD_CASES, name
    SHARD_CASES[name] = change
    return change


def edit(change):
    """Return a change of a path that edits the open file."""

    @functools.wraps(change)
    def on_path(path):
        with h5py.File(path, "r+", libver=("v110", "v110")) as file:
            change(file)

    return on_path


def replaced(name, **options):
    """Return a change that makes a set anew with other options."""

    def change(file):
        stored = file[name]
        kept = {"shape": stored.shape, "dtype": stored.dtype, "chunks": stored.chunks, "maxshape": stored.maxshape}
        del file[name]
        chunked = options.get("chunks", True) is not None
        file.create_dataset(name, **{"fletcher32": chunked, **kept, **options})

    return edit(change)


def linked(name, link):
    """Return a change that puts a link in place of a set or group."""

    def change(file):
        del file[name]
        file[name] = link(Path(file.filename).parent) if callable(link) else link

    return edit(change)


def of_text(name, text):
    """Return a change of an attribute."""
    return edit(lambda file: file.attrs.__setitem__(name, text))


def with_values(name, value):
    """Return a change of the first value of a set."""
    return edit(lambda file: file[name].__setitem__(0, value))


def written(data):
    """Return a change that puts other bytes in place of the file."""
    return lambda path: path.write_bytes(data(path.read_bytes()) if callable(data) else data)


OPTIONS = {
    "of 10^12 rows": {"shape": (LARGE,)}, "of 2^62 rows": {"shape": (2**62,)}, "scalar": {"shape": (), "chunks": None,
    "maxshape": None}, "in other chunks": {"chunks": (7,)}, "in huge chunks": {"chunks": (2**28,)},
    "contiguous": {"chunks": None, "maxshape": None}, "of floats": {"dtype": "f8"}, "of other order": {"dtype": ">i8"},
    "of compounds": {"dtype": [("a", "i8"), ("b", "f4")]}, "of references": {"dtype": h5py.ref_dtype},
    "of texts": {"dtype": h5py.string_dtype(), "fletcher32": False},
    "of lists": {"dtype": h5py.vlen_dtype("i8"), "fletcher32": False},
    "of regions": {"dtype": h5py.regionref_dtype}, "of bools": {"dtype": bool}, "of opaques": {"dtype": "V8"},
    "of arrays": {"dtype": np.dtype(("i8", (9,)))}, "of 2-D": {"shape": (3, 3), "chunks": (3, 3),
    "maxshape": (None, None)}, "deflated": {"compression": "gzip"}, "shuffled": {"shuffle": True},
    "without checksum": {"fletcher32": False}, "scaled": {"scaleoffset": 0, "fletcher32": False},
}  # fmt: skip
for _what, _options in OPTIONS.items():
    shard_case(replaced(TIME, **_options), f"set {_what}")
shard_case(replaced(SIGNAL, shape=(LARGE, 1, SAMPLES)), "signal of 10^12 rows")
shard_case(
    replaced(SIGNAL, shape=(150, 1, 10**9), chunks=(64, 1, 10**6), maxshape=(None, 1, None)), "signal of wide rows"
)
for _name in (TIME, "draws", SIGNAL):
    for _what, _link in {
        "external": lambda folder: h5py.ExternalLink(str(folder.parent / "outside" / "canary.h5"), "/draws/time"),
        "external to a pipe": lambda folder: h5py.ExternalLink(str(folder.parent / "outside" / "pipe"), "/a"),
        "external to itself": lambda folder: h5py.ExternalLink(str(folder / "shard-00000.h5"), "/draws"),
        "soft": h5py.SoftLink("/draws/visit"), "dangling": h5py.SoftLink("/nowhere"),
        "looping": h5py.SoftLink(f"/{_name}"),
    }.items():  # fmt: skip
        shard_case(linked(_name, _link), f"{_what} link {_name}")
for _name, _text in {
    "leads": "[" * 500_000, "targets": json.dumps([1, 2]), "components": '{"a": 1}', "counts": '{"a": 1e400}',
    "split": "elsewhere", "filter": "szip", "samples": 10**18, "fs": "5", "preset": 5, "format": "other",
    "plan_hash": "x" * 2_000_000, "code_version": np.arange(3)
}.items():  # fmt: skip
    shard_case(of_text(_name, _text), f"attribute {_name}")
shard_case(of_text("counts", '{"a": 1' + "0" * 5000 + "}"), "attribute of a long number")
shard_case(of_text("counts", '{"a":' * 100_000), "attribute of nested counts")
shard_case(of_text("targets", json.dumps(["t"] * 100_000)), "attribute of many targets")
shard_case(of_text("samples", 0), "attribute of no samples")
for _value in (-1, 2**62, "1", 1.5, np.arange(2), None, True):
    shard_case(of_text("version", h5py.Empty("i8") if _value is None else _value), f"version {_value!r}")
for _name, _value in {
    "pairs/window": 10**6, "pairs/draw": -1, "windows/visit": 99, "windows/scale": np.nan, "draws/labels": 5,
    "visits/split": 1,
}.items():  # fmt: skip
    shard_case(with_values(_name, _value), f"value of {_name}")
for _what, _data in {
    "cut": lambda data: data[: len(data) // 2], "of no bytes": b"", "of zeros": bytes(10_000), "of text": b"a,b\n" * 99,
    "behind a user block": lambda data: bytes(512) + data, "and a tail of 2 bytes less": lambda data: data[:-2],
}.items():  # fmt: skip
    shard_case(written(_data), f"file {_what}")


@shard_case
def external_storage(path):
    outside = path.parent.parent / "outside" / "canary.dat"
    replaced(TIME, chunks=None, maxshape=None, external=[(str(outside), 0, 48)])(path)


@shard_case
def virtual_set(path):
    def change(file):
        del file[TIME]
        layout = h5py.VirtualLayout((6,), "i8", maxshape=(None,))
        source = h5py.VirtualSource(str(path.parent.parent / "outside" / "canary.h5"), TIME, (6,), maxshape=(None,))
        layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
        file.create_virtual_dataset(TIME, layout)

    edit(change)(path)


@shard_case
@edit
def unknown_filter(file):
    plist = file[TIME].id.get_create_plist()
    plist.set_filter(32099, h5py.h5z.FLAG_OPTIONAL, (1, 2, 3))
    del file[TIME]
    space = h5py.h5s.create_simple((6,), (h5py.h5s.UNLIMITED,))
    h5py.h5d.create(file["draws"].id, b"time", h5py.h5t.NATIVE_INT64, space, plist)


@shard_case
@edit
def deflate_bomb(file):
    rows = 1 << 23
    del file[TIME]
    bomb = file.create_dataset(TIME, (rows,), "i8", chunks=(rows,), maxshape=(None,), compression="gzip")
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    packed = b"".join(packer.compress(block) for _ in range(rows * 8 >> 20)) + packer.flush()
    bomb.id.write_direct_chunk((0,), packed)


@shard_case
def lz4_bomb(path):
    path.unlink()
    write_tiny_shard(path, form="bitshuffle-lz4")

    def change(file):
        for first in (0, 64, 128):
            data = struct.pack(">QI", 1 << 40, 8192) + b"\xff" * 5000
            data += fletcher32(data).to_bytes(4, "little")
            file[SIGNAL].id.write_direct_chunk((first, 0, 0), data)

    edit(change)(path)


@shard_case
def overlapping_chunks(path):
    data = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        first, second = (file[SIGNAL].id.get_chunk_info(number).byte_offset for number in (0, 1))
    blocks = find_blocks(bytes(data))
    place = data.find(second.to_bytes(8, "little"))
    data[place : place + 8] = first.to_bytes(8, "little")
    path.write_bytes(mend(data, blocks))


@shard_case
@edit
def cyclic_groups(file):
    del file["draws"]
    file["draws"] = file["/"]


@shard_case
@edit
def group_in_place_of_a_set(file):
    del file[TIME]
    file.create_group(TIME)


@shard_case
@edit
def type_in_place_of_a_set(file):
    del file[TIME]
    file[TIME] = np.dtype("i8")


@shard_case
@edit
def null_space(file):
    del file[TIME]
    file[TIME] = h5py.Empty("i8")


@shard_case
@edit
def thousands_of_attributes(file):
    for number in range(5000):
        file.attrs[f"a{number}"] = number


@shard_case
@edit
def giant_attribute(file):
    file.attrs["preset"] = np.zeros(1 << 23)


@shard_case
@edit
def missing_attribute(file):
    del file.attrs["plan_hash"]


@shard_case
@edit
def attribute_of_references(file):
    file.attrs["targets"] = file["draws"].ref


@shard_case
@edit
def sets_of_unlike_lengths(file):
    file[TIME].resize((5,))


@shard_case
@edit
def all_sets_as_large_as_the_file(file):
    for name in ("patient", "visit", "age", "sex", "split"):
        file[f"visits/{name}"].resize((140_000,))


@shard_case
def folder_in_place_of_the_file(path):
    path.unlink()
    path.mkdir()


@shard_case
def link_to_a_shard(path):
    path.unlink()
    path.symlink_to(path.parent / "shard-00001.h5")


@shard_case
def pipe_in_place_of_the_file(path):
    path.unlink()
    os.mkfifo(path)


@shard_case
def link_to_a_device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def index_case(name, change):
    """Note a change of a folder."""
    assert name not in {**INDEX_CASES, **SHARD_CASES}, name
    INDEX_CASES[name] = change


def of_head(*path_and_value):
    """Return a change of one value in ``index.json``, sealed again as whoever made it up would."""
    *keys, last, value = path_and_value

    def change(folder):
        head = json.loads((folder / "index.json").read_text())
        inner = head
        for key in keys:
            inner = inner[key]
        inner[last] = value
        del head["digest"]
        write_document(folder / "index.json", "anyecg-index", head)

    return change


def of_table(name, change):
    """Return a change of the values of a table."""

    def on_folder(folder):
        path = folder / f"index-{name}.npy"
        table = np.load(path)
        change(table)
        np.save(path, table)

    return on_folder


def in_place(name, make):
    """Return a change that makes something else in place of a file."""

    def change(folder):
        (folder / name).unlink()
        make(folder / name)

    return change


for _name in ("../shard-00000.h5", "/etc/hostname", "a/../../b", "index.json", "shard-00000.h5\0", "", 5, None):
    index_case(f"shard name {_name!r}", of_head("shards", 0, "name", _name))
for _key in ("draws", "windows", "pairs", "visits"):
    for _value in (LARGE, 2**62, 2**70, -1, 1e30, 1.5, "5", None, True, float("nan"), [1]):
        index_case(f"length {_key} {_value!r}", of_head("shards", 1, "lengths", _key, _value))
_SHARD = ("shards", 0)
for _keys, _value in (
    (("shards",), []), (_SHARD, 5), ((*_SHARD, "horizons"), [10**9] * 3), ((*_SHARD, "horizons", 0), -5),
    ((*_SHARD, "n_bytes"), -1), ((*_SHARD, "n_bytes"), 0), ((*_SHARD, "sha256"), "../x"), ((*_SHARD, "split"), "other"),
    (("samples",), 2**40), (("samples",), 0), (("samples",), 49), (("fs",), "a"), (("leads",), "[" * 100_000),
    (("leads",), [1]), (("leads",), "[]"), (("leads",), json.dumps(["I"] * 65)), (("targets",), '["a"'),
    (("targets",), "[]"), (("tables",), {}), (("counts",), {"a": 1e400}), (("version",), 3), (("version",), 10**400),
    (("format",), "x"), (("filter",), "gzip"), (("filter",), "bitshuffle-lz4"),
    (("tables", "../../outside/canary"), {"sha256": "0" * 64, "n_bytes": 9, "shape": [1]}),
):  # fmt: skip
    index_case(f"{_keys} {str(_value)[:20]}", of_head(*_keys, _value))
for _column, _value in ((0, 9), (0, -1), (1, 5), (2, 65), (2, 0), (3, -8), (3, 2**62), (4, 2**62), (4, -1), (5, 7)):
    index_case(
        f"chunk column {_column} {_value}", of_table("chunks", lambda t, c=_column, v=_value: t.__setitem__((1, c), v))
    )
index_case("pair of a window beyond", of_table("pair_window", lambda t: t.__setitem__(0, 10**6)))
index_case("pair of a negative window", of_table("pair_window", lambda t: t.__setitem__(0, -1)))
index_case("pairs of no horizon", of_table("pair_horizons", lambda t: t.fill(0)))
_HEAD = "{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}"


def _npy(descr, shape, order=False, data=b""):
    head = _HEAD.format(descr, order, shape).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + data


class _Canary:
    def __reduce__(self):
        return Path.touch, (Path("canary-fired"),)


_TABLE = "index-pair_draw.npy"
for _name, _make in {
    "absent": lambda path: None,
    "of objects": lambda path: path.write_bytes(_npy("'|O'", (1,), data=pickle.dumps([_Canary()]))),
    "of absurd shape": lambda path: path.write_bytes(_npy("'<i4'", (LARGE, LARGE))),
    "of negative shape": lambda path: path.write_bytes(_npy("'<i4'", (-1,))),
    "with code in its head": lambda path: path.write_bytes(_npy("'<i4'", "__import__('os').abort()")),
    "with a nested head": lambda path: path.write_bytes(_npy("'<i4'", "(" * 60 + ")" * 60)),
    "cut": lambda path: path.write_bytes(_npy("'<i4'", (9,))),
    "as an archive": lambda path: zipfile.ZipFile(path, "w").close(),
    "as a pipe": os.mkfifo,
    "as a link": lambda path: path.symlink_to(path.parent.parent / "outside" / "canary.dat"),
    "as a folder": Path.mkdir,
}.items():
    index_case(f"table {_name}", in_place(_TABLE, _make))
for _name, _make in {
    "as a pipe": os.mkfifo,
    "as a link": lambda path: path.symlink_to(path.parent.parent / "outside" / "index.json"),
    "as a folder": Path.mkdir,
    "of 100 MB": lambda path: path.write_bytes(b"[0," * 33_000_000),
    "of nested lists": lambda path: path.write_bytes(b"[" * 10_000_000),
    "of no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "of a long number": lambda path: path.write_bytes(b'{"format": ' + b"9" * 10_000_000),
}.items():
    index_case(f"index {_name}", in_place("index.json", _make))
for _name, _make in {
    "as a pipe": os.mkfifo,
    "as a link": lambda path: path.symlink_to(path.parent.parent / "outside" / "canary.h5"),
    "as a folder": Path.mkdir,
    "cut": lambda path: path.write_bytes(b"\x89HDF"),
}.items():
    index_case(f"shard {_name}", in_place("shard-00000.h5", _make))


def read_whole(folder):
    """Do with a folder what training does with it: open, order, read."""
    index = open_index(folder)
    reader = WindowReader(index)
    try:
        for split in ("train", "val", "test"):
            for horizon_min in (60, 30, 15):
                pairs = epoch_order(index, seed=1, epoch=0, split=split, horizon_min=horizon_min)
                reader.read(index.tables["pair_window"][pairs])
        reader.read(np.arange(reader.n_windows))
    finally:
        reader.close()


def verify_whole(folder):
    """Verify a folder; its problems are a refusal."""
    problems = verify(folder)[1]
    if problems:
        raise ShardError("; ".join(map(str, problems)))


def refusal(action, path):
    """Return what an action raised, and the seconds it took."""
    start = time.perf_counter()
    try:
        action(path)
        said = "NOT REFUSED"
    except (ShardError, UpgradeNeeded) as cause:
        said = f"{type(cause).__name__}: {cause}"
    except Exception as cause:
        said = f"UNTYPED {cause!r}"
    return said[:300], time.perf_counter() - start


STRACE = (
    "strace",
    "-f",
    "-qq",
    "--seccomp-bpf",
    "-e",
    "trace=open,openat,openat2,lstat,newfstatat,execve,socket,connect",
    "-o",
)


def run_all(folder, *tracer):
    """Make every case, then try them all in a process of its own; return what it printed.

    A pipe that is opened outside would hang it.
    """
    python = [sys.executable, "-m", "tests.loaders.hostile"]
    subprocess.run([*python, "make", str(folder)], check=True, cwd=REPOSITORY, timeout=300)
    done = subprocess.run(
        [*tracer, *python, "try", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=REPOSITORY,
        timeout=500,
    )
    return json.loads(done.stdout)


def not_refused(found):
    """Return the cases that gave no typed error."""
    typed = ("ShardError: ", "UpgradeNeeded: ")
    return {name: said for name, (said, _) in found.items() if not said.startswith(typed)}


def escapes(trace, home):
    """Return what the system was asked for during the trials beyond the set and what Python itself is made of."""
    # What the interpreter opens when a child starts anew; hdf5plugin asks uname which processor this is.
    system = ["/proc/", "/lib/", "/lib64/", "/usr/lib/", "/usr/share/locale/", "/etc/ld.so", "/etc/localtime"]
    system += ["/sys/devices/system/cpu/", "/dev/null"]
    python = [sys.prefix, sys.base_prefix, *map(os.path.realpath, sys.path), REPOSITORY]
    allowed = (f"{home}/set/", *system, *(f"{path}" for path in python if str(path) != str(home)))
    on, found = False, []
    for line in trace.splitlines():
        if f'"{home}/begin"' in line or f'"{home}/end"' in line:
            on = "begin" in line
        opened = re.search(r'(?:open|openat|openat2|execve)\((?:AT_FDCWD, )?"([^"]*)"', line)
        escaped = opened and opened[1].startswith("/") and not opened[1].startswith(allowed) and "uname" not in line
        if on and (escaped or re.search(r"(?:socket|connect)\(", line)):
            found.append(line)
    return found


def lay(whole, folder):
    """Copy a whole set; the shards that no case changes are linked."""
    folder.mkdir()
    for path in whole.iterdir():
        untouched = path.suffix == ".h5" and path.name != "shard-00000.h5"
        (os.link if untouched else shutil.copy)(path, folder / path.name)


def make(home):
    """Lay every case into a folder of its own."""
    whole, outside = home / "whole", home / "outside"
    write_tiny_set(whole)
    outside.mkdir()
    shutil.copy(whole / "shard-00000.h5", outside / "canary.h5")
    shutil.copy(whole / "index.json", outside / "index.json")
    (outside / "canary.dat").write_bytes(bytes(1000))
    os.mkfifo(outside / "pipe")
    (home / "set").mkdir()
    for number, (name, change) in enumerate((*SHARD_CASES.items(), *INDEX_CASES.items())):
        folder = home / "set" / str(number)
        lay(whole, folder)
        change(folder / "shard-00000.h5" if name in SHARD_CASES else folder)


def try_all(home):
    """Try every case; return what each said and its seconds, and the peak memory of this process and its child."""
    verify_whole(home / "whole")
    read_whole(home / "whole")
    found = {}
    # A trace of the system's calls tells by these names what was opened by the trials.
    (home / "begin").exists()
    for number, name in enumerate((*SHARD_CASES, *INDEX_CASES)):
        folder = home / "set" / str(number)
        if name in SHARD_CASES:
            found[f"{name}: describe"] = refusal(describe_shard, folder / "shard-00000.h5")
        else:
            found[f"{name}: read"] = refusal(read_whole, folder)
        found[f"{name}: verify"] = refusal(verify_whole, folder)
    (home / "end").exists()
    end_children()
    of_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    # The peak that getrusage gives of this process would include the process that started it.
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3
    return {"found": found, "peak_mb": peak, "child_peak_mb": of_child}


def main():
    """Make or try every case in the folder that is named."""
    what, home = sys.argv[1], Path(sys.argv[2])
    if what == "make":
        make(home)
    else:
        print(json.dumps(try_all(home)))


if __name__ == "__main__":
    main()
