import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from anyecg.kernels.counter import permute
from anyecg.loaders import stream
from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import digest
from anyecg.loaders.stream import ChunkReader, batch, epoch_order, n_batches, open_index, rows_of_rank

OPTIONS = {"seed": 5, "epoch": 2}


def slow_pairs(index, split, horizon_min):
    """Return the pairs of a split and horizon, found by looking at every pair."""
    tables, bit = index.tables, {60: 1, 30: 2, 15: 4}[horizon_min]
    of_split = [
        tables["visit_split"][tables["window_visit"][window]] == ("train", "val", "test").index(split)
        for window in tables["pair_window"]
    ]
    return [pair for pair, here in enumerate(of_split) if here and tables["pair_horizons"][pair] & bit]


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("horizon_min", [60, 30, 15])
def test_an_epoch_visits_each_pair_once(tiny_index, split, horizon_min):
    wanted = slow_pairs(tiny_index, split, horizon_min)
    order = epoch_order(tiny_index, **OPTIONS, split=split, horizon_min=horizon_min)
    assert np.sort(order).tolist() == wanted
    key = int(digest([5, 2, split, horizon_min]), 16)
    assert order.tolist() == np.array(wanted)[permute(np.arange(len(wanted)), len(wanted), key)].tolist()


def test_the_order_of_released_shards_never_changes(tiny_index):
    assert digest(epoch_order(tiny_index, **OPTIONS).tolist()) == "eff8734996c599f0"
    assert batch(tiny_index, 1, **OPTIONS, batch_size=5, split="val", horizon_min=15).tolist() == [
        415,
        354,
        395,
        341,
        413,
    ]


@pytest.mark.parametrize("batch_size", [1, 7, 16, 1000])
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 6, 8, 12, 16, 64])
def test_batches_and_their_parts_on_ranks_make_up_the_epoch(tiny_index, batch_size, n_ranks):
    order = epoch_order(tiny_index, **OPTIONS, split="test")
    assert n_batches(tiny_index, batch_size=batch_size, split="test") == -(-len(order) // batch_size)
    parts = [
        rows_of_rank(batch(tiny_index, number, **OPTIONS, batch_size=batch_size, split="test"), rank, n_ranks)
        for number in range(n_batches(tiny_index, batch_size=batch_size, split="test"))
        for rank in range(n_ranks)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), order)
    assert all(abs(len(part) - min(batch_size, len(order)) / n_ranks) < 1 for part in parts[:n_ranks])


def test_the_default_is_the_train_split_with_60_minutes(tiny_index):
    named = {"split": "train", "horizon_min": 60}
    assert (epoch_order(tiny_index, **OPTIONS) == epoch_order(tiny_index, **OPTIONS, **named)).all()
    assert n_batches(tiny_index, batch_size=9) == n_batches(tiny_index, batch_size=9, **named)
    first = batch(tiny_index, 0, **OPTIONS, batch_size=9)
    assert (first == batch(tiny_index, 0, **OPTIONS, batch_size=9, **named)).all()


def test_seed_and_epoch_change_the_order(tiny_index):
    order = epoch_order(tiny_index, seed=5, epoch=2)
    assert (epoch_order(tiny_index, seed=5, epoch=2) == order).all()
    assert (epoch_order(tiny_index, seed=5, epoch=3) != order).any()
    assert (epoch_order(tiny_index, seed=6, epoch=2) != order).any()


@pytest.mark.parametrize("number", [-1, -9999, 9999, "last + 1"])
def test_a_batch_beyond_the_epoch_is_refused(tiny_index, number):
    n_all = n_batches(tiny_index, batch_size=16)
    number = n_all if number == "last + 1" else number
    with pytest.raises(ValueError, match=f"batch {number} of an epoch with {n_all} batches"):
        batch(tiny_index, number, **OPTIONS, batch_size=16)


