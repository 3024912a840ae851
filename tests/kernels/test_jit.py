import os
import re
import subprocess
import sys

import pytest

# Two kernels, of which one calls the other.
WORK = """
import sys
import numpy as np
sys.stdin.readline()
from anyecg.kernels.checksum import fletcher32
from anyecg.kernels.counter import permute
print(fletcher32(np.arange(64, dtype=np.uint8)), permute(np.arange(5), 5, 7))
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), "NUMBA_DEBUG_CACHE": "1"},
    )  # fmt: skip


def test_processes_that_start_together_compile_each_kernel_once(tmp_path):
    together = [start(tmp_path / "cache") for _ in range(3)]
    for process in together:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=200) for process in together]
    assert [process.returncode for process in together] == [0] * 3, said
    saved = [name for out, _ in said for name in re.findall(r"data saved to '.*/([^/']+)'", out)]
    assert saved
    assert len(saved) == len(set(saved))
    assert len({out.splitlines()[-1] for out, _ in said}) == 1
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_write_to_gets_no_compiled_code(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    with start(folder) as process:
        _, said = process.communicate("go\n", timeout=100)
    assert process.returncode != 0
    assert "others may write compiled code there; give a folder of your own" in said
    assert not list(folder.iterdir())


def test_a_kernel_that_cannot_be_compiled_does_not_keep_others_waiting(tmp_path):
    from numba.core.errors import TypingError

    from anyecg.kernels import _jit

    @_jit.kernel
    def wrong(x):
        return x + "text"

    with pytest.raises(TypingError):
        wrong(3)
    assert _jit._turn._depth == 0
    assert _jit._turn._file is None
