"""The config of the evaluation."""

from typing import Literal

from pydantic import Field

from anyecg.loaders.errors import ConfigError
from anyecg.loaders.settings import Section

Level = Literal["window", "draw", "visit", "draw-head"]
Attribute = Literal["sex", "age", "race"]


class EvaluateConfig(Section):
    """Which results are made, and how their intervals."""

    horizons_min: list[Literal[60, 30, 15]] = Field([60], min_length=1, description="horizons: 60, 30, 15 minutes")
    levels: list[Level] = Field(
        ["window", "draw"],
        min_length=1,
        description="units: window, draw (mean logit), draw-head (the head that joins windows), visit (its first draw)",
    )
    f1_classes: list[str] = Field([], description="exclusive labels: classes of the mean F1; empty: all")
    unit: Literal["patient", "visit", "draw", "window"] = Field(
        "patient", description="what is resampled: patient, visit, draw or window (parity with the paper)"
    )
    n_replicates: int = Field(1000, ge=2, le=100_000, description="bootstrap replicates")
    confidence: float = Field(0.95, gt=0, lt=1, description="coverage of the intervals")
    interval: Literal["logit-t", "percentile"] = Field(
        "logit-t", description="logit-t (R2, errors and correlations: on scales of their own) or percentile"
    )
    threshold: Literal["youden", "sensitivity", "f1"] = Field(
        "youden", description="threshold, chosen on the validation split: best by Youden, fixed sensitivity, best F1"
    )
    sensitivity: float = Field(0.9, gt=0, le=1, description="what threshold = 'sensitivity' asks for")
    kernel: Literal["exact", "binned"] = Field(
        "exact", description="binned: replicates of the areas from bins of the scores; the error is printed"
    )
    subgroups: list[Attribute] = Field(["sex", "age", "race"], description="groups that AUROCs are shown for")
    baselines: bool = Field(True, description="what age, sex and heart rate say alone, and what the ECG adds to them")
    internal: str = Field(
        "", description="results.json of the same model on its own cohort: thresholds come from there, figures beside"
    )
    ranks: int = Field(2, ge=1, description="MPI ranks that evaluate, started on this machine")


def check_levels(levels, join):
    """Refuse levels that a model has no outputs for."""
    if "draw-head" in levels and join != "features":
        raise ConfigError(
            "level 'draw-head' is that of a head which joins windows: the model's join is 'logits', wanted 'features'; "
            "take 'draw-head' out of evaluate.levels, or train with finetune.join = 'features'"
        )
