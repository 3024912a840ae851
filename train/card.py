"""What a model's card must say before anyone scores with it; a card may come from elsewhere."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from anyecg.kernels.prepare import PRESETS
from anyecg.loaders.errors import ModelError
from anyecg.loaders.windows import SECONDS
from anyecg.train.heads import Head

_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
# Columns of the CSV of scores that are no target.
_TAKEN = ("record", "start_s")


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
