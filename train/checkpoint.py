"""The state of a training as a folder that is whole or invisible."""

import hashlib
import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from anyecg.loaders.errors import ModelError, UpgradeNeeded
from anyecg.loaders.files import file_hash, make_folder, read_document, remove, sync_folder, sync_names, write_document
from anyecg.loaders.verify import Problem
from anyecg.train.tensors import write_tensors

POINTER, MANIFEST, TENSORS = "pointer.json", "manifest.json", "state.safetensors"
_STEP, _BEST = re.compile(r"step-\d{8,}"), re.compile(r"best-\d{8,}\.safetensors")
# Of states that are not the newest, and of kills while one was written.
_LEFT_OVER = ("step-", ".step-", "best-", ".best-", f".{POINTER}.")


class Checkpoint:
    """The newest whole state of one training run.

    A save writes a folder under a temporary name (tensors, then a manifest with their hashes and everything that is no
    tensor, each fsynced), renames it to ``step-N``, then replaces the pointer, then removes what is older. So the
    pointer always names a whole folder, and what a kill leaves behind is never looked at and swept by the next save.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.pointer = self.folder / POINTER

    def load(self):
        """Return the newest state, as it was given to ``save``; None for a fresh start.

        Returns
        -------
        (dict of tensors, dict of plain values) or None

        Raises
        ------
        UpgradeNeeded, ModelError
            Another version; missing, damaged, or another user's.
        """
        if not os.path.lexists(self.pointer):
            return None
        tensors, state, problems, _ = self._examine()
        if problems:
            raise self._error(*problems[0][:2])
        return tensors, state

    def problems(self):
        """Re-read the newest state.

        Returns
        -------
        (dict, list of Problem)
            Its step, None without one, and the bytes read; what is wrong, nothing when all is well or nothing was
            saved yet.
        """
        if os.path.lexists(self.pointer):
            try:
                _, state, problems, n_bytes = self._examine()
            except UpgradeNeeded as cause:
                state, problems, n_bytes = None, [Problem(POINTER, str(cause))], 0
            return {"step": state and state["step"], "n_bytes": n_bytes}, problems
        found = [Problem(POINTER, "missing, beside a state; it was lost, or the first save was killed")]
        return {"step": None, "n_bytes": 0}, found if any(self.folder.glob("step-*")) else []

    def _examine(self):
        """Return (tensors, plain values, problems, bytes read) of what the pointer names."""
        read: dict[str, bytes] = {}
        try:
            named = self._document(POINTER, "anyecg-checkpoint", read)
            name = _plain_name(POINTER, named, "folder", _STEP)
            self._check_status(name, stat.S_ISDIR, "folder")
            manifest = self._document(f"{name}/{MANIFEST}", "anyecg-manifest", read, named.get("sha256"))
            wanted = _wanted(name, manifest)
        except _Wrong as cause:
            return None, None, [Problem(*cause.args)], _total(read)
        problems, tensors = [], None
        for path, sha256 in wanted.items():
            try:
                self._read(path, read, sha256)
            except _Wrong as cause:
                problems.append(Problem(*cause.args))
        if not problems:
            # Torch is loaded late: whoever only looks for a pointer does without.
            from safetensors.torch import load

            try:
                tensors = load(read[f"{name}/{TENSORS}"])
            except SafetensorError as cause:
                problems = [Problem(f"{name}/{TENSORS}", str(cause))]
        return tensors, manifest["state"], problems, _total(read)

    def _document(self, name, form, read, wanted=None):
        self._read(name, read, wanted)
        try:
            return read_document(self.folder / name, form, missing="missing", error=ModelError)
        except ModelError as cause:
            raise _Wrong(name, str(cause).removeprefix(f"{self.folder / name}: ")) from None

    def _read(self, name, read, wanted=None):
        """Add the bytes of a plain file of ours to ``read``, with the hash that is wanted, if any."""
        self._check_status(name, stat.S_ISREG, "plain file")
        try:
            data = (self.folder / name).read_bytes()
        except OSError as cause:
            raise _Wrong(name, f"cannot be read ({cause.strerror})") from None
        if wanted not in (None, hashlib.sha256(data).hexdigest()):
            raise _Wrong(name, "damaged, or not the one that was saved")
        read[name] = data

    def _check_status(self, name, is_kind, kind):
        try:
            status = os.lstat(self.folder / name)
        except OSError as cause:
            raise _Wrong(name, f"missing ({cause.strerror})") from None
        if not is_kind(status.st_mode):
            raise _Wrong(name, f"not a {kind}; links and the like are refused")
        if status.st_uid != os.geteuid():
            raise _Wrong(name, f"belongs to user {status.st_uid}, not to you")

    def _error(self, name, what):
        return ModelError(f"{self.folder / name}: {what}; remove {self.folder} and run 'anyecg finetune' again")

    def save(self, step, tensors, state, *, beside=()):
        """Write a state and make it the newest; ``beside`` names files of the run folder that belong to it.

        A state of a step that is the newest already is left as it is. Where the disk fails, the one before stays.

        Raises
        ------
        ModelError
            The pointer there is damaged.
        OSError
            The disk fails.
        """
        make_folder(self.folder)
        name = f"step-{step:08d}"
        if self._newest() == name:
            return
        temporary, folder = self.folder / f".{name}.tmp", self.folder / name
        try:
            _clear(temporary, folder)
            self._write(temporary, tensors, state, beside)
            temporary.rename(folder)
        except BaseException:
            # A full disk shall have its room again.
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_names(self.folder)
        write_document(
            self.pointer, "anyecg-checkpoint", {"folder": name, "sha256": file_hash(folder / MANIFEST)}
        )  # fmt: skip
        self._sweep({name, *beside})

    def _newest(self):
        """Return the name of the newest state's folder; None before the first."""
        if not os.path.lexists(self.pointer):
            return None
        try:
            return self._document(POINTER, "anyecg-checkpoint", {}).get("folder")
        except _Wrong as cause:
            raise self._error(*cause.args) from None

    def _write(self, temporary, tensors, state, beside):
        make_folder(temporary)
        files = {TENSORS: write_tensors(temporary / TENSORS, tensors)}
        sync_folder(temporary)
        manifest = {
            "files": files, "beside": {path: file_hash(self.folder / path) for path in beside}, "state": state
        }  # fmt: skip
        write_document(temporary / MANIFEST, "anyecg-manifest", manifest)

    def _sweep(self, kept):
        """Remove older states and what killed saves have left; what cannot be removed now is tried again."""
        for path in self.folder.iterdir():
            if path.name not in kept and path.name.startswith(_LEFT_OVER):
                with suppress(OSError):
                    _clear(path)


