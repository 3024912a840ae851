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


@pytest.mark.parametrize("text", ["", "[]", "{", "1", "[" * 100_000, '{"format": 1}'])
def test_damaged_documents_give_a_typed_error(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(AnyECGError):
        read_document(tmp_path / "x", "anyecg-index", missing="")


def test_a_missing_document_says_what_to_do(tmp_path):
    with pytest.raises(AnyECGError, match="run it first"):
        read_document(tmp_path / "none" / "x", "anyecg-index", missing="run it first")
