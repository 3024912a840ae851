import h5py
import numpy as np
import pytest

from anyecg.loaders.errors import ShardError
from anyecg.loaders.stream import open_index
from anyecg.loaders.values import draw_values

from .tiny import SHARDS, write_tiny_shard


def test_values_are_those_of_the_files_in_the_order_of_the_index(tiny_set, tiny_index):
    folder = tiny_set[0]
    wanted = []
    for number in range(len(SHARDS)):
        with h5py.File(folder / f"shard-{number:05d}.h5") as file:
            wanted.append(file["draws/values"][...])
    found = draw_values(tiny_index)
    assert (found.dtype, tiny_index.components) == (np.float32, ("c",))
    np.testing.assert_array_equal(found, np.concatenate(wanted))
    of_test = draw_values(tiny_index, ["test"])
    rows = tiny_index.shards_of("test")[0].draws
    np.testing.assert_array_equal(of_test[rows], found[rows])
    assert np.isnan(of_test[: rows.start]).all()


def test_a_cohort_without_values_has_no_columns(small_index):
    assert draw_values(small_index).shape == (len(small_index.tables["draw_time"]), 0)


def test_missing_values_stay_missing(tiny_copy):
    path = tiny_copy / "shard-00003.h5"
    with h5py.File(path, "r+") as file:
        values = file["draws/values"][...]
        values[1] = np.nan
        file["draws/values"][...] = values
    index = open_index(tiny_copy)
    found = draw_values(index)[index.shards_of("test")[0].draws]
    np.testing.assert_array_equal(found, values)


def test_a_shard_of_other_draws_is_refused(tiny_copy):
    path = tiny_copy / "shard-00003.h5"
    path.unlink()
    write_tiny_shard(path, "test", SHARDS[3][1], seed=77, first_patient=30)
    with pytest.raises(ShardError, match=r"shard-00003\.h5: its draws are not those of the index; remove it"):
        draw_values(open_index(tiny_copy))


def test_damaged_linked_or_missing_shards_are_refused(tiny_copy):
    index, path = open_index(tiny_copy), tiny_copy / "shard-00001.h5"
    data = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        offset = file["draws/values"].id.get_chunk_info(0).byte_offset
    data[offset] ^= 4
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"shard-00001\.h5: damaged"):
        draw_values(index)
    path.unlink()
    with pytest.raises(ShardError, match=r"No such file or directory: .*shard-00001\.h5"):
        draw_values(index)
    path.symlink_to(tiny_copy / "shard-00000.h5")
    with pytest.raises(ShardError, match=r"shard-00001\.h5: cannot be opened"):
        draw_values(index)