class _Wrong(Exception):
    """(file, what is wrong with it)."""


def _wanted(name, manifest):
    """Return {path: hash} of the files that the manifest of a state names."""
    files, beside, state = (manifest.get(key) for key in ("files", "beside", "state"))
    if not all(isinstance(found, dict) for found in (files, beside, state)) or set(files) != {TENSORS}:
        raise _Wrong(f"{name}/{MANIFEST}", f"wanted the hash of {TENSORS}, the files beside it and a state")
    if not isinstance(state.get("step"), int):
        raise _Wrong(f"{name}/{MANIFEST}", f"step {state.get('step')!r}; wanted a number")
    for path in beside:
        _plain_name(f"{name}/{MANIFEST}", {"beside": path}, "beside", _BEST)
    return {f"{name}/{TENSORS}": files[TENSORS]} | beside


def _plain_name(file, document, key, pattern):
    """Return a name that a document gives, of the form that we give: it leads nowhere else."""
    name = document.get(key)
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise _Wrong(file, f"{key} {name!r}; wanted a name as {pattern.pattern}")
    return name


def _total(read):
    return sum(len(data) for data in read.values())


def _clear(*paths):
    """Remove folders with all that is in them, files, and links but not what they lead to."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif os.path.lexists(path):
            remove(path)
