"""Published models with random weights, and what they make of shards, for tests of what comes after training."""

import json
from pathlib import Path

import numpy as np
import polars as pl
from mpi4py import MPI

from anyecg.loaders.cohort import RECORD_SCHEMA, Cohort
from anyecg.loaders.stream_config import StreamConfig
from anyecg.train.model import build_model, publish
from anyecg.train.predict import predict_shards
from anyecg.train.scores import read_scores


def card_of(index, *, head="multilabel", join="logits", windows_per_sample=1, **more):
    """Return a card as training would write it for the shards of an index."""
    targets = json.loads(index.head["components"]) if head == "regression" else list(index.targets)
    same = {key: index.head[key] for key in ("fs", "samples", "preset", "preset_hash", "target_hash")}
    return {
        "model": "resnet", "head": head, "join": join, "windows_per_sample": windows_per_sample, "targets": targets,
        "leads": list(index.leads), **same, "stage_hash": "made", "n_parameters": 1, "epoch": 3, "finetune": {}, **more,
    }  # fmt: skip


def publish_made(folder, index, *, seed=5, **card):
    """Publish a network with random weights."""
    card = card_of(index, **card)
    network = build_model(
        card["model"], n_leads=len(card["leads"]), n_targets=len(card["targets"]), seed=seed, join=card["join"]
    )  # fmt: skip
    publish(folder, network, card)
    return folder


def cohort_of(index, seed=3):
    """Return a cohort that the shards of an index could have been made of: people, and nothing else."""
    tables, rng = index.tables, np.random.default_rng(seed)
    n = len(tables["visit_visit"])
    visits = pl.DataFrame(
        {
            "visit": np.array(tables["visit_visit"]), "patient": np.array(tables["visit_patient"]),
            "split": np.array(tables["visit_split"]), "age": rng.integers(18, 91, n).astype(float),
            "sex": rng.integers(-1, 2, n).astype(np.int8),
        }
    ).sample(fraction=1, shuffle=True, seed=seed)  # fmt: skip
    record = {"visit_row": [0], "path": ["r"], "fs": [500.0], "start": [0], "n_samples": [1], "digest": [""]}
    return Cohort(
        targets=index.targets, visits=visits, records=pl.DataFrame(record, schema=RECORD_SCHEMA),
        draws=pl.DataFrame({"visit_row": [0]}), flow=[("visits kept", n)], root=Path("/"),
        quarantine=pl.DataFrame(schema={"record": pl.String, "reason": pl.String}),
        side=pl.DataFrame({"Race": rng.choice(["Asian", "Black", "White", ""], n)}),
    )  # fmt: skip


def predict_made(folder, index, **card):
    """Publish a network with random weights below ``folder`` and return its Scores."""
    publish_made(folder / "model", index, **card)
    predict_shards(
        folder / "scores.h5", index, folder / "model", stream=StreamConfig(), comm=MPI.COMM_SELF, stage_hash="0"
    )  # fmt: skip
    return read_scores(folder / "scores.h5", index)
