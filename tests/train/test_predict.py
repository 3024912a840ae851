import csv
import json
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from anyecg.loaders.cohort import open_cohort
from anyecg.loaders.errors import ModelError, RecordError, UpgradeNeeded
from anyecg.loaders.progress import Progress
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.stop import Asked
from anyecg.loaders.stream_config import StreamConfig
from anyecg.slurm.launch import find_mpirun
from anyecg.train import predict
from anyecg.train.card import check_target_table
from anyecg.train.model import build_model, open_model
from anyecg.train.predict_files import predict_files
from anyecg.train.scores import read_scores

from ..conftest import DEMO, anyecg, on_ranks
from .made import predict_made, publish_made


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def file_scores(small_run, tmp_path_factory):
    """Return the CSV of every record of a folder: three demo records, a short one, a broken one, a flat one."""
    folder = tmp_path_factory.mktemp("files")
    source = folder / "records"
    (source / "below").mkdir(parents=True)
    for name, place in (("A00009", ""), ("A00015", ""), ("A00022", "below/")):
        for suffix in (".hea", ".mat"):
            shutil.copy(DEMO / "records" / f"{name}{suffix}", source / f"{place}{name}{suffix}")
    (source / "broken.hea").write_text("broken 1 300 9000\nmissing.mat 16 1000/mV\n")
    for name, counts in (("short", np.arange(900) % 300), ("flat", np.zeros(3600))):
        (source / f"{name}.hea").write_text(f"{name} 1 300 {len(counts)}\n{name}.dat 16 1000/mV 16 0 0 0 0 I\n")
        (source / f"{name}.dat").write_bytes(counts.astype("<i2").tobytes())
    n_records, n_bad = predict_files(small_run / "model", source, folder / "scores.csv")
    assert (n_records, n_bad) == (6, 1)
    assert (folder / "scores.csv.quarantine.csv").read_text().splitlines()[1].startswith("broken,")
    return rows_of(folder / "scores.csv")


def test_scores_hold_every_window_of_val_and_test_once(small_run, small_index):
    scores = read_scores(small_run / "scores.h5", small_index)
    for split in ("val", "test"):
        np.testing.assert_array_equal(scores.windows[split][0], small_index.windows_of(split))
        assert np.isfinite(scores.windows[split][1]).all()
        assert scores.windows[split][1].shape == (len(scores.windows[split][0]), 3)


@pytest.fixture(scope="module")
def joined(small_index, tmp_path_factory):
    """Return the folder of a model that joins two windows, and its scores."""
    folder = tmp_path_factory.mktemp("joined")
    return folder, predict_made(folder, small_index, head="exclusive", join="features", windows_per_sample=2)


def features_of(model, index, windows):
    """Return the features of windows, read and standardised one by one."""
    reader = WindowReader(index)
    mv = reader.read(windows)[:, 0] * index.tables["window_scale"][windows][:, None].astype(float)
    reader.close()
    x = (mv - mv.mean(1, keepdims=True)) / mv.std(1, keepdims=True)
    with torch.no_grad():
        return model.features(torch.from_numpy(x.astype(np.float32))[:, None])


