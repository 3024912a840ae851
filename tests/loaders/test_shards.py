import shutil

import h5py
import numpy as np
import polars as pl
import pytest
import wfdb
from mpi4py import MPI
from scipy.signal import resample_poly

from anyecg.kernels.segment import DROPPED, FLAT, HUGE, NONFINITE, PADDED
from anyecg.loaders.cohort import open_cohort
from anyecg.loaders.errors import RecordError
from anyecg.loaders.index import open_index
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.records import Record, open_record
from anyecg.loaders.shard_config import ShardConfig
from anyecg.loaders.shards import write_shards
from anyecg.loaders.verify import verify
from anyecg.loaders.windows import drop_reasons, find_windows, store_windows

from ..conftest import DEMO, anyecg, on_ranks, write_small_config
from ..kernels.test_prepare import scipy_chain


def cut_record(record, config, *, keep_all=False):
    """Return what a folder's shard takes of a record, or with ``keep_all`` what prediction scores."""
    found = find_windows(record, pad_short=config.pad_short or keep_all)
    chosen = (found.flags_W & DROPPED) == 0 if not keep_all else np.ones(len(found.flags_W), bool)
    signal_WT, scale_W = store_windows(found, chosen, fs=config.fs, preset=config.preset)
    return signal_WT, scale_W, found.start_W[chosen] / found.fs, found.flags_W[chosen], drop_reasons(found.flags_W)


def memory_record(mv, fs=500):
    return Record("r", fs, len(mv), ("II",), None, lambda start, stop: np.asarray(mv, np.float32)[start:stop])


def test_one_ecg_can_be_followed_from_its_file_to_its_window_pair_and_label(small_run, small_index):
    """The way of one ECG in design order, each step against SciPy, wfdb and the CSV of labels."""
    cohort = open_cohort(small_run / "cohort")
    row = 7
    name = cohort.records["path"][row]
    key = cohort.visits["visit"][int(cohort.records["visit_row"][row])]
    mv = wfdb.rdrecord(str(DEMO / "records" / name)).p_signal[:, 0]
    signal = resample_poly(mv, 5, 3)
    raw_WT = np.stack([signal[s : s + 5000] for s in range(0, len(signal) - 4999, 5000)])
    for shard in small_index.head["shards"]:
        with h5py.File(small_index.folder / shard["name"]) as file:
            (visit,) = np.flatnonzero(file["visits/visit"][...] == key) if key in file["visits/visit"][...] else (None,)
            if visit is None:
                continue
            windows = np.flatnonzero(file["windows/visit"][...] == visit)
            stored_WT = file["windows/signal"][windows][:, 0] * file["windows/scale"][windows][:, None]
            standard_WT = (stored_WT - stored_WT.mean(1, keepdims=True)) / stored_WT.std(1, keepdims=True)
            np.testing.assert_allclose(standard_WT, scipy_chain(raw_WT, 500, "ecgfounder"), atol=2e-3)
            assert file["windows/start"][windows].tolist() == [10_000_000 * n for n in range(len(raw_WT))]
            (draw,) = np.flatnonzero(file["draws/visit"][...] == visit)
            assert file["draws/time"][draw] == round(len(mv) / 300 * 5e5)
            pairs = np.flatnonzero(file["pairs/draw"][...] == draw)
            assert file["pairs/window"][pairs].tolist() == windows.tolist()
            assert (file["pairs/horizons"][pairs] == 7).all()
            offsets = file["windows/start"][windows] / 1e6 - file["draws/time"][draw] / 1e6
            np.testing.assert_allclose(file["pairs/offset"][pairs], offsets, atol=1e-3)
            wanted = pl.read_csv(DEMO / "labels.csv").filter(pl.col("record") == name).fill_null(-1).row(0)[2:]
            assert tuple(file["draws/labels"][draw]) == wanted
            assert {file.attrs["split"]} == {("train", "val", "test")[file["visits/split"][visit]]}
            return
    pytest.fail(f"{name} is in no shard")


