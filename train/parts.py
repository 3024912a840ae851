"""Outputs of neighbouring visits in files of their own, so that a killed prediction goes on, and no rank holds all."""

import shutil
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from anyecg.loaders.errors import ModelError
from anyecg.loaders.files import replacing

_BROKEN = (OSError, ValueError, EOFError, KeyError, BadZipFile)


class Parts:
    """Finished visits of one prediction, in files that any rank writes and rank 0 reads.

    Parameters
    ----------
    folder : path
        Of this very prediction: other weights or shards have another one.
    """

    def __init__(self, folder):
        self._folder = Path(folder)

    def save(self, split, first, last, outputs):
        """Keep what a model said of the visits ``first`` to ``last``, the last one not included.

        ``outputs`` is a dict of kind -> (rows int64 (n,), outputs float32 (n, targets)). Returns the file's name.
        """
        path = self._folder / f"{split}-{first}-{last}.npz"
        arrays = {f"{kind}/rows": rows for kind, (rows, _) in outputs.items()}
        arrays |= {f"{kind}/outputs": values for kind, (_, values) in outputs.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        return path.name

    def names(self):
        """Return the names of the files that can be read; what a crash has left of others is removed."""
        for path in self._folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)
        return [path.name for path in sorted(self._folder.glob("*.npz")) if self._is_whole(path)]

    def _is_whole(self, path):
        try:
            with np.load(path, allow_pickle=False) as found:
                # Each is read against its checksum.
                for name in found.files:
                    found[name]
        except _BROKEN:
            path.unlink(missing_ok=True)
            return False
        return True

    def left(self, names, split, n_visits):
        """Return the runs of visits, (first, last), of which ``names`` hold nothing."""
        runs, at = [], 0
        for first, last in sorted(_visits_in(name) for name in names if name.startswith(f"{split}-")):
            runs += [(at, first)] if first > at else []
            at = max(at, last)
        return [*runs, (at, n_visits)] if at < n_visits else runs

    def gathered(self, names, split):
        """Return a dict of kind -> (rows, ``Outputs``) of a split, rows ascending."""
        mine = [name for name in names if name.startswith(f"{split}-")]
        kinds = sorted({name.partition("/")[0] for name in self._members(mine[0])}) if mine else []
        return {kind: (found.rows, found) for kind in kinds for found in [Outputs(self, mine, kind)]}

    def _members(self, name):
        with np.load(self._folder / name, allow_pickle=False) as found:
            return found.files

    def read(self, name, member):
        """Return one array of a file.

        Raises
        ------
        ModelError
            It cannot be read back.
        """
        try:
            with np.load(self._folder / name, allow_pickle=False) as found:
                return found[member]
        except _BROKEN as cause:
            raise ModelError(
                f"{self._folder / name}: cannot be read back ({cause}); run 'anyecg predict' again"
            ) from None

    def remove(self):
        """Remove all of it."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _visits_in(name):
    first, last = Path(name).stem.split("-")[-2:]
    return int(first), int(last)


class Outputs:
    """Outputs of one kind from many files, in the order of their rows; a slice of it is an array.

    Attributes
    ----------
    rows : int64 array (n,)
        Ascending.
    shape : (n, targets)
    """

    def __init__(self, parts, names, kind):
        self._names, rows = names, [parts.read(name, f"{kind}/rows") for name in names]
        # A row that two files hold, one of them of a rank that outlived its job, counts once.
        self.rows, first = np.unique(np.concatenate(rows), return_index=True)
        lengths = [len(part) for part in rows]
        self._part = np.repeat(np.arange(len(names)), lengths)[first]
        self._place = np.concatenate([np.arange(n) for n in lengths])[first]
        # Neighbouring rows lie in few files.
        self._read = lru_cache(maxsize=2)(lambda part: parts.read(names[part], f"{kind}/outputs"))
        self.shape = len(self.rows), self._read(0).shape[1]

    def __getitem__(self, rows):
        part, place = self._part[rows], self._place[rows]
        found = np.empty((len(part), self.shape[1]), np.float32)
        for number in np.unique(part):
            found[part == number] = self._read(number)[place[part == number]]
        return found
