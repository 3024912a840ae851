import subprocess
import sys

import numpy as np
import pytest

from anyecg.loaders.errors import ModelError
from anyecg.slurm.launch import find_mpirun
from anyecg.train.shared import Node

JOB = """
import numpy as np
from mpi4py import MPI
from anyecg.loaders.errors import ModelError
from anyecg.train.shared import Node

comm = MPI.COMM_WORLD
with Node(comm) as node:
    filled = node.filled((6, 4), np.float32, lambda array, rank, n: array[rank::n].fill(7 + rank))
    made = node.made(lambda: np.arange(5) * (comm.rank + 1))
    empty = node.filled((0, 4), np.int64, lambda array, rank, n: None)
    assert filled[:, 0].tolist() == [7, 8, 9] * 2 and made.tolist() == [0, 1, 2, 3, 4] and empty.shape == (0, 4)
    comm.barrier()
    if comm.rank == comm.size - 1:
        made[0] = 42
    comm.barrier()
    assert made[0] == 42
    def fail(array, rank, n):
        if rank == 1:
            raise ModelError("damaged")

    for size in (10**14, 10):
        try:
            node.filled((size,), np.int64, fail)
        except ModelError as cause:
            print(f"said {cause}", flush=True)
"""


def test_ranks_of_a_node_see_one_array_and_all_hear_of_an_error(tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    command = [find_mpirun(), "-n", "3", sys.executable, tmp_path / "job.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    said = done.stdout.split("said ")
    assert sum("GB free, the ranks of this node want to share 800000.0 GB" in text for text in said) == 3
    assert sum("damaged (rank 1)" in text for text in said) == 3


def test_a_process_alone_has_plain_arrays():
    with Node() as node:
        np.testing.assert_array_equal(node.made(lambda: [1, 2]), [1, 2])
        with pytest.raises(ModelError, match="damaged"):
            node.filled((3,), np.int64, fail)


def fail(array, rank, n):
    raise ModelError("damaged")