def test_in_equals_kept_plus_dropped_with_every_fault(tmp_path):
    rng = np.random.default_rng(9)
    records = tmp_path / "records"
    records.mkdir()
    noise = rng.standard_normal(9000).astype(np.float64)
    gap, flat, huge = noise.copy(), noise.copy(), noise.copy()
    gap[2000:2100], flat[:3000], huge[8000] = np.nan, 0.1, 25
    signals = {"good": noise, "gap": gap, "flat": flat, "huge": huge, "short": noise[:2000], "lost": noise}
    signals["dead"] = np.zeros(9000)
    for name, signal in signals.items():
        wfdb.wrsamp(
            name, 300, ["mV"], ["I"], signal[:, None], fmt=["16"], adc_gain=[1000], baseline=[0], write_dir=str(records)
        )
    (records / "lost.dat").unlink()
    (tmp_path / "labels.csv").write_text("record,patient,t\n" + "".join(f"{name},{name},1\n" for name in signals))
    (tmp_path / "c.toml").write_text(
        'folder = "run"\n[cohort]\npath = "records"\nlabels = "labels.csv"\ntest_fraction = 0.3\n'
        "[shard]\nmax_bad_fraction = 0.5\nranks = 1\n"
    )
    assert anyecg("cohort", tmp_path / "c.toml").returncode == 0
    done = anyecg("shard", tmp_path / "c.toml")
    assert done.returncode == 0, done.stderr
    counts = open_index(tmp_path / "run/shards").head["counts"]
    flags = {what: counts.pop(what) for what in list(counts) if what.startswith("windows kept but")}
    assert counts == {
        "records": 7, "records kept": 4, "records dropped: unreadable": 1, "records dropped: shorter than a window": 1,
        "records dropped: every window dropped": 1, "windows cut": 15, "windows kept": 9, "windows dropped: flat": 4,
        "windows dropped: over 20 mV": 1, "windows dropped: not finite": 1, "windows": 9, "draws": 7, "visits": 7,
        "pairs": 9,
    }  # fmt: skip
    assert set(flags) <= {"windows kept but flagged: over 4 mV", "windows kept but flagged: no beat found"}
    assert len((tmp_path / "run/shards/quarantine.csv").read_text().splitlines()) == 1 + 3
    said = (tmp_path / "run/log/shard.log").read_text().splitlines()[-1]
    assert "done=18 of=18" in said
    assert "windows_per_s=" in said
    assert "MB_per_s=" in said
    for drop in ("flat 4", "over 20 mV 1", "not finite 1", "unreadable 1", "shorter than a window 1"):
        assert drop in said


ELSEWHERE = {
    "TZ": "Asia/Kathmandu", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONHASHSEED": "4711",
    # As in tests/kernels/test_same_bytes.py, whose compiled code this shares.
    "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma",
}  # fmt: skip


def test_shards_are_the_same_bytes_on_any_number_of_ranks_and_in_any_environment(small_run, tmp_path):
    """R14; the small run's own shards were made on 2 ranks."""
    wanted = {path.name: path.read_bytes() for path in (small_run / "shards").glob("*") if path.name != "config.toml"}
    config = write_small_config(tmp_path)
    assert on_ranks(1, "cohort", config, **ELSEWHERE).returncode == 0
    for n_ranks, environment in ((1, ELSEWHERE), (5, {})):
        done = on_ranks(n_ranks, "shard", config, **environment)
        assert done.returncode == 0, done.stderr
        found = {p.name: p.read_bytes() for p in (tmp_path / "run/shards").glob("*") if p.name != "config.toml"}
        assert found == wanted
        shutil.rmtree(tmp_path / "run" / "shards")


def test_a_restart_keeps_finished_shards_and_makes_the_lost_one_again(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (run / "shards").glob("*.h5")}
    times = {path.name: path.stat().st_mtime_ns for path in (run / "shards").glob("*.h5")}
    (run / "shards" / "shard-00001.h5").unlink()
    (run / "shards" / ".shard-00002.h5.77.tmp").touch()
    done = anyecg("shard", run / "config.toml", f"folder={run}")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (run / "shards").glob("*.h5")} == before
    kept = {path.name for path in (run / "shards").glob("*.h5") if path.stat().st_mtime_ns == times[path.name]}
    assert kept == set(before) - {"shard-00001.h5"}
    assert not list((run / "shards").glob(".*.tmp"))


