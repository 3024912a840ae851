import hashlib
import json
import logging
import shutil

import h5py
import numpy as np
import pytest

from anyecg.loaders.errors import ShardError, UpgradeNeeded
from anyecg.loaders.files import digest
from anyecg.loaders.index import count_overlapping, lost_files, open_index, write_index
from anyecg.loaders.index_form import CHUNK_COLUMNS, TABLES, read_head
from anyecg.loaders.shard_file import describe_shard
from anyecg.loaders.stream import epoch_order

from .test_stream import slow_pairs
from .tiny import SHARDS, write_tiny_shard

HEAD = {"stage_hash": "3", "cohort_hash": "4", "counts": {}}


def describe_all(folder):
    return [describe_shard(path) for path in sorted(folder.glob("shard-*.h5"))]


def test_every_table_joins_its_sets_with_rows_that_count_through(tiny_set, tiny_index):
    base = {"visits": 0, "windows": 0, "draws": 0}
    joined = {name: [] for name in TABLES}
    for shard in tiny_index.head["shards"]:
        with h5py.File(tiny_set[0] / shard["name"]) as file:
            for name, (source, dtype, rows_of) in TABLES.items():
                assert tiny_index.tables[name].dtype == dtype
                joined[name] += (
                    [(base[rows_of] if rows_of else 0) + row for row in file[source][...].tolist()]
                    if (file[source].ndim == 1)
                    else file[source][...].tolist()
                )
            for what in base:
                base[what] += len(file[f"{what}/visit"])
    for name, rows in joined.items():
        assert tiny_index.tables[name].tolist() == rows, name
        assert not tiny_index.tables[name].flags.writeable
    assert base == {"visits": 16, "windows": 287, "draws": 24}


def test_the_chunks_are_those_of_the_files(tiny_set, tiny_index):
    assert CHUNK_COLUMNS == ("shard", "first_window", "n_windows", "offset", "n_bytes", "crc32")
    wanted, first = [], 0
    for number, shard in enumerate(describe_all(tiny_set[0])):
        wanted += [[number, first + chunk.first_window, *chunk[1:]] for chunk in shard["chunks"]]
        first += shard["lengths"]["windows"]
    assert tiny_index.tables["chunks"].tolist() == wanted
    assert [row[1] for row in wanted] == [0, 64, 128, 150, 214, 220, 284]


def test_the_head_tells_what_the_shards_hold(tiny_set, tiny_index):
    folder, head = tiny_set[0], tiny_index.head
    described = describe_all(folder)
    for shard, entry in zip(described, head["shards"], strict=True):
        assert entry == {key: shard[key] for key in ("name", "sha256", "n_bytes", "split", "lengths", "horizons")}
    assert [entry["split"] for entry in head["shards"]] == [split for split, _ in SHARDS]
    for name, table in head["tables"].items():
        data = (folder / f"index-{name}.npy").read_bytes()
        assert table == {
            "sha256": hashlib.sha256(data).hexdigest(), "n_bytes": len(data),
            "shape": list(np.load(folder / f"index-{name}.npy").shape),
        }  # fmt: skip
    assert set(head["tables"]) == {*TABLES, "chunks"}
    assert (head["format"], head["version"], head["patients_in_two_splits"]) == ("anyecg-index", 2, 0)
    assert (head["fs"], head["samples"], head["preset"], head["stage_hash"]) == (5, 50, "none", "3")
    assert tiny_index.targets == ("a", "b")
    assert tiny_index.leads == ("I",)
    hashes = [entry["sha256"] for entry in head["shards"]]
    assert tiny_index.hash == head["hash"] == digest(["0", "1", head["tables"], hashes])
    assert tiny_index.folder == folder


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("horizon_min", [60, 30, 15])
def test_pairs_are_found_as_by_looking_at_each(tiny_index, split, horizon_min):
    wanted = slow_pairs(tiny_index, split, horizon_min)
    assert len(wanted) > 0
    assert tiny_index.n_pairs(split, horizon_min) == len(wanted)
    assert tiny_index.pairs_of(split, horizon_min).tolist() == wanted
    assert tiny_index.pairs_of(split, horizon_min).dtype == np.int64


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_shards_of_a_split_hold_its_draws_and_pairs(tiny_index, split):
    tables = tiny_index.tables
    of_draw = tables["visit_split"][tables["draw_visit"]] == ("train", "val", "test").index(split)
    of_pair = of_draw[tables["pair_draw"]]
    shards = tiny_index.shards_of(split)
    assert [tiny_index.head["shards"][shard.number]["split"] for shard in shards] == [split] * len(shards)
    for found, wanted in (([s.draws for s in shards], of_draw), ([s.pairs for s in shards], of_pair)):
        rows = np.concatenate([np.arange(rows.start, rows.stop) for rows in found])
        np.testing.assert_array_equal(rows, np.flatnonzero(wanted))


