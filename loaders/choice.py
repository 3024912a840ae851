"""Which pairs an epoch has, how often each, and how they are mixed."""

from pydantic import Field, model_validator

from anyecg.loaders.settings import Section


class Choice(Section):
    """The order of training: which pairs, how often, how they are mixed."""

    lanes: int = Field(256, ge=1, le=65_536, description="lists of runs that a batch takes its windows from in turn")
    run_chunks: int = Field(2, ge=1, le=64, description="chunks of 64 windows that are read in one go")
    pool_runs: int = Field(2, ge=1, le=1024, description="runs of a lane whose windows are mixed")
    patients: float = Field(1.0, gt=0, le=1, description="training: share of the patients (learning curves)")
    windows_per_draw: int = Field(0, ge=0, le=200, description="training: windows of a draw an epoch; 0: all of them")
    windows_per_sample: int = Field(1, ge=1, le=200, description="training: windows of one draw that make one sample")
    balance: float = Field(
        0.0, ge=0, le=1, description="training: repeat draws with rare abnormal targets by (commonest / n) ^ this"
    )
    max_repeats: float = Field(16.0, ge=1, le=1000, description="training: largest weight that balance gives")

    @model_validator(mode="after")
    def _one_way_to_choose(self):
        if self.windows_per_sample > 1 and self.windows_per_draw:
            raise ValueError("a sample of several windows is all an epoch takes of its draw; leave windows_per_draw 0")
        return self
