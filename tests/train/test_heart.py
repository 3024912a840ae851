import logging
import os
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from anyecg.kernels.beats import heart_features
from anyecg.loaders.errors import ModelError
from anyecg.loaders.index import write_index
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.shard_file import ShardWriter, describe_shard
from anyecg.loaders.stream import open_index
from anyecg.slurm.launch import find_mpirun
from anyecg.train.heart import make_heart, read_heart

from ..loaders.tiny import attributes, tiny_sets

SHARDS = (("train", 150), ("train", 70), ("val", 64), ("test", 3))
MAKE = """
import sys
from mpi4py import MPI
from anyecg.loaders.stream import open_index
from anyecg.train.heart import make_heart

index = open_index(sys.argv[1])
print("begins", flush=True)
make_heart(sys.argv[2], index, comm=MPI.COMM_WORLD)
"""


def spikes(n_windows, rng):
    """Return windows of 10 s at 250 Hz, int16 in uV: a spike for each beat on noise, every tenth window flat."""
    signal_WT = rng.normal(0, 15, (n_windows, 2500))
    for signal_T in signal_WT:
        at = np.cumsum(rng.normal(1.0, 0.05, 30) * rng.uniform(90, 260))
        for place in at[(at > 20) & (at < 2480)].astype(int):
            signal_T[place - 8 : place + 9] += 1000 * np.exp(-0.5 * (np.arange(-8, 9) / 2.5) ** 2)
    signal_WT[::10] = 0
    return signal_WT.astype(np.int16)


def write_set(folder, seed=0):
    """Write shards of 250-Hz windows and their index."""
    folder.mkdir()
    for number, (split, n_windows) in enumerate(SHARDS):
        rng = np.random.default_rng([seed, number])
        sets = tiny_sets(n_windows, split, rng, first_patient=10 * number)
        sets["windows/scale"] = np.full(n_windows, 0.001)
        form = {**attributes(split), "fs": 250, "samples": 2500}
        with ShardWriter(folder / f"shard-{number:05d}.h5", form) as writer:
            writer.append(spikes(n_windows, rng)[:, None])
            writer.finish(sets, {"windows": n_windows, "pairs": len(sets["pairs/window"])})
    described = [describe_shard(path) for path in sorted(folder.glob("shard-*.h5"))]
    counts = {what: sum(shard["counts"][what] for shard in described) for what in ("pairs", "windows")}
    write_index(folder, described, {"stage_hash": "3", "cohort_hash": "4", "counts": counts})
    return folder


@pytest.fixture
def index(tmp_path):
    return open_index(write_set(tmp_path / "shards"))


