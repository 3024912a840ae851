"""The config: one TOML file, every section's class beside the code that reads it, checked strictly."""

import difflib
import tomllib
from functools import reduce
from pathlib import Path
from typing import Any, get_origin

import tomli_w
from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

from anyecg.loaders.cohort_config import CohortConfig
from anyecg.loaders.errors import ConfigError
from anyecg.loaders.files import write_text
from anyecg.loaders.settings import Section
from anyecg.loaders.shard_config import ShardConfig
from anyecg.loaders.stream_config import StreamConfig, filtered_away
from anyecg.slurm.site import SlurmConfig
from anyecg.train.evaluate_config import EvaluateConfig
from anyecg.train.finetune_config import FinetuneConfig
from anyecg.train.predict_config import PredictConfig

MAX_BYTES = 1_000_000


class Config(Section):
    """Everything a run needs."""

    folder: str = Field("runs/anyecg", description="run folder, where every stage writes; relative to the config file")
    seed: int = Field(0, ge=0, lt=2**63, description="decides splits, order, initial weights and replicates")
    cohort: CohortConfig = CohortConfig()
    shard: ShardConfig = ShardConfig()
    stream: StreamConfig = StreamConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    predict: PredictConfig = PredictConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    slurm: SlurmConfig = SlurmConfig()
    deepspeed: dict[str, Any] = Field({}, description="DeepSpeed's own options, for what the keys above do not decide")


PATHS = (
    ("folder",),
    ("cohort", "path"),
    ("cohort", "labels"),
    ("cohort", "targets"),
    ("finetune", "weights"),
    ("predict", "model"),
    ("evaluate", "internal"),
    ("slurm", "container"),
    ("slurm", "scratch"),
)


def known_keys(section=Config):
    """Return every key of a section as dotted name -> field: its own keys first, then the tables in it, in order."""
    keys: dict[str, FieldInfo] = {}
    tables: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        if _is_section(field):
            tables |= {f"{name}.{key}": inner for key, inner in known_keys(field.annotation).items()}
        else:
            (tables if get_origin(field.annotation) is dict else keys)[name] = field
    return keys | tables


def _is_section(field):
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _all_names(section):
    """Return the dotted names of a section's keys, and of the tables they stand in."""
    keys = list(known_keys(section))
    parts = [name.split(".") for name in keys]
    return list(dict.fromkeys([*keys, *(".".join(part[:n]) for part in parts for n in range(1, len(part)))]))


def _explain(error, section=Config):
    """Return what one pydantic error means, with the nearest known key for an unknown one."""
    name = ".".join(str(part) for part in error["loc"])
    # A line stays a line, whatever the key.
    name = name if name.isprintable() else repr(name)[1:-1]
    if error["type"] == "extra_forbidden":
        names = _all_names(section)
        near = difflib.get_close_matches(name, names, 1, 0.4)
        last = {known.split(".")[-1]: known for known in names}
        near = near or [last[key] for key in difflib.get_close_matches(name.split(".")[-1], last, 1, 0.4)]
        return f"unknown key '{name}'; " + (f"nearest known key: '{near[0]}'" if near else "see 'anyecg config'")
    found = repr(error["input"])
    found = found if len(found) < 60 else found[:57] + "..."
    return f"{name or 'config'}: {error['msg']}; found {found}"


def _override(tree, text, folder):
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r}: wanted key=value, as in finetune.epochs=3")
    names = tuple(key.strip().split("."))
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        parsed = value
    if names in PATHS and isinstance(parsed, str) and parsed:
        parsed = str(folder / parsed)
    for name in names[:-1]:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{text!r}: {name!r} is a value, not a section")
    tree[names[-1]] = parsed


def _read(path):
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as cause:
        raise ConfigError(f"{path}: {cause.strerror}; give the path of a config (anyecg config prints one)") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: over {MAX_BYTES} bytes; wanted a config")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, ValueError) as cause:
        raise ConfigError(f"{path}: not TOML ({cause})") from None
    except RecursionError:
        raise ConfigError(f"{path}: not TOML of a config (nested too deeply)") from None


def _resolve_paths(tree, base):
    """Make the paths of the file absolute, from the file's own folder."""
    for *sections, name in PATHS:
        table = tree
        for section in sections:
            table = table.get(section, {}) if isinstance(table, dict) else {}
        if isinstance(table, dict) and isinstance(table.get(name), str) and table[name]:
            table[name] = str(base / table[name])


def load_config(path, overrides=()):
    """Read and check a config.

    Parameters
    ----------
    path : path or None
        None gives the defaults.
    overrides : list of str
        ``key=value``, the value in TOML or a bare word; paths count from the working folder.

    Returns
    -------
    Config, all paths absolute

    Raises
    ------
    ConfigError
        One line: where, what was found, what was wanted.
    """
    tree = {"folder": Config.model_fields["folder"].default}
    base = Path.cwd()
    if path is not None:
        tree |= _read(Path(path))
        base = Path(path).resolve().parent
    _resolve_paths(tree, base)
    for text in overrides:
        _override(tree, text, Path.cwd())
    try:
        config = Config.model_validate(tree)
    except ValidationError as cause:
        errors = cause.errors(include_url=False, include_context=False)
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(f"{path or 'config'}: {_explain(errors[0])}{more}") from None
    if name := filtered_away(config.stream, config.shard.preset):
        raise ConfigError(
            f"{path or 'config'}: stream.{name}: found {getattr(config.stream, name)} with shard.preset = "
            f"'{config.shard.preset}', whose filters would have taken it out; set it to 0, or shard.preset = 'none'"
        )
    return config


def render_config(config):
    """Return the config as TOML, each key under its description."""
    lines, section = ["# anyecg config"], []
    for name, field in known_keys(type(config)).items():
        *where, key = name.split(".")
        value = reduce(getattr, [*where, key], config)
        if isinstance(value, dict):
            # A table of its own, under its full name.
            section = [*where, key]
            text = tomli_w.dumps(reduce(lambda inner, outer: {outer: inner}, reversed(section), value))
            lines += ["", f"# {field.description}", text.strip()]
            continue
        if where != section:
            section = where
            lines += ["", f"[{'.'.join(where)}]"]
        lines += [f"# {field.description}", tomli_w.dumps({key: value}).strip()]
    return "\n".join(lines) + "\n"


def write_config(folder, config):
    """Lay the resolved config beside an output."""
    write_text(Path(folder) / "config.toml", render_config(config))