def test_a_split_without_pairs_has_an_empty_epoch(tiny_index):
    shards = [{**shard, "horizons": [0, 0, 0]} for shard in tiny_index.head["shards"]]
    empty = dataclasses.replace(tiny_index, head={**tiny_index.head, "shards": shards})
    assert epoch_order(empty, **OPTIONS).dtype == np.int64
    assert len(epoch_order(empty, **OPTIONS)) == n_batches(empty, batch_size=4) == 0


@pytest.mark.parametrize("cache_chunks", [1, 2, 256])
def test_the_reader_returns_what_was_written(tiny_set, tiny_index, cache_chunks):
    rows = np.random.default_rng(6).integers(0, len(tiny_set[1]), 400)
    reader = ChunkReader(tiny_index, cache_chunks=cache_chunks)
    for some in np.split(rows, 10):
        found = reader.read(some)
        assert found.dtype == np.int16
        assert found.shape == (40, 1, 50)
        np.testing.assert_array_equal(found[:, 0], tiny_set[1][some])
    assert len(reader.cache) == min(cache_chunks, len(reader.chunks))
    assert reader.read([]).shape == (0, 1, 50)
    reader.close()


def test_the_chunk_used_longest_ago_leaves_the_cache(tiny_index):
    reader = ChunkReader(tiny_index, cache_chunks=2)
    for row in (0, 64, 0, 128):
        reader.read([row])
    assert list(reader.cache) == [0, 2]
    reader.close()


def test_a_chunk_in_the_cache_is_not_read_again(tiny_index, monkeypatch):
    calls = []
    monkeypatch.setattr(stream.os, "pread", lambda *given, real=os.pread: calls.append(given) or real(*given))
    reader = ChunkReader(tiny_index)
    for _ in range(3):
        reader.read([0, 1, 63])
    reader.close()
    assert len(calls) == 1


def test_the_reader_keeps_a_bounded_number_of_files_open(tiny_set, tiny_index, monkeypatch):
    monkeypatch.setattr(stream, "MAX_OPEN_SHARDS", 2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = ChunkReader(tiny_index, cache_chunks=1)
    for rows in (slice(0, 9), slice(150, 160), slice(220, 230), slice(284, 287), slice(0, 2)):
        np.testing.assert_array_equal(reader.read(np.arange(287)[rows])[:, 0], tiny_set[1][rows])
        assert len(reader.files) <= 2
        assert len(list(Path("/proc/self/fd").iterdir())) == before + len(reader.files)
    assert list(reader.files) == [3, 0]
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    reader.close()


@pytest.mark.parametrize("rows", [[-1], [0, 287], [10**9, 1]])
def test_windows_that_are_not_there_are_refused(tiny_index, rows):
    with pytest.raises(ShardError, match=r"of 287; run 'anyecg shard' again"):
        ChunkReader(tiny_index).read(rows)


def test_a_flipped_bit_in_any_chunk_is_found_and_its_windows_named(tiny_copy):
    index = open_index(tiny_copy)
    rng = np.random.default_rng(7)
    for shard, first, n_windows, offset, n_bytes, _ in index.tables["chunks"]:
        path = index.folder / index.head["shards"][shard]["name"]
        place = int(offset + rng.integers(n_bytes))
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << int(rng.integers(8))]))
        reader = ChunkReader(index)
        with pytest.raises(ShardError, match=f"windows {first} to {first + n_windows - 1} of the index are damaged"):
            reader.read([first])
        reader.close()


def test_a_cut_or_missing_shard_is_refused(tiny_copy):
    index = open_index(tiny_copy)
    os.truncate(tiny_copy / "shard-00000.h5", 3000)
    (tiny_copy / "shard-00001.h5").unlink()
    reader = ChunkReader(index)
    with pytest.raises(ShardError, match="damaged"):
        reader.read([0])
    with pytest.raises(ShardError, match=r"cannot be opened \(No such file or directory\)"):
        reader.read([150])
    reader.close()
