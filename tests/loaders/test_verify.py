import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from anyecg.loaders.errors import ShardError
from anyecg.loaders.index import write_index
from anyecg.loaders.shard_file import describe_shard
from anyecg.loaders.verify import Problem, verify

from .hostile import of_head
from .tiny import write_tiny_shard


def said(folder):
    return [str(problem) for problem in verify(folder)[1]]


def flip(path, place):
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 4]))


def test_a_whole_folder_has_no_problem_and_is_counted(tiny_set):
    totals, problems = verify(tiny_set[0])
    assert problems == []
    n_bytes = sum(path.stat().st_size for path in tiny_set[0].iterdir() if path.suffix in (".h5", ".npy"))
    assert totals == {"n_shards": 4, "n_windows": 287, "n_bytes": n_bytes}
    assert verify(str(tiny_set[0])) == (totals, [])


def test_every_flipped_bit_is_found(tiny_copy):
    rng = np.random.default_rng(3)
    for path in sorted(tiny_copy.glob("*-*")):
        whole = path.read_bytes()
        flip(path, int(rng.integers(len(whole))))
        assert {problem.file for problem in verify(tiny_copy)[1]} == {path.name}
        path.write_bytes(whole)


def test_damaged_windows_are_named(tiny_copy, tiny_index):
    for row in (2, 0, 4):
        shard, _, _, offset, n_bytes, _ = tiny_index.tables["chunks"][row].tolist()
        flip(tiny_copy / f"shard-0000{shard}.h5", offset + n_bytes - 1)
    message = "damaged; remove the file and run 'anyecg shard' again"
    totals, problems = verify(tiny_copy)
    assert problems == [
        Problem("shard-00000.h5", message, 0, 63), Problem("shard-00000.h5", message, 128, 149),
        Problem("shard-00001.h5", message, 64, 69),
    ]  # fmt: skip
    assert str(problems[1]) == f"shard-00000.h5: windows 128 to 149: {message}"
    assert totals["n_windows"] == 67


def test_a_change_outside_of_the_signal_is_no_window(tiny_copy):
    path = tiny_copy / "shard-00002.h5"
    with h5py.File(path, "r+") as file:
        file["visits/age"][0] = 7
    remake = "remove the file and run 'anyecg shard' again"
    assert said(tiny_copy) == [f"shard-00002.h5: changed since it was written, outside of the signal; {remake}"]
    path.write_bytes(b"\x89HDF")
    assert said(tiny_copy)[0].startswith("shard-00002.h5: windows 0 to 63: damaged")
    (tiny_copy / "index-chunks.npy").unlink()
    assert said(tiny_copy)[1].startswith("shard-00002.h5: changed since it was written; remove")


def test_missing_and_changed_files_are_named(tiny_copy):
    (tiny_copy / "shard-00003.h5").unlink()
    assert said(tiny_copy) == ["shard-00003.h5: missing; run 'anyecg shard' again"]
    (tiny_copy / "index-draw_time.npy").unlink()
    flip(tiny_copy / "index-pair_draw.npy", 200)
    assert sorted(said(tiny_copy)) == [
        "index-draw_time.npy: cannot be opened (No such file or directory); run 'anyecg shard' again",
        "index-pair_draw.npy: changed since it was written; run 'anyecg shard' again",
        "shard-00003.h5: missing; run 'anyecg shard' again",
    ]


def test_shards_are_checked_when_a_table_is_damaged(tiny_copy):
    flip(tiny_copy / "index-chunks.npy", 200)
    flip(tiny_copy / "shard-00001.h5", 900_000)
    assert {problem.file for problem in verify(tiny_copy)[1]} == {"index-chunks.npy", "shard-00001.h5"}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (of_head("shards", 3, "split", "val"), "shard-00003.h5: split test; the index says val"),
        (of_head("shards", 3, "horizons", [5, 4, 1]), "shard-00003.h5: horizons [5, 4, 2]; the index says [5, 4, 1]"),
        (of_head("preset", "other"), "shard-00000.h5: preset 'none'; the index says 'other'"),
        (of_head("target_hash", "other"), "shard-00003.h5: target_hash '1'; the index says 'other'"),
        (of_head("counts", "windows", 5), "index.json: counts {'pairs': 437, 'windows': 5}; the shards hold {"),
        (of_head("patients_in_two_splits", 2), "index.json: 0 patients stand in two splits; the index says 2"),
    ],
)
def test_an_index_that_says_otherwise_is_a_problem(tiny_copy, change, wanted):
    change(tiny_copy)
    found = said(tiny_copy)
    assert any(problem.startswith(wanted) for problem in found), found
    if wanted.startswith("index"):
        assert len(found) == 1


def test_shards_that_were_exchanged_are_a_problem(tiny_copy):
    first, second = (tiny_copy / f"shard-0000{number}.h5" for number in (0, 1))
    second.rename(tiny_copy / "x")
    first.rename(second)
    (tiny_copy / "x").rename(first)
    assert {problem.file for problem in verify(tiny_copy)[1]} == {first.name, second.name}


def test_chunks_that_the_index_puts_elsewhere_are_a_problem(tiny_copy):
    path = tiny_copy / "index-chunks.npy"
    table = np.load(path)
    table[4, 5] ^= 1
    np.save(path, table)
    of_head("tables", "chunks", "sha256", hashlib.sha256(path.read_bytes()).hexdigest())(tiny_copy)
    remake = "remove the file and run 'anyecg shard' again"
    assert said(tiny_copy) == [f"shard-00001.h5: its chunks lie elsewhere than index-chunks.npy says; {remake}"]


def test_patients_in_two_splits_are_no_problem_when_the_index_says_so(tmp_path):
    for number, split in enumerate(("train", "test")):
        write_tiny_shard(tmp_path / f"shard-0000{number}.h5", split, 20)
    described = [describe_shard(path) for path in sorted(tmp_path.glob("*.h5"))]
    counts = {what: sum(shard["counts"][what] for shard in described) for what in ("pairs", "windows")}
    write_index(tmp_path, described, {"stage_hash": "", "cohort_hash": "", "counts": counts}, may_overlap=True)
    assert said(tmp_path) == []


def test_a_folder_without_index_is_refused(tmp_path):
    with pytest.raises(ShardError, match="has no index"):
        verify(tmp_path)


def test_links_are_not_followed(tiny_set, tiny_copy):
    for name in ("shard-00000.h5", "index-pair_draw.npy"):
        (tiny_copy / name).unlink()
        (tiny_copy / name).symlink_to(tiny_set[0] / name)
    assert {problem.file for problem in verify(tiny_copy)[1]} == {"shard-00000.h5", "index-pair_draw.npy"}
    before = len(list(Path("/proc/self/fd").iterdir()))
    verify(tiny_copy)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
