"""The config of the data path: from the shards to the network."""

from typing import Literal

from pydantic import Field

from anyecg.loaders.augment import AugmentConfig
from anyecg.loaders.choice import Choice


class StreamConfig(Choice, AugmentConfig):
    """How windows travel from the shards to the network."""

    loader: Literal["dali", "torch"] = Field("dali", description="NVIDIA DALI, or torch's DataLoader without it")
    workers: int = Field(0, ge=0, le=256, description="processes of the torch loader; 0: a thread of the trainer's own")
    read_threads: int = Field(2, ge=1, le=32, description="runs of chunks read at one time")
    prefetch: int = Field(2, ge=1, le=64, description="batches prepared ahead")
    on_damage: Literal["fail", "quarantine"] = Field(
        "fail", description="a damaged chunk stops the training, or is left out and named"
    )
