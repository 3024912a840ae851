"""Augmentations of a window, each pair's own numbers a function of (seed, epoch, pair) alone."""

from typing import Literal

from pydantic import Field

from anyecg.loaders.settings import Section


class AugmentConfig(Section):
    """How training windows are changed before they are standardised; every augmentation is off by default."""

    noise_mv: float = Field(0.0, ge=0, le=5, description="training: add Gaussian noise of an SD of up to this")
    mask_seconds: float = Field(0.0, ge=0, le=10, description="training: set a stretch of up to this to zero")
    shift_seconds: float = Field(0.0, ge=0, le=10, description="training: shift each window, circularly, by up to this")
    wander_mv: float = Field(0.0, ge=0, le=5, description="training: baseline wander (0.1-0.5 Hz); shard.preset 'none'")
    hum_mv: float = Field(0.0, ge=0, le=5, description="training: mains hum of up to this; only shard.preset 'none'")
    hum_hz: Literal[50, 60] = Field(60, description="frequency of the mains")
