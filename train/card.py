"""The card of a model: what it must say before anyone scores with it, for it may come from elsewhere."""

import math
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from anyecg.kernels.presets import PRESETS
from anyecg.loaders.errors import ModelError
from anyecg.loaders.files import file_hash, read_document
from anyecg.loaders.shard_config import SECONDS
from anyecg.train.finetune_config import Head, Model

_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
# Columns of the CSV of scores that are no target.
_TAKEN = ("record", "start_s")
# What of a card its own folder's files say, and what names places on the machine of the training.
_OWN, _PLACES = ("format", "version", "code_version"), ("weights",)


class _Card(BaseModel):
    model_config = ConfigDict(strict=True)

    model: _Name
    head: Head
    join: Literal["logits", "features"]
    windows_per_sample: int = Field(ge=1)
    targets: list[_Name] = Field(min_length=1, max_length=10_000)
    leads: list[_Name] = Field(min_length=1, max_length=64)
    fs: int = Field(ge=1, le=100_000)
    samples: int
    preset: Literal[*PRESETS]  # type: ignore[valid-type]
    value_mean: list[float] = []
    value_sd: list[float] = []

    @model_validator(mode="after")
    def _parts_agree(self):
        if len(set(self.targets)) < len(self.targets) or set(self.targets) & set(_TAKEN):
            raise ValueError(f"targets: each wanted once, and none named {' or '.join(_TAKEN)}")
        if self.samples != SECONDS * self.fs:
            raise ValueError(f"samples: found {self.samples}, wanted {SECONDS} s at {self.fs} Hz")
        if self.head == "regression":
            if not len(self.value_mean) == len(self.value_sd) == len(self.targets):
                raise ValueError("value_mean, value_sd: one number a target wanted")
            if not all(map(math.isfinite, [*self.value_mean, *self.value_sd])) or min(self.value_sd) <= 0:
                raise ValueError("value_mean, value_sd: finite numbers wanted, every SD above 0")
        return self


def check_card(where, card):
    """Refuse a card that does not say, or not consistently, what goes in and what comes out.

    Parameters
    ----------
    where : path
        Of the file that holds it, for the error.
    card : dict
        Further keys are left as they are.

    Raises
    ------
    ModelError
    """
    try:
        _Card.model_validate(card)
    except ValidationError as cause:
        first = cause.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise ModelError(f"{where}: not the card of a model ({f'{place}: ' if place else ''}{said})") from None


def portable(card):
    """Return a card to be carried elsewhere: JSON of any reader, without paths."""
    kept = {key: value for key, value in card.items() if key not in _OWN}
    kept["finetune"] = {key: value for key, value in card.get("finetune", {}).items() if key not in _PLACES}
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in kept.items()
    }


def check_network(where, card):
    """Refuse a card of a network that this code does not have."""
    if card["model"] not in (known := get_args(Model)):
        raise ModelError(f"{where}: unknown network {card['model']!r}; known: {', '.join(known)}")


def read_card(folder):
    """Read the card of a published model.

    Raises
    ------
    ModelError
        No model there, another version, or an unknown network.
    """
    folder = Path(folder)
    card = read_document(
        folder / "card.json", "anyecg-model", error=ModelError,
        missing=f"{folder} holds no finished model; run 'anyecg finetune' with the same config first",
    )  # fmt: skip
    check_card(folder / "card.json", card)
    check_network(folder, card)
    return card


def check_weights(folder):
    """Read the card of a published model and refuse weights that are not those it names."""
    card = read_card(folder)
    weights = Path(folder) / "model.safetensors"
    if not weights.is_file() or file_hash(weights) != card.get("weights_sha256"):
        raise ModelError(f"{weights}: missing or not the weights of its card; run 'anyecg finetune' again")
    return card


def check_target_table(folder, card, index):
    """Refuse a model made for another target table or another preparation than the shards have."""
    for key, what in (
        ("target_hash", "target table"), ("preset_hash", "preparation"), ("fs", "sampling rate"),
        ("samples", "window length"), ("leads", "leads"),
    ):  # fmt: skip
        wanted = list(index.leads) if key == "leads" else index.head[key]
        if card[key] != wanted:
            raise ModelError(
                f"{folder}: made for another {what} ({card[key]}) than the shards in {index.folder} ({wanted}); "
                "run 'anyecg finetune' on these shards"
            )
