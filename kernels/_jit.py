"""The one compile policy of every kernel, and where the compiled code is kept."""

import errno
import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path

import numba
from numba.core.caching import FunctionCache


def _cache_folder():
    """Return a folder of this user alone: compiled code is unpickled, so never a shared /tmp.

    It is named by the sources of all kernels: Numba looks at a kernel's own file, not at those it calls.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or Path(home) / "anyecg" / "numba")
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return str(folder / hashlib.sha256(sources).hexdigest()[:16])


def _check(folder):
    """Make the folder of compiled code; refuse one that another user could put code into, or replace."""
    for one in (Path(folder).parent, Path(folder)):
        one.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = one.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(
                errno.EPERM, "others may write compiled code there; give a folder of your own (chmod 700) as "
                "NUMBA_CACHE_DIR", str(one)
            )  # fmt: skip


class _Turn:
    """One process of those that share a folder compiles at a time, and the others load what it has compiled.

    So the ranks of a node compile each kernel once, whichever they come to.
    """

    def __init__(self, folder):
        self._path, self._file, self._depth = Path(folder) / ".compiling", None, 0

    def take(self):
        """Wait for the turn; a kernel that calls another compiles both in one turn."""
        if not self._depth:
            self._file = self._path.open("a")
            # A file system without locks compiles as often as there are processes.
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_EX)
        self._depth += 1

    def end(self, *, wholly=False):
        """End the turn once it was ended as often as it was taken, or ``wholly``."""
        self._depth = 0 if wholly else self._depth - 1
        if not self._depth and self._file is not None:
            self._file.close()
            self._file = None


class _Cache(FunctionCache):
    """Numba's cache; what is not there is looked for again when it is this process's turn to compile."""

    def load_overload(self, sig, target_context):
        found = super().load_overload(sig, target_context)
        if found is None:
            _turn.take()
            found = super().load_overload(sig, target_context)
            if found is not None:
                _turn.end()
        return found

    def save_overload(self, sig, data):
        super().save_overload(sig, data)
        _turn.end()


def kernel(function):
    """Compile a kernel at its first call, once for all processes that share the folder of compiled code."""
    compiled = _compiled(function)
    compiled._cache = _Cache(function)
    compile_it = compiled.compile

    def compile_in_turn(signature):
        try:
            return compile_it(signature)
        except BaseException:
            _turn.end(wholly=True)
            raise

    compiled.compile = compile_in_turn
    return compiled


# Beside the source the cache would race on shared file systems and survive an uninstall.
numba.config.CACHE_DIR = _cache_folder()
_check(numba.config.CACHE_DIR)
_turn = _Turn(numba.config.CACHE_DIR)
# No fastmath: it deletes NaN tests, and re-associated sums would differ between vector families.
_compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
