"""Kernels on the stored path give the same bytes on another vector family and on any number of threads."""

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from anyecg.kernels.prepare import prepare
from anyecg.kernels.presets import PRESETS

PRINT_HASHES = """
import hashlib
import numpy as np
from anyecg.kernels.beats import heart_features
from anyecg.kernels.median import running_median
from anyecg.kernels.prepare import prepare
from anyecg.kernels.presets import PRESETS
from anyecg.kernels.resample import resample
from anyecg.kernels.segment import fill_gaps, quality, quantise

random = np.random.default_rng(8)
mv_WT = (0.05 * random.standard_normal((11, 5000)).cumsum(1)).astype(np.float32)
found = {f"prepare {p} {z}": prepare(mv_WT, preset=p, zscore=z) for p in PRESETS for z in (False, True)}
found |= {f"resample {fs} {q}": resample(mv_WT[0], fs_in=fs, fs_out=500, quality=q)
          for fs in (128, 250, 257, 300, 1000) for q in ("scipy", "high")}
found["resample int16"] = resample((1000 * mv_WT[0]).astype(np.int16), fs_in=300, fs_out=500)
found["quality"] = quality(mv_WT, fs=500)
found["quantise"], found["scale"] = quantise(mv_WT)
found["gaps"] = fill_gaps(np.where(random.random(5000) < 0.1, np.nan, mv_WT[0]), fs=500)[0]
found["median"] = running_median(mv_WT.astype(float), 201)
beat_T = np.exp(-(((np.arange(5000) + 40 * (np.arange(5000) // 900)) % 400 - 200) / 8.0) ** 2)
found["heart"] = heart_features(0.2 * mv_WT + beat_T.astype(np.float32), 500)
assert np.isfinite(found["heart"]).all()
for name, array in found.items():
    print(name, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest())
"""


def hashes(**settings):
    """Return a line for each result of the kernels; the cache of compiled code keeps processors apart."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT_HASHES], capture_output=True, text=True, check=True, env={**os.environ, **settings}
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86 processors")
def test_another_vector_family_gives_the_same_bytes():
    here = hashes()
    assert len(here) == 23
    assert hashes(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+avx2,+fma") == here
    # No vectors wider than two numbers and no fused multiply-add at all.
    assert hashes(NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="+sse2") == here


@pytest.mark.parametrize("preset", PRESETS)
def test_threads_give_the_same_bytes(preset):
    window_WT = np.random.default_rng(9).standard_normal((40, 5000)).astype(np.float32)
    with ThreadPoolExecutor(3) as threads:
        parts = list(threads.map(lambda rows: prepare(rows, preset=preset), np.array_split(window_WT, 7)))
    np.testing.assert_array_equal(np.concatenate(parts), prepare(window_WT, preset=preset))
