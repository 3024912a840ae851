"""Re-read what a run has written: its shards, the states of its training, its model."""

from pathlib import Path
from typing import Any, NamedTuple

from anyecg.loaders.errors import AnyECGError
from anyecg.loaders.files import FORMATS
from anyecg.loaders.verify import Problem, verify
from anyecg.train.checkpoint import POINTER, Checkpoint


class Part(NamedTuple):
    """One folder that was re-read.

    Attributes
    ----------
    folder : Path
    numbers : dict
        What was read.
    said : str
        The same in words.
    problems : list of Problem
        Files are named from the folder that was asked for.
    """

    folder: Path
    numbers: dict[str, Any]
    said: str
    problems: list[Problem]


def verify_all(folder):
    """Re-read a run folder, or one of its folders: shards, one checkpoint, all checkpoints, model.

    Returns
    -------
    list of Part
    """
    folder = Path(folder)
    if (folder / "card.json").exists():
        return [_model(folder)]
    if _is_checkpoint(folder):
        return [_checkpoint(folder)]
    below = [path for path in _folders(folder) if _is_checkpoint(path)]
    if below and not (folder / "index.json").exists():
        return [_checkpoint(path, f"{path.name}/") for path in below]
    if (folder / "index.json").exists() or not (folder / "shards").is_dir():
        return [_shards(folder)]
    parts = [_shards(folder / "shards")]
    parts += [_checkpoint(path, f"checkpoint/{path.name}/") for path in _folders(folder / "checkpoint")]
    return parts + ([_model(folder / "model", "model/")] if (folder / "model").is_dir() else [])


def as_json(folder, parts):
    """Return what was found, as JSON: one object a part, and the problems of all together."""
    problems = [problem._asdict() for part in parts for problem in part.problems]
    numbers = parts[0].numbers if len(parts) == 1 else {}
    found = [{"folder": str(part.folder), "whole": not part.problems, **part.numbers} for part in parts]
    return {"folder": str(folder), "whole": not problems, **numbers, "parts": found, "problems": problems}


def _folders(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _is_checkpoint(folder):
    return (folder / POINTER).exists() or any(folder.glob("step-*"))


def _shards(folder):
    try:
        numbers, problems = verify(folder)
    except (AnyECGError, OSError) as cause:
        numbers, problems = {}, [Problem("index.json", str(cause).removeprefix(f"{folder / 'index.json'}: "))]
    said = f"{numbers.get('n_windows')} windows in {numbers.get('n_shards')} shards, {_size(numbers)}"
    return Part(folder, numbers, said, problems)


def _checkpoint(folder, prefix=""):
    numbers, problems = Checkpoint(folder).problems()
    said = "no state yet" if numbers["step"] is None else f"state of step {numbers['step']}, {_size(numbers)}"
    return Part(folder, numbers, said, [problem._replace(file=prefix + problem.file) for problem in problems])


def _model(folder, prefix=""):
    from anyecg.train.card import check_weights

    try:
        check_weights(folder)
    except (AnyECGError, KeyError) as cause:
        # The card is a plain text that may be edited; what it says of the weights must hold.
        what = str(cause).removeprefix(f"{folder / 'model.safetensors'}: ")
        return Part(folder, {}, "", [Problem(f"{prefix}model.safetensors", what)])
    numbers = {"n_bytes": (folder / "model.safetensors").stat().st_size}
    return Part(folder, numbers, f"weights of version {FORMATS['anyecg-model']}, {_size(numbers)}", [])


def _size(numbers):
    return f"{numbers.get('n_bytes', 0) / 1e6:.1f} MB"
