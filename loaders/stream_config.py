"""The config of the data path: from the shards to the network."""

from typing import Literal

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

    @property
    def takes_all(self):
        """Whether an epoch has each pair of the split and horizon just once."""
        return self.patients == 1 and not self.balance and not self.windows_per_draw and self.windows_per_sample == 1


class AugmentConfig(Section):
    """How training windows are changed before they are standardised; every augmentation is off by default."""

    noise_mv: float = Field(0.0, ge=0, le=5, description="training: add Gaussian noise of an SD of up to this")
    mask_seconds: float = Field(0.0, ge=0, le=10, description="training: set a stretch of up to this to zero")
    shift_seconds: float = Field(0.0, ge=0, le=10, description="training: shift each window, circularly, by up to this")
    stretch: float = Field(0.0, ge=0, le=1, description="training: play each window up to this share faster or slower")
    flip: float = Field(0.0, ge=0, le=1, description="training: share of the windows that are turned upside down")
    wander_mv: float = Field(0.0, ge=0, le=5, description="training: baseline wander (0.1-0.5 Hz); shard.preset 'none'")
    hum_mv: float = Field(0.0, ge=0, le=5, description="training: mains hum of up to this; only shard.preset 'none'")
    hum_hz: Literal[50, 60] = Field(60, description="frequency of the mains")


class StreamConfig(Choice, AugmentConfig):
    """How windows travel from the shards to the network."""

    loader: Literal["dali", "torch"] = Field("dali", description="NVIDIA DALI, or torch's DataLoader without it")
    workers: int = Field(0, ge=0, le=256, description="processes of the torch loader; 0: a thread of the trainer's own")
    read_threads: int = Field(2, ge=1, le=32, description="runs of chunks read at one time")
    prefetch: int = Field(2, ge=1, le=64, description="batches prepared ahead")
    on_damage: Literal["fail", "quarantine"] = Field(
        "fail", description="a damaged chunk stops the training, or is left out and named"
    )


def filtered_away(config, preset):
    """Return the name of an augmentation that the filters of ``preset`` would have taken out; None if there is none.

    Wander and hum belong before the filters; added to filtered windows they are nothing that a network ever meets.
    """
    if preset == "none":
        return None
    return next((name for name in ("wander_mv", "hum_mv") if getattr(config, name)), None)