def test_a_long_visit_is_read_twice_and_gives_the_same_bytes(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("anyecg.loaders.collect._KEPT_SAMPLES", 0)
    cohort = open_cohort(small_run / "cohort")
    write_shards(
        tmp_path, cohort, ShardConfig(pad_short=True, windows_per_shard=40), MPI.COMM_SELF, seed=3, stage_hash=""
    )
    for path in (small_run / "shards").glob("*.h5"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_recording_too_long_for_memory_is_quarantined_and_counted(small_run, tmp_path, monkeypatch):
    cohort = open_cohort(small_run / "cohort")
    limit = int(cohort.records["n_samples"].max()) - 1
    n_long = int((cohort.records["n_samples"] > limit).sum())
    monkeypatch.setattr("anyecg.loaders.collect._MAX_SAMPLES", limit)
    config = ShardConfig(pad_short=True, windows_per_shard=40, max_bad_fraction=1)
    write_shards(tmp_path, cohort, config, MPI.COMM_SELF, seed=3, stage_hash="")
    assert open_index(tmp_path).head["counts"].get("records dropped: unreadable", 0) == n_long > 0
    assert (tmp_path / "quarantine.csv").read_text().count(f"wanted at most {limit}: split the record") == n_long


def test_a_filter_makes_the_files_smaller_and_changes_no_window(small_run, small_index, tmp_path):
    cohort = open_cohort(small_run / "cohort")
    config = ShardConfig(pad_short=True, windows_per_shard=40, filter="bitshuffle-lz4")
    write_shards(tmp_path, cohort, config, MPI.COMM_SELF, seed=3, stage_hash="")
    packed = open_index(tmp_path)
    rows = np.random.default_rng(6).permutation(len(packed.tables["window_scale"]))
    np.testing.assert_array_equal(WindowReader(packed).read(rows), WindowReader(small_index).read(rows))
    n_bytes = [sum(shard["n_bytes"] for shard in index.head["shards"]) for index in (packed, small_index)]
    assert n_bytes[0] < 0.9 * n_bytes[1]
    assert verify(tmp_path)[1] == []


def test_faulty_windows_are_dropped_by_reason_and_kept_for_prediction():
    rng = np.random.default_rng(4)
    mv = rng.standard_normal(25_000) * 0.5
    mv[5000:10_000] = 0.25
    mv[10_000] = 30
    mv[15_000:15_100] = np.nan
    *_, start_W, _, counts = cut_record(memory_record(mv), ShardConfig())
    assert start_W.tolist() == [0, 40]
    assert counts == {
        "windows dropped: flat": 1, "windows dropped: over 20 mV": 1, "windows dropped: not finite": 1,
    }  # fmt: skip
    signal_WT, _, start_W, flags_W, _ = cut_record(memory_record(mv), ShardConfig(), keep_all=True)
    assert start_W.tolist() == [0, 10, 20, 30, 40]
    assert [int(flags & DROPPED) for flags in flags_W] == [0, FLAT, HUGE, NONFINITE, 0]
    assert [bool(row.any()) for row in signal_WT] == [True, False, True, False, True]


def test_a_long_gap_changes_no_window_that_it_does_not_touch():
    mv = np.random.default_rng(8).standard_normal(30_000)
    torn = mv.copy()
    torn[12_000:13_000] = np.nan
    (whole, _, _, _, _), (parts, _, starts, _, _) = (cut_record(memory_record(x), ShardConfig()) for x in (mv, torn))
    assert starts.tolist() == [0, 10, 30, 40, 50]
    np.testing.assert_array_equal(parts, whole[[0, 1, 3, 4, 5]])


def test_a_rate_without_a_rational_ratio_is_a_bad_record_not_the_end():
    with pytest.raises(RecordError, match="needs factors above"):
        cut_record(memory_record(np.random.default_rng(1).standard_normal(6000), fs=499.9997), ShardConfig())


def test_a_short_recording_is_dropped_or_padded():
    mv = np.random.default_rng(5).standard_normal(4000)
    assert not len(cut_record(memory_record(mv), ShardConfig())[1])
    signal_WT, _, _, flags_W, _ = cut_record(memory_record(mv), ShardConfig(pad_short=True))
    assert signal_WT.shape == (1, 5000)
    assert not signal_WT[0, 4000:].any()
    assert flags_W[0] & PADDED


def test_bad_records_go_to_the_quarantine_and_past_the_limit_the_run_stops(tmp_path):
    config = write_small_config(tmp_path, 30)
    records = tmp_path / "records"
    shutil.copytree(DEMO / "records", records, copy_function=shutil.copy)
    name = (tmp_path / "labels.csv").read_text().splitlines()[4].split(",")[0]
    (records / f"{name}.mat").write_bytes(b"short")
    assert anyecg("cohort", config, f"cohort.path={records}").returncode == 0
    done = anyecg("shard", config, f"cohort.path={records}", "shard.ranks=1")
    assert done.returncode == 0, done.stderr
    assert name in (tmp_path / "run/shards/quarantine.csv").read_text()
    assert open_index(tmp_path / "run/shards").head["counts"]["records dropped: unreadable"] == 1
    with pytest.raises(RecordError):
        open_record(records / name).read()
    done = anyecg("shard", config, f"cohort.path={records}", "shard.max_bad_fraction=0.01")
    assert done.returncode == 2
    assert "1 of 30 records are unreadable, more than max_bad_fraction 0.01" in done.stderr
    assert "Traceback" not in done.stderr
