import errno
import json
from pathlib import Path

import pytest

from anyecg.loaders.errors import AnyECGError
from anyecg.loaders.files import FORMATS, read_document, replacing, write_document


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
