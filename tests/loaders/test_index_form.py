import json
import os

import numpy as np
import pytest

from anyecg.loaders.errors import ShardError, UpgradeNeeded
from anyecg.loaders.index_form import map_tables, read_head, table_head, table_path, table_shapes
from anyecg.loaders.stream import open_index

from .hostile import INDEX_CASES, lay, of_head, of_table, read_whole


@pytest.mark.parametrize("name", INDEX_CASES)
def test_a_hostile_index_cannot_be_read(tiny_set, tmp_path, name):
    lay(tiny_set[0], tmp_path / "set")
    INDEX_CASES[name](tmp_path / "set")
    with pytest.raises((ShardError, UpgradeNeeded)):
        read_whole(tmp_path / "set")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (of_head("shards", 1, "name", "../shard-00001.h5"), r"damaged \(shards\.1\.name: "),
        (of_head("shards", 1, "lengths", "pairs", 2**31), r"more than 2147483648 pairs"),
        (of_head("shards", 1, "horizons", [9999, 0, 0]), "more pairs with a horizon than pairs"),
        (of_head("shards", 1, "horizons", [1, 1]), r"shards\.1\.horizons"),
        (of_head("shards", 1, "horizons", [1, 1, 1, 1]), r"shards\.1\.horizons"),
        (of_head("shards", 1, "lengths", "windows", 71), r"window_scale\.npy: not float32 \(288,\) in 1280 bytes"),
        (of_head("targets", '["a"]'), r"draw_labels\.npy: not int8 \(24, 1\)"),
        (of_head("shards", []), "shards: List should have at least 1 item"),
        (of_head("leads", "[]"), "leads: List should have at least 1 item"),
        (of_head("leads", json.dumps(["I"] * 13)), "leads: List should have at most 12 items"),
        (of_head("samples", 0), "samples: Input should be greater than or equal to 1"),
        (of_head("samples", 100_001), "samples: Input should be less than or equal to 100000"),
        (of_head("fs", 0), "fs: Input should be greater than or equal to 1"),
        (of_head("fs", 100_001), "fs: Input should be less than or equal to 100000"),
        (of_head("shards", 0, "n_bytes", 2**48 + 1), r"shards\.0\.n_bytes: Input should be less than or equal"),
        (of_head("counts", "a", -1), r"counts\.a: Input should be greater than or equal to 0"),
        (of_head("samples", 51), "chunks are not those of the shards"),
        (of_head("tables", {}), r"tables \[\]"),
        *(
            (of_table("chunks", lambda t, c=column, v=value: t.__setitem__((2, c), v)), "chunks are not those")
            for column, value in (
                (0, 1), (1, 127), (1, 129), (2, 21), (2, 23), (3, -1), (4, 6403), (4, 6405), (4, 0)
            )
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_index_is_said(tiny_copy, change, said):
    change(tiny_copy)
    with pytest.raises(ShardError, match=said):
        open_index(tiny_copy)


def test_limits_are_allowed(tiny_copy):
    of_head("fs", 1)(tiny_copy)
    of_head("preset", "any")(tiny_copy)
    of_head("counts", "a", 0)(tiny_copy)
    of_head("shards", 0, "name", "shard-123456789.h5")(tiny_copy)
    open_index(tiny_copy)
    of_head("fs", 100_000)(tiny_copy)
    open_index(tiny_copy)


def test_a_chunk_may_end_with_its_file_and_not_beyond(tiny_copy):
    n_bytes = read_head(tiny_copy)["shards"][0]["n_bytes"]
    of_table("chunks", lambda t: t.__setitem__((2, 3), n_bytes - 6404))(tiny_copy)
    open_index(tiny_copy)
    of_table("chunks", lambda t: t.__setitem__((2, 3), n_bytes - 6403))(tiny_copy)
    with pytest.raises(ShardError, match="chunks are not those"):
        open_index(tiny_copy)
    of_table("chunks", lambda t: t.__setitem__((2, 3), 0))(tiny_copy)
    open_index(tiny_copy)


@pytest.mark.parametrize("size", [4, 5, 6404, 12_808, 12_809])
def test_compressed_chunks_have_any_size_up_to_twice_the_raw_one(tiny_copy, size):
    of_head("filter", "bitshuffle-lz4")(tiny_copy)
    of_table("chunks", lambda t: t.__setitem__((2, 4), size))(tiny_copy)
    if 5 <= size <= 12_808:
        open_index(tiny_copy)
    else:
        with pytest.raises(ShardError, match="chunks are not those"):
            open_index(tiny_copy)


def test_the_index_has_at_most_16_mb(tiny_copy):
    of_head("more", "")(tiny_copy)
    n_more = (16 << 20) - (tiny_copy / "index.json").stat().st_size
    of_head("more", n_more * " ")(tiny_copy)
    read_head(tiny_copy)
    of_head("more", (n_more + 1) * " ")(tiny_copy)
    with pytest.raises(ShardError, match="over 16777216 bytes"):
        read_head(tiny_copy)


@pytest.mark.parametrize("name", ["index.json", "index-chunks.npy", "index-draw_time.npy"])
def test_no_file_of_an_index_may_be_a_link(tiny_set, tiny_copy, name):
    (tiny_copy / name).unlink()
    (tiny_copy / name).symlink_to(tiny_set[0] / name)
    with pytest.raises(ShardError, match=r"link|symbolic"):
        open_index(tiny_copy)


def test_a_table_is_the_file_that_numpy_writes(tiny_set, tiny_index, tmp_path):
    for name, table in tiny_index.tables.items():
        np.save(tmp_path / "a.npy", np.array(table))
        assert (tmp_path / "a.npy").read_bytes() == table_path(tiny_set[0], name).read_bytes()
        assert (tmp_path / "a.npy").read_bytes().startswith(table_head(name, table.shape))


@pytest.mark.parametrize("n_more", [-1, 1])
def test_a_table_of_another_size_or_head_is_refused(tiny_copy, n_more):
    path = table_path(tiny_copy, "pair_draw")
    whole = path.read_bytes()
    os.truncate(path, len(whole) + n_more)
    with pytest.raises(ShardError, match="not int32"):
        open_index(tiny_copy)
    path.write_bytes(whole.replace(b"False", b"True "))
    with pytest.raises(ShardError, match="not int32"):
        open_index(tiny_copy)


def test_the_shapes_follow_from_the_lengths(tiny_set):
    head = read_head(tiny_set[0])
    shapes = table_shapes(head["shards"], 2, 1)
    assert shapes["chunks"] == (7, 6)
    assert shapes["draw_labels"] == (24, 2)
    assert shapes["window_scale"] == (287,)
    assert {name: table.shape for name, table in map_tables(tiny_set[0], head).items()} == shapes
    empty = [{"lengths": {"draws": 0, "visits": 1, "windows": 0, "pairs": 0}, "n_bytes": 9}]
    assert table_shapes(empty, 2, 1)["chunks"] == (0, 6)
    assert table_shapes(head["shards"], 2, 12)["window_scale"] == (287, 12)
