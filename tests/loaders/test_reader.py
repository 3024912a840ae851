import errno
import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from anyecg.loaders import reader as reader_module
from anyecg.loaders.counters import Counters
from anyecg.loaders.errors import ShardError
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.stream import open_index


def flip(index, row, rng):
    """Flip one bit of a chunk; return the first and last window of it."""
    shard, first, n_windows, offset, n_bytes, _ = index.tables["chunks"][row].tolist()
    place = offset + int(rng.integers(n_bytes))
    with (index.folder / index.head["shards"][shard]["name"]).open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << int(rng.integers(8))]))
    return first, first + n_windows - 1


@pytest.mark.parametrize("run_chunks", [1, 2, 3, 64])
@pytest.mark.parametrize(("n_slots", "threads"), [(1, 1), (2, 1), (2, 3), (256, 2)])
def test_the_reader_returns_what_was_written(tiny_set, tiny_index, run_chunks, n_slots, threads):
    rows = np.random.default_rng(6).integers(0, len(tiny_set[1]), 400)
    reader = WindowReader(tiny_index, run_chunks=run_chunks, n_slots=n_slots, threads=threads)
    for some in np.split(rows, 10):
        found = reader.read(some)
        assert found.dtype == np.int16
        assert found.shape == (40, 1, 50)
        np.testing.assert_array_equal(found[:, 0], tiny_set[1][some])
    assert reader.read([]).shape == (0, 1, 50)
    reader.close()


def test_windows_are_put_where_the_caller_wants_them(tiny_set, tiny_index):
    reader, out = WindowReader(tiny_index), np.empty((3, 1, 50), np.int16)
    assert reader.read([5, 200, 286], out) is out
    np.testing.assert_array_equal(out[:, 0], tiny_set[1][[5, 200, 286]])
    reader.close()


@pytest.mark.parametrize(("run_chunks", "n_calls"), [(1, 3), (3, 2)])
def test_a_run_is_read_once_and_in_one_go_where_its_chunks_touch(tiny_index, monkeypatch, run_chunks, n_calls):
    calls = []
    monkeypatch.setattr(reader_module.os, "preadv", lambda *given, real=os.preadv: calls.append(given) or real(*given))
    counters = Counters()
    reader = WindowReader(tiny_index, run_chunks=run_chunks, counters=counters)
    for _ in range(3):
        reader.read(np.arange(150))
    reader.close()
    assert len(calls) == n_calls
    totals = counters.totals()
    chunks = tiny_index.tables["chunks"][:3]
    # HDF5 keeps its own tables between the first chunk and the second.
    assert chunks[0, 3] + chunks[0, 4] < chunks[1, 3]
    assert chunks[1, 3] + chunks[1, 4] == chunks[2, 3]
    assert reader.n_bytes_read == totals["read"].n_bytes == totals["check"].n_bytes == chunks[:, 4].sum()
    assert (totals["read"].n_windows, totals["check"].n_windows, totals["gather"].n_windows) == (150, 150, 450)


def test_the_reader_keeps_a_bounded_number_of_files_open(tiny_set, tiny_index, monkeypatch):
    monkeypatch.setattr(reader_module, "MAX_OPEN_SHARDS", 2)
    # What earlier tests left to the collector holds files too.
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = WindowReader(tiny_index, n_slots=1)
    for rows in (slice(0, 9), slice(150, 160), slice(220, 230), slice(284, 287), slice(0, 2)):
        np.testing.assert_array_equal(reader.read(np.arange(287)[rows])[:, 0], tiny_set[1][rows])
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    reader.close()


def test_no_thread_is_left_after_closing(tiny_index):
    before = threading.active_count()
    reader = WindowReader(tiny_index, run_chunks=1, threads=3)
    reader.read(np.arange(200))
    assert threading.active_count() > before
    reader.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("rows", [[-1], [0, 287], [10**9, 1]])
def test_windows_that_are_not_there_are_refused(tiny_index, rows):
    with pytest.raises(ShardError, match=r"of 287; run 'anyecg shard' again"):
        WindowReader(tiny_index).read(rows)


@pytest.mark.parametrize("run_chunks", [1, 2])
def test_a_flipped_bit_in_any_chunk_is_found_and_its_windows_named(tiny_copy, run_chunks):
    index, rng = open_index(tiny_copy), np.random.default_rng(7)
    for row in range(len(index.tables["chunks"])):
        first, last = flip(index, row, rng)
        reader = WindowReader(index, run_chunks=run_chunks)
        with pytest.raises(ShardError, match=f"windows {first} to {last} of the index are damaged"):
            reader.read([first])
        reader.close()


