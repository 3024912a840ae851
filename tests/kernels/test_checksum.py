import h5py
import numpy as np
import pytest

from anyecg.kernels.checksum import fletcher32


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 359, 360, 65_535, 320_000])
@pytest.mark.parametrize("what", ["zeros", "ones", "all bits", "random", "small"])
def test_fletcher32_is_what_hdf5_stores_behind_a_chunk(n, what, tmp_path):
    rng = np.random.default_rng(n)
    values = {
        "zeros": np.zeros(n, np.int16),
        "ones": np.ones(n, np.int16),
        "all bits": np.full(n, -1, np.int16),
        "random": rng.integers(-(2**15), 2**15, n).astype(np.int16),
        "small": rng.integers(-300, 300, n).astype(np.int16),
    }[what]
    _compare(values, tmp_path)


@pytest.mark.parametrize("n", [1, 3, 129, 4097])
def test_fletcher32_of_an_odd_number_of_bytes(n, tmp_path):
    _compare(np.random.default_rng(n).integers(0, 256, n).astype(np.uint8), tmp_path)


def _compare(values, folder):
    with h5py.File(folder / "one.h5", "w") as file:
        stored = file.create_dataset("x", data=values, chunks=values.shape, fletcher32=True).id.read_direct_chunk((0,))
    assert fletcher32(stored[1][:-4]) == int.from_bytes(stored[1][-4:], "little")
    assert stored[1][:-4] == values.tobytes()
