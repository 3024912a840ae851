import errno
import hashlib
import json
import os
from importlib import metadata
from pathlib import Path

import pytest

from anyecg.loaders.errors import AnyECGError, ShardError
from anyecg.loaders.files import (
    FORMATS,
    code_version,
    digest,
    file_hash,
    listing,
    read_document,
    replacing,
    write_document,
    write_quarantine,
)


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_document_comes_back_and_another_version_is_named(tmp_path):
    for form in FORMATS:
        path = Path(tmp_path / form)
        write_document(path, form, {"a": 1})
        document = read_document(path, form, missing="")
        assert document["a"] == 1
        for version in (FORMATS[form] + 1, 0, None, "1"):
            path.write_text(json.dumps({**document, "version": version}))
            with pytest.raises(AnyECGError, match=f"upgrade needed: {form} version {version}"):
                read_document(path, form, missing="")


@pytest.mark.parametrize("form", ["anyecg-index", "anyecg-cohort", "anyecg-checkpoint", "anyecg-simulation"])
def test_no_bit_of_a_sealed_document_can_change_unseen(tmp_path, form):
    path = tmp_path / "x"
    write_document(path, form, {"a": 1e5, "é": [None, True]})
    data = path.read_bytes()
    document = read_document(path, form, missing="")
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = read_document(path, form, missing="")
        except AnyECGError:
            continue
        # A document from before there were seals has none; only such a one is left where the word itself is hit.
        assert form != "anyecg-index"
        assert {name: found[name] for name in document if name != "digest"}.items() <= document.items()
        assert "digest" not in found


def test_a_document_without_a_seal_is_read_where_such_were_written(tmp_path):
    path = tmp_path / "x"
    path.write_text(json.dumps({"format": "anyecg-cohort", "version": FORMATS["anyecg-cohort"], "a": 1}))
    assert read_document(path, "anyecg-cohort", missing="")["a"] == 1
    path.write_text(json.dumps({"format": "anyecg-index", "version": FORMATS["anyecg-index"], "a": 1}))
    with pytest.raises(AnyECGError, match="its digest is another"):
        read_document(path, "anyecg-index", missing="")


@pytest.mark.parametrize("text", ["", "[]", "{", "1", "[" * 100_000, '{"format": 1}'])
def test_damaged_documents_give_a_typed_error(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(AnyECGError):
        read_document(tmp_path / "x", "anyecg-index", missing="")


def test_a_missing_document_says_what_to_do(tmp_path):
    with pytest.raises(AnyECGError, match="run it first"):
        read_document(tmp_path / "none" / "x", "anyecg-index", missing="run it first")


def test_a_digest_is_16_digits_and_knows_no_order_of_keys():
    import hashlib

    import numpy as np

    document = {"b": [1, "ä"], "a": np.int64(3)}
    wanted = hashlib.sha256(json.dumps({"a": 3, "b": [1, "ä"]}).encode()).hexdigest()[:16]
    assert digest(document) == digest(dict(reversed(document.items()))) == wanted


def test_a_file_hash_is_its_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_quarantine_table_is_a_csv(tmp_path):
    write_quarantine(tmp_path / "q" / "a.csv", [("r,1", "why"), ("r2", 'a "b"')])
    assert (tmp_path / "q" / "a.csv").read_bytes() == b'record,reason\n"r,1",why\nr2,"a ""b"""\n'


def test_a_listing_changes_with_names_sizes_and_times_alone(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    names = [tmp_path / "in" / "b", tmp_path / "in" / "a", tmp_path / "in" / "deep" / "c", tmp_path / "run" / "d"]
    for path in names:
        path.write_text("1234")
        os.utime(path, ns=(5, 7))

    def listed(**options):
        return listing(tmp_path, without=tmp_path / "run", **options)

    whole, top = listed(), listed(below=False)
    wanted = [("in/a", 4, 7), ("in/b", 4, 7), ("in/deep/c", 4, 7)]
    assert whole == digest(wanted)
    assert top == digest([])
    names[3].write_text("other")
    assert listed() == whole
    os.utime(names[2], ns=(5, 8))
    assert listed() != whole
    os.utime(names[2], ns=(5, 7))
    names[2].write_text("12345")
    os.utime(names[2], ns=(5, 7))
    assert listed() != whole
    (tmp_path / "e").write_text("")
    assert listed(below=False) != top


def test_a_document_carries_form_version_and_code_version(tmp_path):
    write_document(tmp_path / "a", "anyecg-index", {"x": [1]})
    head = {"format": "anyecg-index", "version": 2, "code_version": code_version(), "x": [1]}
    text = (tmp_path / "a").read_text()
    body, _, _ = text.rpartition(',\n "digest"')
    head["digest"] = hashlib.sha256(body.encode()).hexdigest()
    assert text == json.dumps(head, indent=1) + "\n"
    assert read_document(str(tmp_path / "a"), "anyecg-index", missing="") == head
    assert code_version() == metadata.version("anyecg-lab")


def test_what_is_wrong_with_a_document_is_said(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"\xff")
    with pytest.raises(ShardError, match="cannot be read"):
        read_document(path, "anyecg-index", missing="", error=ShardError)
    with pytest.raises(ShardError, match="cannot be read"):
        read_document(tmp_path, "anyecg-index", missing="", error=ShardError)
    path.write_text("[1]")
    with pytest.raises(ShardError, match="not a anyecg-index file; give"):
        read_document(path, "anyecg-index", missing="", error=ShardError)
    path.write_text('{"format": "other", "version": 2}')
    with pytest.raises(ShardError, match=r"not a anyecg-index file \(format 'other'\)"):
        read_document(path, "anyecg-index", missing="", error=ShardError)
    with pytest.raises(ShardError, match="gone"):
        read_document(path / "b", "anyecg-index", missing="gone", error=ShardError)


def test_replacing_keeps_the_temporary_beside_and_synced(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def note(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    path = tmp_path / "new" / "a"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name == f".a.{os.getpid()}.tmp"
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert synced == [tmp_path, temporary, path.parent]
    assert [p.name for p in path.parent.iterdir()] == ["a"]
    before = len(list(Path("/proc/self/fd").iterdir()))
    with replacing(path) as temporary:
        temporary.write_text("again")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