def test_a_draw_is_read_in_interleaved_groups_of_its_windows_in_order_of_time(small_index, joined):
    folder, scores = joined
    model, tables = open_model(folder / "model")[0], small_index.tables
    assert set(scores.draws) == {(split, horizon) for split in ("val", "test") for horizon in (60, 30, 15)}
    n_groups = []
    for (split, horizon), (draws, outputs) in scores.draws.items():
        pairs = small_index.pairs_of(split, horizon)
        assert draws.tolist() == sorted(set(tables["pair_draw"][pairs].tolist()))
        for draw, output in zip(draws, outputs, strict=True):
            windows = tables["pair_window"][pairs][tables["pair_draw"][pairs] == draw]
            windows = np.array(sorted(windows.tolist(), key=lambda window: tables["window_start"][window]))
            features = features_of(model, small_index, windows)
            groups = [features[group :: -(-len(windows) // 2)] for group in range(-(-len(windows) // 2))]
            n_groups.append(len(groups))
            wanted = [
                model.several(torch.cat([group.mean(0), group.max(0).values])).detach().numpy() for group in groups
            ]
            np.testing.assert_allclose(output, np.mean(wanted, axis=0), atol=1e-4)
    assert {1, 2, 3} <= set(n_groups)


def test_a_draw_with_no_more_windows_than_a_sample_is_one_sample():
    network = build_model("resnet", n_leads=1, n_targets=3, seed=1, join="features").eval()
    feature = torch.randn(7, network.dense.in_features, generator=torch.manual_seed(2))
    with torch.no_grad():
        for n_each in (7, 8, 100):
            torch.testing.assert_close(network.joined_of_all(feature, n_each), network.joined(feature[None])[0])
        for n_windows in range(1, 8):
            some = feature[:n_windows]
            n_groups = -(-n_windows // 3)
            slow = [network.joined(some[group::n_groups][None])[0] for group in range(n_groups)]
            torch.testing.assert_close(network.joined_of_all(some, 3), torch.stack(slow).mean(0))


def test_scores_of_windows_do_not_depend_on_how_draws_are_read(small_index, joined, tmp_path):
    plain = predict_made(tmp_path, small_index, head="exclusive")
    assert plain.draws == {}
    for split, (rows, outputs) in plain.windows.items():
        np.testing.assert_array_equal(joined[1].windows[split][0], rows)
        np.testing.assert_array_equal(joined[1].windows[split][1], outputs)


def test_scores_say_head_and_join_and_carry_the_card(joined):
    with h5py.File(joined[0] / "scores.h5") as file:
        assert (file.attrs["head"], file.attrs["join"]) == ("exclusive", "features")
    assert joined[1].card == json.loads((joined[0] / "model/card.json").read_text())


def outputs_of(visits, run, model, card):
    """Return what ``_outputs`` yields of a run of visits, joined by kind."""
    with Progress("predict", 0, "", shown=False) as progress:
        parts = list(predict._outputs(model, card, visits, run, StreamConfig(), torch.device("cpu"), Asked(), progress))
    assert [part[0] for part in parts] == [run[0], *(part[1] for part in parts[:-1])]
    assert parts[-1][1] == run[1]
    return {kind: [np.concatenate([part[2][kind][what] for part in parts]) for what in (0, 1)] for kind in parts[0][2]}


@pytest.mark.parametrize("n_ranks", [2, 3, 40])
def test_ranks_read_whole_visits_in_the_batches_of_one(small_index, joined, monkeypatch, n_ranks):
    monkeypatch.setattr(predict, "BATCH", 8)
    monkeypatch.setattr(predict, "MOST_BYTES", 100)
    model, card = open_model(joined[0] / "model")
    visits = predict._Visits(small_index, "test")
    n_visits = len(visits.visit)
    assert len(visits.rows) > 3 * 8
    alone = outputs_of(visits, (0, n_visits), model, card)
    # Some visits are there from an earlier run.
    runs = [(0, 3), (5, n_visits)]
    dealt = [run for rank in range(n_ranks) for run in visits.dealt(runs, rank, n_ranks)]
    assert [n for run in dealt for n in range(*run)] == [n for run in runs for n in range(*run)]
    parts = [outputs_of(visits, run, model, card) for run in sorted([*dealt, (3, 5)])]
    for kind, (rows, outputs) in alone.items():
        np.testing.assert_array_equal(np.concatenate([part[kind][0] for part in parts]), rows)
        np.testing.assert_array_equal(np.concatenate([part[kind][1] for part in parts]), outputs)


def test_scores_are_the_same_bytes_on_any_number_of_ranks(small_run, small_index, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    made = publish_made(tmp_path / "made", small_index, join="features", windows_per_sample=4)
    found = []
    for n_ranks in (1, 2, 3):
        done = on_ranks(n_ranks, "predict", run / "config.toml", f"folder={run}", f"predict.model={made}")
        assert done.returncode == 0, done.stderr
        assert "predict: done in" in done.stdout
        found.append((run / "scores.h5").read_bytes())
        (run / "scores.h5").unlink()
    assert found == [found[0]] * 3


JOB = """
import os, signal, sys
from pathlib import Path
from anyecg.loaders.ranks import world
from anyecg.loaders.stream import open_index
from anyecg.loaders.stream_config import StreamConfig
from anyecg.app.run import as_rank
from anyecg.train import predict

shards, folder, stop = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
comm, save = world(), predict.Parts.save
predict.BATCH, predict.MOST_BYTES = 8, 100

def saving(parts, *given):
    global stop
    name, stop = save(parts, *given), stop - 1
    if stop == 0:
        os.kill(os.getpid(), signal.SIGUSR1)
    return name

predict.Parts.save = saving
sys.exit(as_rank("predict", comm, lambda: predict.predict_shards(
    folder / "scores.h5", open_index(shards), folder / "model", stream=StreamConfig(), comm=comm, stage_hash="0"
)))
"""


def test_a_stopped_prediction_goes_on_and_gives_the_same_bytes(small_index, tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    publish_made(tmp_path / "model", small_index, join="features", windows_per_sample=4)

    def run(n_ranks, stop=0):
        command = [find_mpirun(), "-n", str(n_ranks), sys.executable, tmp_path / "job.py", small_index.folder, tmp_path]
        return subprocess.run([*command, str(stop)], capture_output=True, text=True, check=False, timeout=100)

    assert run(2).returncode == 0
    whole = (tmp_path / "scores.h5").read_bytes()
    (tmp_path / "scores.h5").unlink()
    # What other weights left takes room.
    (tmp_path / "checkpoint/predict-old").mkdir(parents=True)
    stopped = run(2, stop=2)
    assert stopped.returncode == 75
    assert "asked to stop by signal 10; finished visits are kept; run the same command again" in stopped.stderr
    folder = next((tmp_path / "checkpoint").glob("predict-*"))
    kept = sorted(folder.glob("*.npz"))
    assert len(kept) >= 4
    assert not (tmp_path / "scores.h5").exists()
    # A file that a power loss cut short, and one that a killed process was writing.
    kept[0].write_bytes(kept[0].read_bytes()[:1000])
    (folder / ".test-0-1.npz.7.tmp").touch()
    done = run(3)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scores.h5").read_bytes() == whole
    assert not list((tmp_path / "checkpoint").iterdir())


def test_files_get_the_scores_that_their_shards_get(small_run, small_index, tmp_path):
    cohort = open_cohort(small_run / "cohort")
    windows, logits = read_scores(small_run / "scores.h5", small_index).windows["test"]
    visits = np.asarray(small_index.tables["window_visit"])[windows]
    keys = np.asarray(small_index.tables["visit_visit"])[visits]
    for name, row in cohort.records.select("path", "visit_row").rows()[:12]:
        mine = keys == cohort.visits["visit"][row]
        if not mine.any():
            continue
        predict_files(small_run / "model", DEMO / "records" / f"{name}.hea", tmp_path / "out.csv")
        own, *found = rows_of(tmp_path / "out.csv")
        probabilities = 1 / (1 + np.exp(-logits[mine]))
        values = np.array([[float(line[target]) for target in small_index.targets] for line in found])
        np.testing.assert_allclose(values, probabilities, atol=1e-3)
        mean = 1 / (1 + np.exp(-logits[mine].mean(0)))
        np.testing.assert_allclose([float(own[target]) for target in small_index.targets], mean, atol=1e-3)


def test_every_record_has_its_own_row_then_its_windows(file_scores):
    own = [row["record"] for row in file_scores if row["start_s"] == ""]
    assert own == ["A00009", "A00015", "below/A00022", "broken", "flat", "short"]
    starts = [row["start_s"] for row in file_scores if row["record"] == "A00009"]
    assert starts == ["", *(str(10 * n) for n in range(len(starts) - 1))]


def test_unreadable_and_flat_records_have_no_numbers_and_short_ones_have(file_scores):
    values = {row["record"]: row["noise"] for row in file_scores if row["start_s"] == ""}
    assert values["broken"] == values["flat"] == ""
    assert 0 <= float(values["short"]) <= 1
    assert [row["noise"] for row in file_scores if row["record"] == "flat"] == ["", ""]


def test_the_lead_of_the_card_is_the_one_that_is_scored(small_run, tmp_path):
    model = shutil.copytree(small_run / "model", tmp_path / "model")
    card = json.loads((model / "card.json").read_text())
    (model / "card.json").write_text(json.dumps({**card, "leads": ["II"]}))
    with pytest.raises(RecordError, match="lead 'II' is missing; found ECG"):
        predict_files(model, DEMO / "records" / "A00009.hea", tmp_path / "out.csv")


def test_a_folder_as_output_is_refused_before_any_work(small_run, tmp_path):
    with pytest.raises(ModelError, match="a folder; give the path of the CSV"):
        predict_files(small_run / "model", DEMO / "records" / "A00009.hea", tmp_path)


def test_scores_of_other_shards_or_versions_are_refused(small_run, small_index, tmp_path):
    path = shutil.copy(small_run / "scores.h5", tmp_path / "scores.h5")
    for key, value, said in (("index_hash", "other", "other shards"), ("version", 9, "upgrade needed: anyecg-scores")):
        with h5py.File(path, "r+") as file:
            before = file.attrs[key]
            file.attrs[key] = value
        with pytest.raises((ModelError, UpgradeNeeded), match=said):
            read_scores(path, small_index)
        with h5py.File(path, "r+") as file:
            file.attrs[key] = before


def test_a_model_of_another_target_table_is_refused_in_one_line(small_run, small_index, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    card = json.loads((run / "model/card.json").read_text())
    (run / "model/card.json").write_text(json.dumps({**card, "target_hash": "0123"}))
    with pytest.raises(ModelError, match="made for another target table"):
        check_target_table(run / "model", open_model(run / "model")[1], small_index)
    before = sorted(path.name for path in run.iterdir())
    done = anyecg("predict", run / "config.toml", f"folder={run}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "another target table" in done.stderr
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_damaged_or_missing_model_is_refused(small_run, tmp_path):
    model = shutil.copytree(small_run / "model", tmp_path / "model")
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="not the weights of its card"):
        open_model(model)
    with pytest.raises(ModelError, match="holds no finished model"):
        open_model(tmp_path / "none")
    done = anyecg("predict", "--model", tmp_path / "none", "--input", tmp_path, "--out", tmp_path / "out.csv")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "out.csv").exists()
