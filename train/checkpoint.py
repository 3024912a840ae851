"""The state of a training as a folder that is whole or invisible."""

import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from anyecg.loaders.errors import ModelError
from anyecg.loaders.files import file_hash, make_folder, read_document, remove, sync_folder, write_document

POINTER, MANIFEST, TENSORS = "pointer.json", "manifest.json", "state.safetensors"


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
        if not self.pointer.exists():
            return None
        folder, manifest = self._check()
        try:
            return load_file(folder / TENSORS), manifest["state"]
        except (OSError, SafetensorError) as cause:
            raise self._error(folder / TENSORS, str(cause)) from None

    def _check(self):
        """Return the folder that the pointer names and its manifest, after everything agreed."""
        named = self._document(self.pointer, "anyecg-checkpoint")
        folder = self.folder / Path(named["folder"]).name
        manifest = self._document(folder / MANIFEST, "anyecg-manifest")
        if file_hash(folder / MANIFEST) != named["sha256"]:
            raise self._error(folder / MANIFEST, "not the one that the pointer names")
        for path, wanted in self._named(folder, manifest):
            if path.is_symlink() or not path.is_file() or file_hash(path) != wanted:
                raise self._error(path, "missing or damaged")
        return folder, manifest

    def _named(self, folder, manifest):
        """Return (path, hash) of the files that a manifest names: its own, and the best weights beside it."""
        files = [(folder / name, wanted) for name, wanted in manifest["files"].items()]
        return files + [(self.folder / name, wanted) for name, wanted in manifest["beside"].items()]

    def _document(self, path, form):
        if path.exists() and path.stat().st_uid != os.geteuid():
            raise self._error(path, f"belongs to user {path.stat().st_uid}, not to you")
        try:
            return read_document(path, form, missing=f"{path}: missing", error=ModelError)
        except ModelError as cause:
            raise ModelError(f"{cause}; remove {self.folder} and run 'anyecg finetune' again") from None

    def _error(self, path, what):
        return ModelError(f"{path}: {what}; remove {self.folder} and run 'anyecg finetune' again")

    def save(self, step, tensors, state, *, beside=()):
        """Write a state and make it the newest; ``beside`` names files of the run folder that belong to it."""
        make_folder(self.folder)
        name = f"step-{step:08d}"
        if self.pointer.exists() and self._document(self.pointer, "anyecg-checkpoint")["folder"] == name:
            return
        temporary, folder = self.folder / f".{name}.tmp", self.folder / name
        for path in (temporary, folder):
            shutil.rmtree(path, ignore_errors=True)
        make_folder(temporary)
        save_file(tensors, temporary / TENSORS)
        sync_folder(temporary)
        manifest = {
            "files": {TENSORS: file_hash(temporary / TENSORS)},
            "beside": {path: file_hash(self.folder / path) for path in beside},
            "state": state,
        }
        write_document(temporary / MANIFEST, "anyecg-manifest", manifest)
        temporary.rename(folder)
        sync_folder(self.folder)
        write_document(
            self.pointer, "anyecg-checkpoint", {"folder": name, "sha256": file_hash(folder / MANIFEST)}
        )  # fmt: skip
        self._sweep({name, *beside})

    def _sweep(self, kept):
        """Remove older states and what killed saves have left."""
        for path in self.folder.iterdir():
            if path.name in kept or not path.name.startswith(("step-", ".step-", "best-")):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                remove(path)

    def problems(self):
        """Say in one line each what is wrong with the newest state; empty when all is well or there is none."""
        try:
            self.load()
        except ModelError as cause:
            return [str(cause)]
        return []
