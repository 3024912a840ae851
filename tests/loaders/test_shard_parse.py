import json
import os
import threading
from collections import Counter

import h5py
import numpy as np
import pytest

from anyecg.loaders.errors import ShardError, UpgradeNeeded
from anyecg.loaders.shard_file import ShardWriter, describe_shard
from anyecg.loaders.shard_parse import chunk_sizes, load_filter, open_plain, parse_shard

from .hostile import SHARD_CASES, edit, lay, not_refused, of_text, replaced, run_all, with_values
from .mutants import make_seeds, mutate, outcome
from .tiny import attributes, tiny_sets, write_tiny_shard

SAID = {
    "set of 10^12 rows": "sets say 80000000",
    "set scalar": r"other filters \(\)",
    "set in other chunks": r"in chunks \(7,\)", "set contiguous": r"other filters \(\)",
    "set of floats": "has type float64", "set of other order": "has type >i8", "set of bools": "has type bool",
    "set deflated": r"other filters \(1, 3\)", "set without checksum": r"other filters \(\)",
    "set shuffled": r"other filters \(2, 3\)", "signal of 10^12 rows": "1000000000000 windows, but its chunks are not",
    "external link draws/time": "linked from elsewhere", "external link draws": "linked from elsewhere",
    "soft link windows/signal": "linked from elsewhere", "looping link draws": "linked from elsewhere",
    "external_storage": "not stored in the file itself", "virtual_set": "not stored in the file itself",
    "unknown_filter": r"other filters \(3, 32099\)", "deflate_bomb": "other filters", "cyclic_groups": "is missing",
    "group_in_place_of_a_set": "draws/time is not a set", "type_in_place_of_a_set": "draws/time is not a set",
    "thousands_of_attributes": "5015 attributes, wanted 15", "giant_attribute": "preset is not a short str",
    "missing_attribute": "14 attributes, wanted 15", "attribute_of_references": "targets is not a short str",
    "sets_of_unlike_lengths": "sets of one kind have several lengths",
    "all_sets_as_large_as_the_file": "more than the file holds", "folder_in_place_of_the_file": "not a plain file",
    "link_to_a_shard": "symbolic links", "pipe_in_place_of_the_file": "not a plain file",
    "link_to_a_device": "symbolic links", "attribute format": "not a anyecg-shard file",
    "attribute targets": "targets is no list of names", "attribute components": "components is no list of names",
    "attribute counts": "counts holds no counts", "attribute split": "not every visit stands in split 'elsewhere'",
    "attribute samples": "windows of 1000000000000000000 samples", "attribute of no samples": "windows of 0 samples",
    "attribute filter": "those of this code", "attribute fs": "fs is not a short int",
    "attribute plan_hash": "plan_hash is not a text of at most 1000000", "attribute code_version": "not a short str",
    "value of pairs/window": r"pairs/window holds rows 0 to 1000000 of 150",
    "value of pairs/draw": r"pairs/draw holds rows -1 to 5 of 6", "value of windows/visit": "to 99 of 4",
    "value of windows/scale": "a scale is not a positive number", "value of draws/labels": "a label is none of",
    "value of visits/split": "not every visit stands in split", "file of text": "begins as no file of this code",
    "file behind a user block": "begins as no file of this code", "file cut": "damaged",
    "version -1": "upgrade needed: anyecg-shard version -1", "version 1.5": "version is not a short int",
    "version '1'": "version is not a short int",
}  # fmt: skip


@pytest.fixture
def shard(tiny_set, tmp_path):
    """A tiny shard to be damaged."""
    (tmp_path / "outside").mkdir()
    lay(tiny_set[0], tmp_path / "set")
    return tmp_path / "set" / "shard-00000.h5"


