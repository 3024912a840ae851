from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anyecg.loaders.errors import ShardError
from anyecg.loaders.stream import ChunkReader, batch, epoch_order, n_batches, rows_of_rank

OPTIONS = {"seed": 5, "epoch": 2}


def test_an_epoch_visits_each_pair_once(small_index):
    for split in ("train", "val", "test"):
        for horizon_min in (60, 30, 15):
            order = epoch_order(small_index, **OPTIONS, split=split, horizon_min=horizon_min)
            assert np.array_equal(np.sort(order), small_index.pairs_of(split, horizon_min))
            visits = small_index.tables["window_visit"][small_index.tables["pair_window"][order]]
            assert set(small_index.tables["visit_split"][visits]) == {("train", "val", "test").index(split)}


@pytest.mark.parametrize("batch_size", [1, 7, 16, 1000])
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 6, 8, 12, 16, 64])
def test_batches_and_their_parts_on_ranks_make_up_the_epoch(small_index, batch_size, n_ranks):
    order = epoch_order(small_index, **OPTIONS)
    parts = [
        rows_of_rank(batch(small_index, number, **OPTIONS, batch_size=batch_size), rank, n_ranks)
        for number in range(n_batches(small_index, batch_size=batch_size))
        for rank in range(n_ranks)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), order)


def test_seed_and_epoch_change_the_order(small_index):
    order = epoch_order(small_index, seed=5, epoch=2)
    assert (epoch_order(small_index, seed=5, epoch=2) == order).all()
    assert (epoch_order(small_index, seed=5, epoch=3) != order).any()
    assert (epoch_order(small_index, seed=6, epoch=2) != order).any()


def test_pairs_are_found_by_their_place_without_a_list_of_all(small_index):
    horizons = np.asarray(small_index.tables["pair_horizons"]).copy()
    horizons[::3] &= 0b011
    shards = [dict(shard) for shard in small_index.head["shards"]]
    first = 0
    for shard in shards:
        bits = horizons[first : first + shard["lengths"]["pairs"]]
        shard["horizons"] = [int((bits & bit > 0).sum()) for bit in (1, 2, 4)]
        first += len(bits)
    index = replace(
        small_index,
        head={**small_index.head, "shards": shards},
        tables={**small_index.tables, "pair_horizons": horizons},
    )
    visit = np.asarray(index.tables["window_visit"])[index.tables["pair_window"]]
    split_of_pair = np.asarray(index.tables["visit_split"])[visit]
    for number, split in enumerate(("train", "val", "test")):
        for bit, horizon_min in ((1, 60), (4, 15)):
            wanted = np.flatnonzero((split_of_pair == number) & (horizons & bit > 0))
            assert index.n_pairs(split, horizon_min) == len(wanted)
            assert index.pairs_of(split, horizon_min).tolist() == wanted.tolist()
            places = np.random.default_rng(number).permutation(len(wanted))[:20]
            assert index.pairs_at(split, horizon_min, places).tolist() == wanted[places].tolist()


def test_a_batch_beyond_the_epoch_is_refused(small_index):
    with pytest.raises(ValueError, match="batch 9999"):
        batch(small_index, 9999, **OPTIONS, batch_size=16)


def test_the_reader_returns_what_hdf5_holds(small_index):
    import h5py

    stored = []
    for shard in small_index.head["shards"]:
        with h5py.File(small_index.folder / shard["name"]) as file:
            stored.append(file["windows/signal"][...])
    stored = np.concatenate(stored)
    rows = np.random.default_rng(6).integers(0, len(stored), 200)
    reader = ChunkReader(small_index, cache_chunks=2)
    np.testing.assert_array_equal(reader.read(rows), stored[rows])
    reader.close()


def test_a_flipped_bit_in_any_chunk_is_found_and_its_windows_named(small_run, tmp_path):
    import shutil

    from anyecg.loaders.stream import open_index

    index = open_index(shutil.copytree(small_run / "shards", tmp_path / "shards"))
    rng = np.random.default_rng(7)
    for shard, first, n_windows, offset, n_bytes, _ in index.tables["chunks"]:
        path = index.folder / index.head["shards"][shard]["name"]
        place = int(offset + rng.integers(n_bytes))
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << int(rng.integers(8))]))
        with pytest.raises(ShardError, match=f"windows {first} to {first + n_windows - 1} of the index are damaged"):
            ChunkReader(index).read([first])


def test_the_reader_leaves_no_open_file(small_index):
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = ChunkReader(small_index)
    reader.read([0, 1])
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
