import hashlib
import json
import zlib

import h5py
import numpy as np
import pytest

from anyecg.kernels.checksum import fletcher32
from anyecg.loaders.errors import ShardError
from anyecg.loaders.shard_file import ShardWriter, describe_shard, read_through
from anyecg.loaders.shard_parse import ATTRIBUTES, CHUNK_WINDOWS, SETS, SIGNAL

from .tiny import attributes, tiny_sets, write_tiny_shard


@pytest.mark.parametrize("form", ["none", "bitshuffle-lz4"])
@pytest.mark.parametrize("n_windows", [1, 63, 64, 65, 150, 192])
def test_a_shard_is_described_as_it_was_written(tmp_path, form, n_windows):
    path = tmp_path / "shard-00000.h5"
    signal_WT = write_tiny_shard(path, "val", n_windows, form=form)
    found = describe_shard(path)
    sets = tiny_sets(n_windows, "val", np.random.default_rng(0))
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file[SIGNAL][:, 0], signal_WT)
        infos = [file[SIGNAL].id.get_chunk_info(number) for number in range(-(-n_windows // 64))]
        horizons = file["pairs/horizons"][...]
    data = path.read_bytes()
    stored = [data[info.byte_offset : info.byte_offset + info.size] for info in infos]
    assert found.pop("chunks") == [
        (64 * number, min(64, n_windows - 64 * number), info.byte_offset, info.size, zlib.crc32(stored[number]))
        for number, info in enumerate(infos)
    ]
    assert found == {
        "name": path.name, "sha256": hashlib.sha256(data).hexdigest(), "n_bytes": len(data), "split": "val",
        "plan_hash": "2", "counts": {"windows": n_windows, "pairs": len(horizons)},
        "lengths": {"draws": 6, "visits": 4, "windows": n_windows, "pairs": len(horizons)},
        "horizons": [int((horizons & bit > 0).sum()) for bit in (1, 2, 4)],
        "attributes": {
            key: value for key, value in attributes("val", form).items() if key not in ("split", "plan_hash")
        },
    }  # fmt: skip
    assert set(sets) | {SIGNAL} == set(SETS)


def test_every_set_of_the_form_is_there_with_fletcher32(tiny_set):
    with h5py.File(tiny_set[0] / "shard-00000.h5") as file:
        for name, dtype in SETS.items():
            assert file[name].fletcher32, name
            assert file[name].dtype == dtype
            assert file[name].maxshape[0] is None
            assert file[name].chunks[0] == (CHUNK_WINDOWS if name == SIGNAL else 16_384)
        assert file["windows/signal"].shape[1:] == (1, 50)
        assert file["draws/labels"].chunks == (16_384, 2)
        assert set(file.attrs) == set(ATTRIBUTES)
        assert list(json.loads(file.attrs["counts"])) == ["pairs", "windows"]


@pytest.mark.parametrize(("number", "n_last"), [(1, 6), (3, 3)])
def test_rows_behind_the_last_window_are_zero(tiny_set, number, n_last):
    path = tiny_set[0] / f"shard-0000{number}.h5"
    chunk = describe_shard(path)["chunks"][-1]
    stored = path.read_bytes()[chunk.offset : chunk.offset + chunk.n_bytes]
    assert len(stored) == 64 * 50 * 2 + 4
    assert not any(stored[n_last * 50 * 2 : -4])
    assert int.from_bytes(stored[-4:], "little") == fletcher32(stored[:-4])


def test_the_same_windows_in_other_parts_are_the_same_bytes(tmp_path):
    rng = np.random.default_rng(1)
    signal_WT = rng.integers(-9, 9, (200, 50)).astype(np.int16)
    sets = tiny_sets(200, "train", rng)
    for name, cuts in (("a", [64, 128, 192]), ("b", [1, 2, 130, 199]), ("c", []), ("d", [0, 100, 100])):
        with ShardWriter(tmp_path / name, attributes("train")) as writer:
            for part in np.split(signal_WT, cuts):
                writer.append(part[:, None])
            writer.finish(sets, {})
        assert (tmp_path / name).read_bytes() == (tmp_path / "a").read_bytes()
    with pytest.raises(OSError, match="exists"):
        ShardWriter(tmp_path / "a", attributes("train"))


def test_a_shard_may_be_empty_of_windows(tmp_path):
    path = tmp_path / "shard-00000.h5"
    with ShardWriter(path, attributes("train")) as writer:
        writer.finish(tiny_sets(0, "train", np.random.default_rng(0)), {"windows": 0})
    found = describe_shard(path)
    assert (found["chunks"], found["lengths"]["windows"], found["horizons"]) == ([], 0, [0, 0, 0])


def test_a_flipped_bit_of_signal_is_found_by_its_windows(tmp_path):
    path = tmp_path / "shard-00000.h5"
    write_tiny_shard(path)
    data = bytearray(path.read_bytes())
    chunk = describe_shard(path)["chunks"][1]
    data[chunk.offset + 17] ^= 2
    path.write_bytes(data)
    with pytest.raises(ShardError, match="windows 64 to 127 are damaged; remove it and run 'anyecg shard' again"):
        describe_shard(path)


def test_reading_through_gives_hashes_and_the_damaged_chunks(tmp_path):
    rng = np.random.default_rng(4)
    path = tmp_path / "x"
    parts = [rng.integers(0, 256, n, np.uint8).tobytes() for n in (3_000_000, 500, 7, 600, 2_500_000)]
    for which in (1, 3):
        parts[which] += fletcher32(parts[which]).to_bytes(4, "little")
    data = b"".join(parts)
    path.write_bytes(data)
    second = sum(map(len, parts[:3]))
    places = [(64, 20, 3_000_000, 504), (0, 64, second, 604)]
    chunks, sha256, damaged = read_through(path, places)
    assert chunks == [(0, 64, second, 604, zlib.crc32(parts[3])), (64, 20, 3_000_000, 504, zlib.crc32(parts[1]))]
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert damaged == []
    assert read_through(path, []) == ([], sha256, [])
    changed = bytearray(data)
    changed[3_000_100] ^= 1
    changed[second + 603] ^= 1
    path.write_bytes(changed)
    _, other, damaged = read_through(path, places)
    assert other == hashlib.sha256(changed).hexdigest()
    assert damaged == [(0, 63), (64, 83)]
    path.write_bytes(data[: second + 300])
    _, cut, damaged = read_through(path, places)
    assert (cut, damaged) == (hashlib.sha256(data[: second + 300]).hexdigest(), [(0, 63)])
    path.write_bytes(data)
    with pytest.raises(ShardError, match="two chunks of windows/signal share their bytes"):
        read_through(path, [(0, 64, 0, 100), (64, 64, 99, 100)])
    assert len(read_through(path, [(0, 64, 0, 100), (64, 64, 100, 100)])[0]) == 2