@pytest.mark.parametrize("name", SAID)
def test_what_is_wrong_with_a_shard_is_said(shard, name):
    SHARD_CASES[name](shard)
    with pytest.raises((ShardError, UpgradeNeeded), match=SAID[name]):
        parse_shard(shard)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_values("pairs/window", 150), "pairs/window holds rows"), (with_values("pairs/window", -1), "rows -1 to"),
        (with_values("pairs/draw", 6), "pairs/draw holds rows"), (with_values("draws/visit", 4), "to 4 of 4"),
        (with_values("windows/visit", -1), "windows/visit holds rows -1"), (with_values("draws/labels", -2), "a label"),
        (with_values("draws/labels", 2), "a label is none"), (with_values("windows/scale", 0), "a scale is not"),
        (with_values("windows/scale", np.inf), "a scale is not"), (with_values("windows/scale", -1), "a scale is not"),
        (with_values("windows/visit", 1), "paired with a draw of another visit"),
        (of_text("samples", 100_001), "windows of 100001 samples"), (of_text("samples", 51), "wanted .rows, "),
        (of_text("samples", 100_000), "wanted .rows, "),
        (edit(lambda file: file["windows/signal"].id.write_direct_chunk((64, 0, 0), bytes(6403))), "not all there"),
        (of_text("components", "[]"), "values has shape"), (of_text("targets", '["a"]'), "labels has shape"),
        (of_text("counts", '{"a": true}'), "holds no counts"), (of_text("counts", '{"a": -1}'), "holds no counts"),
        (of_text("counts", f'{{"a": {2**53}}}'), "holds no counts"), (of_text("counts", "[]"), "holds no counts"),
        (of_text("filter", "bitshuffle-lz4"), "other filters"),
        (edit(lambda file: file["windows/signal"].resize((151, 1, 50))), "several lengths"),
        (edit(lambda file: file["windows/signal"].resize((193, 1, 50))), "193 windows, but its chunks are not all"),
        (edit(lambda file: file["windows/signal"].resize((128, 1, 50))), "several lengths"),
        (replaced("visits/sex", dtype="i1", fletcher32=True, chunks=(1,)), r"in chunks \(1,\)"),
        (edit(lambda file: file.__delitem__("windows")), "windows/signal is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_or_shape_is_said(shard, change, said):
    change(shard)
    with pytest.raises(ShardError, match=said):
        parse_shard(shard)


@pytest.mark.parametrize(
    "change",
    [
        of_text("counts", f'{{"a": {2**53 - 1}, "b": 0}}'), with_values("draws/labels", 1),
        with_values("draws/labels", -1), with_values("windows/scale", 1e-30), of_text("preset", "x" * 1_000_000),
    ],
)  # fmt: skip
def test_limits_are_allowed(shard, change):
    change(shard)
    assert parse_shard(shard)["lengths"]["windows"] == 150


def test_another_version_is_named_before_its_other_attributes(shard):
    def change(file):
        file.attrs["version"] = 1
        file.attrs["new"] = 1

    edit(change)(shard)
    with pytest.raises(UpgradeNeeded, match="anyecg-shard version 1, this code reads version 2"):
        parse_shard(shard)


def test_a_link_inside_the_file_is_not_followed(shard, tiny_set):
    def change(file):
        del file["draws"]
        file["draws"] = h5py.ExternalLink(str(tiny_set[0] / "shard-00001.h5"), "/draws")

    edit(change)(shard)
    with pytest.raises(ShardError, match="draws/labels is linked from elsewhere"):
        parse_shard(shard)


@pytest.mark.parametrize(("n_leads", "scale_axes"), [(13, 13), (2, 1), (2, 3), (1, 1)])
def test_a_shard_of_too_many_leads_or_scales_is_refused(tmp_path, n_leads, scale_axes):
    """Of one lead the scales have one axis; here they have two, or not one for each lead."""
    sets = tiny_sets(9, "train", np.random.default_rng(1))
    sets["windows/scale"] = np.ones((9, scale_axes))
    with ShardWriter(tmp_path / "a", {**attributes("train"), "leads": json.dumps(["I"] * n_leads)}) as writer:
        writer.append(np.ones((9, n_leads, 50), np.int16))
        writer.finish(sets, {"windows": 9})
    with pytest.raises(ShardError, match=r"windows of 13 leads; wanted 1 to 12|windows/scale has shape"):
        describe_shard(tmp_path / "a")


def test_a_shard_may_be_without_components(tmp_path):
    sets = tiny_sets(9, "train", np.random.default_rng(0)) | {"draws/values": np.empty((6, 0))}
    with ShardWriter(tmp_path / "a", {**attributes("train"), "components": "[]"}) as writer:
        writer.append(np.ones((9, 1, 50), np.int16))
        writer.finish(sets, {})
    assert parse_shard(tmp_path / "a")["lengths"]["draws"] == 6


def test_the_sizes_of_chunks():
    assert chunk_sizes("none", 50) == (6404, 6404)
    assert chunk_sizes("bitshuffle-lz4", 50) == (5, 12_808)


def test_a_parse_leaves_no_open_file(shard):
    before = len(list(os.scandir("/proc/self/fd")))
    parse_shard(shard)
    with pytest.raises(ShardError):
        open_plain(shard.parent)
    with pytest.raises(ShardError, match=r"cannot be opened \(No such file or directory\)"):
        open_plain(shard.parent / "none")
    assert len(list(os.scandir("/proc/self/fd"))) == before
    descriptor = open_plain(shard)
    assert os.read(descriptor, 4) == b"\x89HDF"
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = []

    def refuse():
        with pytest.raises(ShardError, match="not a plain file"):
            open_plain(tmp_path / "pipe")
        done.append(True)

    thread = threading.Thread(target=refuse, daemon=True)
    thread.start()
    thread.join(5)
    assert done


def test_the_filter_of_lz4_is_hdf5plugins():
    assert load_filter("none", "") == {}
    assert load_filter("bitshuffle-lz4", "")["compression"] == 32008


def test_a_compressed_shard_with_a_damaged_chunk_is_refused(tmp_path):
    path = tmp_path / "shard-00000.h5"
    write_tiny_shard(path, form="bitshuffle-lz4")
    assert parse_shard(path)["lengths"]["windows"] == 150
    chunk = describe_shard(path)["chunks"][1]
    data = bytearray(path.read_bytes())
    data[chunk.offset + 30] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match="damaged"):
        parse_shard(path)


def test_every_hostile_shard_and_index_is_refused_within_its_means(tmp_path):
    tried = run_all(tmp_path)
    assert not_refused(tried["found"]) == {}
    assert len(tried["found"]) > 350
    assert max(tried["peak_mb"], tried["child_peak_mb"]) < 256
    assert not list(tmp_path.rglob("canary-fired"))


def test_mutated_shards_are_read_or_refused(tmp_path):
    seeds = make_seeds(tmp_path)
    path = tmp_path / "shard-00000.h5"
    outcomes = Counter()
    for number in range(150):
        rng = np.random.default_rng([13, number])
        path.write_bytes(mutate(seeds[int(rng.integers(len(seeds)))], rng))
        outcomes[outcome(path)] += 1
    assert outcomes["shard"] > 5
    assert outcomes["typed error"] > 50