def on_ranks(n_ranks, index, path):
    command = [find_mpirun(), "-n", str(n_ranks), sys.executable, "-c", MAKE, str(index.folder), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=environment, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return path.read_bytes()


def flip(index, number):
    """Turn one bit in a chunk of signal; return its first and last window."""
    shard, first, n_windows, offset, *_ = np.asarray(index.tables["chunks"])[number].tolist()
    with (index.folder / index.head["shards"][shard]["name"]).open("r+b") as file:
        file.seek(offset + 77)
        byte = file.read(1)[0]
        file.seek(offset + 77)
        file.write(bytes([byte ^ 4]))
    return first, first + n_windows - 1


def test_every_window_has_the_features_of_its_signal(index, tmp_path):
    make_heart(tmp_path / "heart.h5", index, comm=MPI.COMM_SELF)
    heart = read_heart(tmp_path / "heart.h5", index)
    assert (heart.lead, heart.n_damaged) == ("I", 0)
    reader = WindowReader(index)
    for split in ("train", "val", "test"):
        rows, feature_WF = heart.windows[split]
        np.testing.assert_array_equal(rows, index.windows_of(split))
        np.testing.assert_array_equal(feature_WF, heart_features(reader.read(rows)[:, 0], 250))
        assert feature_WF.dtype == np.float32
    reader.close()
    rates = heart.windows["train"][1][:, 0]
    assert 0.1 <= np.isnan(rates).mean() < 0.2
    assert np.nanmin(rates) > 50
    assert np.nanmax(rates) < 180


def test_any_number_of_ranks_writes_the_same_bytes_with_damaged_chunks_too(index, tmp_path, caplog):
    whole = [on_ranks(n_ranks, index, tmp_path / f"whole-{n_ranks}.h5") for n_ranks in (1, 2, 3)]
    assert whole[0] == whole[1] == whole[2]
    lost = np.concatenate([np.arange(first, last + 1) for first, last in (flip(index, 1), flip(index, 4))])
    damaged = [on_ranks(n_ranks, index, tmp_path / f"damaged-{n_ranks}.h5") for n_ranks in (1, 2, 3)]
    assert damaged[0] == damaged[1] == damaged[2] != whole[0]
    with caplog.at_level(logging.INFO):
        make_heart(tmp_path / "heart.h5", index, comm=MPI.COMM_SELF)
    assert "shard-00000.h5: windows 64 to 127 of the index are damaged" in caplog.text
    assert f"damaged={len(lost)}" in caplog.text
    heart, before = (read_heart(tmp_path / name, index) for name in ("heart.h5", "whole-1.h5"))
    assert heart.n_damaged == len(lost)
    for split, (rows, feature_WF) in heart.windows.items():
        is_lost = np.isin(rows, lost)
        assert np.isnan(feature_WF[is_lost]).all()
        np.testing.assert_array_equal(feature_WF[~is_lost], before.windows[split][1][~is_lost])


def test_a_whole_file_of_these_shards_is_not_made_again_and_any_other_is(index, tmp_path):
    path = tmp_path / "heart.h5"
    make_heart(path, index, comm=MPI.COMM_SELF)
    inode, data = path.stat().st_ino, path.read_bytes()
    make_heart(path, index, comm=MPI.COMM_SELF)
    assert path.stat().st_ino == inode
    with h5py.File(path) as file:
        place = file["val/features"].id.get_chunk_info(0).byte_offset
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(ModelError, match="damaged"):
        read_heart(path, index)
    for harm in (path.read_bytes(), data[: len(data) // 2], b"", b"other"):
        path.write_bytes(harm)
        make_heart(path, index, comm=MPI.COMM_SELF)
        assert path.read_bytes() == data
    other = open_index(write_set(tmp_path / "others", seed=1))
    with pytest.raises(ModelError, match="made from other shards"):
        read_heart(path, other)
    make_heart(path, other, comm=MPI.COMM_SELF)
    assert read_heart(path, other).windows["test"][1].shape == (3, 4)


def test_a_killed_run_leaves_no_half_file_and_the_next_one_none_of_its_own(index, tmp_path):
    whole = on_ranks(1, index, tmp_path / "whole.h5")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".heart.h5.4.tmp").write_bytes(whole[:1000])
    for seconds in (0.0, 0.02, 0.05, 0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", MAKE, str(index.folder), str(folder / "heart.h5")], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(seconds)
        process.kill()
        process.communicate()
        assert not (folder / "heart.h5").exists() or (folder / "heart.h5").read_bytes() == whole
    (folder / "heart.h5").unlink(missing_ok=True)
    assert on_ranks(1, index, folder / "heart.h5") == whole
    assert [path.name for path in folder.iterdir()] == ["heart.h5"]


def test_no_window_below_100_hz_has_features(tiny_index, tmp_path):
    make_heart(tmp_path / "heart.h5", tiny_index, comm=MPI.COMM_SELF)
    heart = read_heart(tmp_path / "heart.h5", tiny_index)
    assert all(np.isnan(feature_WF).all() for _, feature_WF in heart.windows.values())
    assert sum(len(rows) for rows, _ in heart.windows.values()) == len(tiny_index.tables["window_visit"])


def test_a_missing_file_says_what_to_do(tiny_index, tmp_path):
    with pytest.raises(ModelError, match="no features of the heart; run 'anyecg evaluate' again"):
        read_heart(tmp_path / "heart.h5", tiny_index)
