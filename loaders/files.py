"""Files that are whole or absent: atomic writes, hashes, and JSON documents that carry a format and a version."""

import csv
import hashlib
import io
import json
import os
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

from anyecg.loaders.errors import AnyECGError, UpgradeNeeded

# The version of each format that this code writes and reads.
FORMATS = {
    "anyecg-cohort": 1,
    "anyecg-shard": 2,
    "anyecg-index": 2,
    "anyecg-checkpoint": 2,
    "anyecg-manifest": 1,
    "anyecg-model": 2,
    "anyecg-export": 1,
    "anyecg-weights": 1,
    "anyecg-scores": 2,
    "anyecg-results": 2,
    "anyecg-heart": 1,
    "anyecg-comparison": 1,
    "anyecg-simulation": 1,
    "anyecg-profile": 1,
    "anyecg-chain": 1,
    "anyecg-scale": 1,
    "anyecg-scale-table": 1,
}
# Documents that end with the SHA-256 of their text; a card and results may be edited by hand. What was written before
# there were seals is read too, but there is no such index and no such checkpoint.
_ALWAYS_SEALED = ("anyecg-index", "anyecg-checkpoint", "anyecg-manifest", "anyecg-chain")
_SEALED = (*_ALWAYS_SEALED, "anyecg-cohort", "anyecg-simulation")
_SEAL, _SEAL_END = ',\n "digest": "', '"\n}\n'


def code_version():
    """Return the installed version of this project."""
    return metadata.version("anyecg-lab")


def _again_if_interrupted(call, *arguments):
    """Call until no signal interrupts; Python itself does so for open, read, write and fsync only."""
    while True:
        try:
            return call(*arguments)
        except InterruptedError:
            continue


def _unlink(path):
    with suppress(FileNotFoundError):
        _again_if_interrupted(os.unlink, path)


def _close(descriptor):
    """Close once: Linux has closed a descriptor even where a signal interrupted that."""
    with suppress(InterruptedError):
        os.close(descriptor)


def _sync(path, flags):
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as cause:
        raise _at(path, cause) from None
    finally:
        _close(descriptor)


def _at(path, cause):
    """Return an error of a descriptor with the path that it is about."""
    return OSError(cause.errno, cause.strerror, str(path))


def make_folder(path):
    """Make a folder, and its parents, that are still there after a power loss."""
    path = Path(path).absolute()
    if not path.is_dir():
        make_folder(path.parent)
        with suppress(FileExistsError):
            _again_if_interrupted(os.mkdir, path)
        _sync(path.parent, os.O_RDONLY)


def remove(*paths):
    """Remove files, those that are there, all in one folder; they stay gone after a power loss."""
    for path in paths:
        _unlink(path)
    if paths:
        _sync(Path(paths[0]).parent, os.O_RDONLY)


def sync_folder(path):
    """Send the files of a folder, and their names, to the disk."""
    for entry in Path(path).iterdir():
        if entry.is_file():
            _sync(entry, os.O_RDWR)
    _sync(path, os.O_RDONLY)


def sync_names(path):
    """Send the names in a folder to the disk."""
    _sync(path, os.O_RDONLY)


@contextmanager
def replacing(path):
    """Give a temporary path beside ``path``; on success it is fsynced and renamed onto it, on failure removed."""
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _unlink(temporary)  # of a killed process that had our number: in a container that is common
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        _again_if_interrupted(os.rename, temporary, path)
        _sync(path.parent, os.O_RDONLY)
    finally:
        _unlink(temporary)


class NewFile:
    """A file that is being written, by us or by HDF5; its first error is kept, and raised by ``check`` and ``close``.

    HDF5 cannot close a file whose disk refuses a write: it tries again, and fails again, until the process ends. So it
    is not told, what it writes after the error is dropped, and the error keeps its number and its name.
    """

    def __init__(self, path):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._path, self._descriptor, self._place = path, os.open(path, flags, 0o666), 0
        self._error: OSError | None = None

    def seek(self, place, whence=os.SEEK_SET):
        """Go to a place, from the start or from the end."""
        self._place = place + (os.fstat(self._descriptor).st_size if whence == os.SEEK_END else 0)
        return self._place

    def tell(self):
        """Return the place."""
        return self._place

    def read(self, n_bytes):
        """Read at the place what HDF5 has written."""
        data = os.pread(self._descriptor, n_bytes, self._place)
        self._place += len(data)
        return data

    def write(self, data):
        """Write all of ``data`` at the place, or keep the error."""
        left = memoryview(data)
        try:
            while left and self._error is None:
                n_written = os.pwrite(self._descriptor, left, self._place)
                left, self._place = left[n_written:], self._place + n_written
        except OSError as cause:
            self._error = _at(self._path, cause)
        return len(data)

    def truncate(self, n_bytes):
        """Cut or lengthen the file, or keep the error."""
        try:
            if self._error is None:
                _again_if_interrupted(os.ftruncate, self._descriptor, n_bytes)
        except OSError as cause:
            self._error = _at(self._path, cause)

    def flush(self):
        """Do nothing: every write has gone to the system."""

    def check(self):
        """Raise the error that was kept."""
        if self._error is not None:
            raise self._error

    def close(self):
        """Close the file, then raise the error that was kept."""
        _close(self._descriptor)
        self.check()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def write_text(path, text):
    """Write a text file that is whole or absent."""
    with replacing(path) as temporary, NewFile(temporary) as file:
        file.write(text.encode())


def append_line(path, line):
    """Append a line to a file in one write, so that a kill leaves whole lines."""
    with Path(path).open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


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
    """Write a JSON document with its format name, format version and the code's version, and seal it."""
    head = {"format": form, "version": FORMATS[form], "code_version": code_version()}
    text = json.dumps({**head, **document}, indent=1)
    if form in _SEALED:
        body = text.removesuffix("\n}")
        text = f"{body}{_SEAL}{_text_hash(body)}{_SEAL_END}"
    write_text(path, text)


def _text_hash(text):
    return hashlib.sha256(text.encode()).hexdigest()


def _seal_holds(text):
    """Say whether the text is the one that was written; None without a seal."""
    body, seal, found = text.rpartition(_SEAL)
    return found == _text_hash(body) + _SEAL_END if seal else None


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
    if _seal_holds(text) is not False:
        check_format(path, form, document.get("format"), document.get("version"), error)
        if _seal_holds(text) or form not in _ALWAYS_SEALED:
            return document
    raise error(f"{path}: changed since it was written, its digest is another; make it again")
