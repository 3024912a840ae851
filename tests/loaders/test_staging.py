import os
import shutil

import numpy as np
import pytest
from mpi4py import MPI

from anyecg.loaders import staging
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.staging import stage_shards
from anyecg.loaders.stream import open_index
from anyecg.loaders.verify import verify

COMM = MPI.COMM_SELF


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_staged_folder_is_whole_and_gives_the_same_windows(tiny_set, tmp_path):
    folder = stage_shards(tiny_set[0], tmp_path / "local", COMM)
    assert folder.parent == tmp_path / "local"
    assert verify(folder)[1] == []
    assert folder.stat().st_mode & 0o777 == 0o700
    index = open_index(folder)
    reader = WindowReader(index)
    np.testing.assert_array_equal(reader.read(np.arange(len(tiny_set[1])))[:, 0], tiny_set[1])
    reader.close()
    before = times(folder)
    assert stage_shards(tiny_set[0], tmp_path / "local", COMM) == folder
    # All was whole, so only the index is laid anew.
    assert [name for name, time in times(folder).items() if time != before[name]] == ["index.json"]


def test_a_damaged_copy_is_made_again(tiny_set, tmp_path):
    folder = stage_shards(tiny_set[0], tmp_path, COMM)
    path = folder / "shard-00001.h5"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    (folder / "index-pair_draw.npy").unlink()
    stage_shards(tiny_set[0], tmp_path, COMM)
    assert verify(folder)[1] == []


def test_only_shards_of_the_splits_are_copied(tiny_set, tmp_path):
    folder = stage_shards(tiny_set[0], tmp_path, COMM, splits=("val",))
    shards = open_index(folder).head["shards"]
    assert {path.name for path in folder.glob("*.h5")} == {one["name"] for one in shards if one["split"] == "val"}


@pytest.mark.parametrize("fault", ["damaged", "no room", "others may write", "no disk"])
def test_where_staging_fails_the_shards_are_read_where_they_are(tiny_copy, tmp_path, monkeypatch, caplog, fault):
    local = tmp_path / "local"
    if fault == "damaged":
        path = tiny_copy / "shard-00002.h5"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    if fault == "no room":
        monkeypatch.setattr(staging, "_MOST_OF_DISK", 1e-12)
    if fault == "others may write":
        shutil.copytree(stage_shards(tiny_copy, local, COMM), tmp_path / "copy")
        next(local.iterdir()).chmod(0o777)
    if fault == "no disk":
        local.touch()
    caplog.clear()
    assert stage_shards(tiny_copy, local, COMM) == tiny_copy
    said = {
        "damaged": "not the bytes of its index", "no room": "GB free", "others may write": "others may write there",
        "no disk": "Not a directory",
    }  # fmt: skip
    assert said[fault] in caplog.text
    assert "shards are read where they are by 1 of 1 ranks" in caplog.text
    assert not list(tmp_path.rglob("*.tmp"))
    assert os.path.lexists(tiny_copy / "index.json")
