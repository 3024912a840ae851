"""The child process that parses files of other formats than WFDB and EDF: one file, bounded, shut in.

It opens the file it was given and nothing else but Python's own modules, connects to nothing, starts nothing and
unpickles nothing: an audit hook refuses it, for the libraries too. What the hook cannot see is bounded by the system.
"""

import hashlib
import importlib
import json
import os
import signal
import stat
import sys
import warnings

import numpy as np

from anyecg.loaders.apart import limit, settle
from anyecg.loaders.errors import RecordError, Unsaid
from anyecg.loaders.formats import Options, check_recording
from anyecg.loaders.lead_names import find_lead

READERS = {
    "aecg": "format_xml", "sierra": "format_xml", "muse": "format_xml", "scp": "format_xml", "dicom": "format_dicom",
    **dict.fromkeys(("text", "parquet", "npy", "npz", "matlab", "hdf5"), "format_arrays"),
}  # fmt: skip
_SPARE_MEMORY, _MOST_MEMORY, _SECONDS = 192 << 20, 192 << 20, 1.2
_REFUSED = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.startfile",
            "pickle.find_class", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink",
            "os.truncate", "shutil.", "urllib.", "ftplib.", "http.", "smtplib.", "webbrowser.")  # fmt: skip
_MODULES = tuple({os.path.realpath(folder) + "/" for folder in (*sys.path, sys.prefix, sys.base_prefix) if folder})


class _Guard:
    """Refuses, while it is on, whatever a parser of one open file has no need of."""

    def __init__(self):
        self.on = False
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if not self.on:
            return
        if event.startswith(_REFUSED):
            raise PermissionError(f"refused while parsing: {event}")
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path, writes = os.fsdecode(arguments[0]), (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
            allowed = path.startswith("/proc/self/") or os.path.realpath(path).startswith(_MODULES)
            if writes or not allowed:
                raise PermissionError("refused while parsing: open")


def _open(path):
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RecordError("not a plain file")
    return os.fdopen(descriptor, "rb")


def _parse(request, guard):
    """Return (answer, arrays) of a request: kind, path, lead or None for all, options."""
    kind, path, lead, options = request
    reader = importlib.import_module(f"anyecg.loaders.{READERS[kind]}")
    reader.load(kind)
    with _open(path) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        limit(n_bytes, spare=_SPARE_MEMORY, most=_MOST_MEMORY, seconds=_SECONDS)
        guard.on = True
        options = Options(**options)
        try:
            found = check_recording(reader.read(file, kind, options))
            file.seek(0)
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
        finally:
            guard.on = False
    places = list(range(len(found.leads)))
    if lead is not None:
        places = [_place(lead, [one.name for one in found.leads])]
    answer = {
        "form": found.form[:200], "digest": digest, "start": found.start and found.start.isoformat(),
        "leads": [[one.name, one.fs, len(one.value_T), one.unit[:40]] for one in found.leads],
        "patient": found.patient, "about": found.about, "notes": found.notes[:20], "sent": places,
    }  # fmt: skip
    return answer, [found.leads[place].value_T for place in places]


def _place(lead, names):
    """Return the position of a lead; one that is not there, or could be several, is refused by whoever asked."""
    if isinstance(lead, str):
        return (find_lead(lead, names) or [0])[0]
    return lead if 0 <= lead < len(names) else 0


def main():
    """Answer each request on standard input with a line of JSON and the samples as they lie in memory."""
    settle()
    guard, out = _Guard(), sys.stdout.buffer
    # What a library prints or warns of is no answer.
    sys.stdout = sys.stderr
    warnings.simplefilter("ignore")
    for line in sys.stdin.buffer:
        arrays: list = []
        try:
            answer, arrays = _parse(json.loads(line), guard)
        except RecordError as cause:
            answer = {"error": str(cause), "unsaid": isinstance(cause, Unsaid)}
        except MemoryError:
            answer = {"error": "too large: more memory is needed than a file of its size may take"}
        except Exception as cause:  # libraries raise errors of many kinds on damaged files
            answer = {"error": f"damaged ({type(cause).__name__}: {cause})"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(json.dumps(answer).encode() + b"\n")
        for array in arrays:
            out.write(np.ascontiguousarray(array).data.cast("B"))
        out.flush()


if __name__ == "__main__":
    main()