def test_only_the_windows_of_a_damaged_chunk_are_lost(tiny_set, tiny_copy):
    index = open_index(tiny_copy)
    first, last = flip(index, 1, np.random.default_rng(8))
    reader = WindowReader(index, run_chunks=3)
    np.testing.assert_array_equal(reader.read([0, 149])[:, 0], tiny_set[1][[0, 149]])
    rows = np.arange(150)
    signal, is_bad = reader.read_what_is_whole(rows)
    np.testing.assert_array_equal(is_bad, (rows >= first) & (rows <= last))
    np.testing.assert_array_equal(signal[~is_bad, 0], tiny_set[1][:150][~is_bad])
    assert list(reader.bad) == [1]
    reader.close()


def test_an_unchecked_reader_looks_at_no_checksum(tiny_copy):
    index = open_index(tiny_copy)
    flip(index, 0, np.random.default_rng(9))
    reader = WindowReader(index, check=False)
    assert reader.read([0]).shape == (1, 1, 50)
    assert not reader.bad
    reader.close()


def test_a_cut_or_missing_shard_is_refused(tiny_copy):
    index = open_index(tiny_copy)
    os.truncate(tiny_copy / "shard-00000.h5", 3000)
    (tiny_copy / "shard-00001.h5").unlink()
    reader = WindowReader(index)
    with pytest.raises(ShardError, match="windows 0 to 63 of the index are damaged"):
        reader.read([0])
    with pytest.raises(ShardError, match=r"cannot be opened \(No such file or directory\)"):
        reader.read([150])
    reader.close()


def test_a_chunk_that_could_be_read_the_second_time_is_good_again(tiny_set, tiny_index, monkeypatch):
    reader = WindowReader(tiny_index, n_slots=1)

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(reader_module.os, "preadv", fails)
        with pytest.raises(
            ShardError, match=r"windows 0 to 63 .* cannot be read \(Input/output error\); mend the disk"
        ):
            reader.read([0])
    reader.read([200])
    np.testing.assert_array_equal(reader.read([0])[:, 0], tiny_set[1][[0]])
    reader.close()


def test_a_read_that_was_broken_off_leaves_nothing_half_read(tiny_set, tiny_index, monkeypatch):
    reader = WindowReader(tiny_index)

    def fails(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reader_module, "crc32", fails)
        with pytest.raises(KeyboardInterrupt):
            reader.read([3])
    np.testing.assert_array_equal(reader.read([3])[:, 0], tiny_set[1][[3]])
    reader.close()


@pytest.mark.parametrize("n_slots", [1, 2, 4, 64])
@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_read_ahead_changes_nothing(tiny_set, tiny_index, n_slots, threads):
    rng = np.random.default_rng(3)
    reader = WindowReader(tiny_index, run_chunks=1, n_slots=n_slots, threads=threads)
    asked = [rng.integers(0, 287, rng.integers(1, 6)) for _ in range(200)]
    for number, rows in enumerate(asked[:-1]):
        # Sometimes something else is asked for than was announced.
        then = asked[number + 1] if rng.random() < 0.7 else rng.integers(0, 287, 3)
        np.testing.assert_array_equal(reader.read(rows, then=then)[:, 0], tiny_set[1][rows])
    reader.close()


def test_what_was_read_ahead_is_not_read_again(tiny_index):
    reader = WindowReader(tiny_index, run_chunks=1, threads=2)
    reader.read([0], then=[64, 150])
    reader.read([64, 150])
    n_bytes = reader.n_bytes_read
    assert n_bytes == tiny_index.tables["chunks"][[0, 1, 3], 4].sum()
    reader.close()


def test_damage_that_was_met_reading_ahead_is_told_when_it_is_asked_for(tiny_copy):
    index = open_index(tiny_copy)
    first, last = flip(index, 1, np.random.default_rng(9))
    reader = WindowReader(index, run_chunks=1, threads=2)
    assert reader.read([0], then=[first]).shape == (1, 1, 50)
    with pytest.raises(ShardError, match=f"windows {first} to {last} of the index are damaged"):
        reader.read([first])
    reader.close()


def test_more_memory_than_the_half_of_it_is_refused(tiny_index, monkeypatch):
    monkeypatch.setattr(reader_module.os, "sysconf", {"SC_PHYS_PAGES": 50, "SC_PAGE_SIZE": 1000}.get)
    with pytest.raises(
        ShardError, match=r"7 runs of 1 chunks take 0.0 GB .* set stream.lanes or stream.pool_runs lower"
    ):
        WindowReader(tiny_index, run_chunks=1)


def test_a_read_that_was_cut_short_goes_on(tiny_set, tiny_index, monkeypatch):
    def short(file, buffers, offset):
        return real(file, [memoryview(buffers[0])[:100]], offset)

    real = os.preadv
    monkeypatch.setattr(reader_module.os, "preadv", short)
    monkeypatch.setattr(
        reader_module.os, "pread", lambda file, n, offset, real=os.pread: real(file, min(n, 999), offset)
    )
    reader = WindowReader(tiny_index, run_chunks=3)
    np.testing.assert_array_equal(reader.read(np.arange(287))[:, 0], tiny_set[1])
    assert reader.n_bytes_read == tiny_index.tables["chunks"][:, 4].sum()
    reader.close()
