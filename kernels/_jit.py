"""The one compile policy of every kernel, and where the compiled code is kept."""

import os
from pathlib import Path

import numba


def _cache_folder():
    """Return a folder of this user alone: compiled code is unpickled, so never a shared /tmp."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(home) / "anyecg" / "numba")


# Beside the source the cache would race on shared file systems and survive an uninstall.
if not os.environ.get("NUMBA_CACHE_DIR"):
    numba.config.CACHE_DIR = _cache_folder()

# No fastmath: it deletes NaN tests, and re-associated sums would differ between vector families.
kernel = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
