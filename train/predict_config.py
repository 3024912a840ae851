"""The config of prediction."""

from pydantic import Field

from anyecg.loaders.settings import Section


class PredictConfig(Section):
    """Which model makes the scores."""

    model: str = Field(
        "", description="folder of a finished model to judge on this cohort; nothing is trained then; empty: train one"
    )
