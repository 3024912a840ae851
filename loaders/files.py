"""Files that are whole or absent: atomic writes, hashes, and JSON documents that carry a format and a version."""

import csv
import hashlib
import io
import json
import os
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from anyecg.loaders.errors import AnyECGError, UpgradeNeeded

# The version of each format that this code writes and reads.
FORMATS = {
    "anyecg-cohort": 1,
    "anyecg-shard": 2,
    "anyecg-index": 2,
    "anyecg-checkpoint": 1,
    "anyecg-model": 1,
    "anyecg-scores": 1,
    "anyecg-results": 1,
    "anyecg-simulation": 1,
}


def code_version():
    """Return the installed version of this project."""
    return metadata.version("anyecg-lab")


def _sync_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path):
    """Give a temporary path beside ``path``; on success it is fsynced and renamed onto it, on failure removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write a text file that is whole or absent."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_quarantine(path, rows):
    """Write a table of (record, reason), one row for each record left out."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("record", "reason"), *rows])
    write_text(path, text.getvalue())


def digest(document):
    """Return 16 hexadecimal digits of a JSON-like document, integers of NumPy included."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=True, default=int)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path):
    """Return the SHA-256 of a file in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(folder, *, without, below=True):
    """Return a hash of the names, sizes and times of all files below a folder; their contents are not read.

    ``without`` is a path whose files do not count: the run folder may lie among the recordings. Without ``below`` only
    the files in the folder itself count: ten million waveform files cannot be asked for their times at every start.
    """
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if below and (Path(where) / name).resolve() != Path(without).resolve()]
        for name in names:
            entry = Path(where) / name
            status = entry.lstat()
            found.append((str(entry.relative_to(folder)), status.st_size, status.st_mtime_ns))
    return digest(sorted(found))


def write_document(path, form, document):
    """Write a JSON document with its format name, format version and the code's version."""
    head = {"format": form, "version": FORMATS[form], "code_version": code_version()}
    write_text(path, json.dumps({**head, **document}, indent=1) + "\n")


def check_format(path, form, found_form, found_version, error=AnyECGError):
    """Refuse another format, and another version with "upgrade needed" by name."""
    if found_form != form:
        raise error(f"{path}: not a {form} file (format {found_form!r}); give the path of one")
    if found_version != FORMATS[form]:
        raise UpgradeNeeded(
            f"{path}: upgrade needed: {form} version {found_version}, this code reads version {FORMATS[form]}; "
            f"remove it and make it again with anyecg-lab {code_version()}, or use the release that wrote it"
        )


def read_document(path, form, *, missing, error=AnyECGError):
    """Read a JSON document of one format; ``missing`` is the whole sentence to say when there is none."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise error(missing) from None
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{path}: cannot be read ({cause})") from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise error(f"{path}: damaged JSON ({cause}); make it again") from None
    if not isinstance(document, dict):
        raise error(f"{path}: not a {form} file; give the path of one")
    check_format(path, form, document.get("format"), document.get("version"), error)
    return document