def test_the_windows_of_the_splits_are_all_windows(tiny_index):
    train, val, test = (tiny_index.windows_of(split) for split in ("train", "val", "test"))
    assert (train.tolist(), val.tolist(), test.tolist()) == (
        list(range(220)), list(range(220, 284)), list(range(284, 287))
    )  # fmt: skip


@pytest.mark.parametrize(("split", "horizon_min"), [("other", 60), ("train", 45), ("train", "60"), (0, 60)])
def test_an_unknown_split_or_horizon_is_refused(tiny_index, split, horizon_min):
    with pytest.raises(ValueError, match="wanted one of"):
        tiny_index.n_pairs(split, horizon_min)


def test_horizon_bits_that_belie_the_index_are_refused(tiny_copy):
    table = np.load(tiny_copy / "index-pair_horizons.npy")
    table[np.flatnonzero(table & 2)[0]] = 1
    np.save(tiny_copy / "index-pair_horizons.npy", table)
    index = open_index(tiny_copy)
    with pytest.raises(ShardError, match="pairs of train have 30 min, the index says"):
        index.pairs_of("train", 30)
    with pytest.raises(ShardError, match="pairs have this split and horizon, the index says"):
        epoch_order(index, seed=1, epoch=0, horizon_min=30)


def test_a_patient_in_two_splits_is_refused_unless_the_split_is_by_visit(tmp_path, caplog):
    for number, (split, first) in enumerate((("train", 0), ("train", 2), ("test", 3))):
        write_tiny_shard(tmp_path / f"shard-0000{number}.h5", split, 20, seed=number, first_patient=first)
    described = describe_all(tmp_path)
    with pytest.raises(ShardError, match="3 patients stand in two splits"):
        write_index(tmp_path, described, HEAD)
    assert not (tmp_path / "index.json").exists()
    with caplog.at_level(logging.WARNING):
        write_index(tmp_path, described, HEAD, may_overlap=True)
    assert "patients_in_two_splits=3" in caplog.text
    assert read_head(tmp_path)["patients_in_two_splits"] == count_overlapping(tmp_path) == 3


def test_no_overlap_is_no_warning(tiny_copy, caplog):
    with caplog.at_level(logging.WARNING):
        write_index(tiny_copy, describe_all(tiny_copy), HEAD, may_overlap=True)
    assert not caplog.text


def test_shards_of_unlike_meaning_are_no_set(tiny_copy):
    described = describe_all(tiny_copy)
    described[2]["attributes"]["preset_hash"] = "other"
    with pytest.raises(ShardError, match=r"shard-00002\.h5: another preset, rate or target table than shard-00000\.h5"):
        write_index(tiny_copy, described, HEAD)


def test_the_same_shards_give_the_same_index(tiny_copy):
    before = {path.name: path.read_bytes() for path in tiny_copy.iterdir()}
    counts = json.loads(before["index.json"])["counts"]
    write_index(tiny_copy, describe_all(tiny_copy), {**HEAD, "counts": counts})
    assert {path.name: path.read_bytes() for path in tiny_copy.iterdir()} == before


def test_lost_files_are_named(tiny_copy):
    assert lost_files(tiny_copy) == []
    (tiny_copy / "shard-00001.h5").unlink()
    with (tiny_copy / "index-draw_time.npy").open("ab") as file:
        file.write(b"0")
    (tiny_copy / "index-chunks.npy").unlink()
    (tiny_copy / "index-chunks.npy").mkdir()
    assert sorted(lost_files(tiny_copy)) == ["index-chunks.npy", "index-draw_time.npy", "shard-00001.h5"]


def test_an_index_of_another_version_is_refused_by_name(tiny_copy):
    document = json.loads((tiny_copy / "index.json").read_text())
    (tiny_copy / "index.json").write_text(json.dumps({**document, "version": 3}))
    with pytest.raises(UpgradeNeeded, match="upgrade needed: anyecg-index version 3, this code reads version 2"):
        open_index(tiny_copy)


def test_a_folder_without_index_says_what_to_do(tmp_path):
    with pytest.raises(
        ShardError, match=r"sharding did not finish\. Run the same command again; finished shards are kept"
    ):
        open_index(tmp_path)


def test_an_index_opens_by_a_text_and_after_a_move(tiny_copy, tmp_path):
    shutil.move(tiny_copy, tmp_path / "elsewhere")
    assert open_index(str(tmp_path / "elsewhere")).folder == tmp_path / "elsewhere"
