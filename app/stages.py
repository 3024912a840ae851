"""The stages of a run: what each reads, writes and needs, and whether it is already done."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from anyecg.app.config import Config, render_config, write_config
from anyecg.loaders.errors import AnyECGError, CohortError, ModelError, UpgradeNeeded
from anyecg.loaders.files import digest, file_hash, listing, replacing
from anyecg.train.card import check_target_table, check_weights, read_card
from anyecg.train.evaluate_config import check_levels

# Of NVIDIA and AMD, under Windows, on boards.
GPU_DEVICES = ("nvidia*", "kfd", "dxg", "nvhost*", "nvgpu*")


@dataclass(frozen=True)
class Stage:
    """One step of the chain.

    Attributes
    ----------
    wanted : function of the config
        Hash of everything that decides the stage's output; raises when what it reads is missing.
    found : function of the config
        The hash that the output there carries; None, or an error, without whole output.
    n_ranks : function of the config
        MPI ranks to start on this machine.
    run : function of (config, communicator, hash)
    """

    name: str
    wanted: Callable
    found: Callable
    n_ranks: Callable
    run: Callable

    def is_done(self, config, wanted=None):
        """Say whether the output of just this config and input, whose hash is ``wanted``, is there."""
        try:
            found = self.found(config)
        except UpgradeNeeded:
            raise
        except (AnyECGError, OSError, ValueError, AttributeError, KeyError, TypeError):
            # Missing or damaged output is made again.
            return False
        return found is not None and found == (wanted or self.wanted(config))


def _folder(config: Config, name):
    return Path(config.folder) / name


def _index(config):
    from anyecg.loaders.index import open_index

    return open_index(_folder(config, "shards"))


def _cohort(config):
    from anyecg.loaders.cohort import open_cohort

    return open_cohort(_folder(config, "cohort"))


def _index_for_batches(config, comm, *, splits):
    """Return the index of shards to read again and again: on the node's own disk, where ANYECG_STAGE names a folder."""
    from anyecg.loaders.index import open_index
    from anyecg.loaders.staging import stage_shards

    folder, local = _folder(config, "shards"), os.environ.get("ANYECG_STAGE")
    return open_index(stage_shards(folder, local, comm, splits=splits) if local else folder)


def _hash_in(config, name):
    """Return the ``stage_hash`` of a JSON document of the run folder."""
    return json.loads(_folder(config, name).read_text(encoding="utf-8")).get("stage_hash")


def _found_cohort(config):
    _cohort(config)
    return _hash_in(config, "cohort/cohort.json")


def _found_shard(config):
    from anyecg.loaders.index import lost_files

    _index(config)
    return None if lost_files(_folder(config, "shards")) else _hash_in(config, "shards/index.json")


def model_folder(config):
    """Return the folder of the model that makes the scores: the run's own, or the one it was given."""
    return Path(config.predict.model) if config.predict.model else _folder(config, "model")


def _found_finetune(config):
    card = check_weights(model_folder(config))
    if config.predict.model:
        return card["stage_hash"]
    return card["stage_hash"] if _folder(config, "model/curve.csv").is_file() else None


def _found_predict(config):
    import h5py

    _scores(config)
    with h5py.File(_folder(config, "scores.h5"), "r") as file:
        return file.attrs.get("stage_hash")


def _found_evaluate(config):
    document = json.loads(_folder(config, "results.json").read_text(encoding="utf-8"))
    from anyecg.train.results import OTHER_TABLES

    tables = ["results.csv", *(f"{name}.csv" for name in OTHER_TABLES if document[name])]
    return document["stage_hash"] if all(_folder(config, table).is_file() for table in tables) else None


def _wanted_cohort(config):
    tables = [config.cohort.targets]
    if config.cohort.kind == "folder":
        tables.append(config.cohort.labels)
        if not Path(config.cohort.labels).is_file():
            raise CohortError(f"{config.cohort.labels}: no such file; give the CSV of labels as 'labels' in [cohort]")
    hashes = [file_hash(path) for path in tables if Path(path).is_file()]
    state = listing(config.cohort.path, without=config.folder, below=config.cohort.kind == "folder")
    return digest([config.cohort.identity(), config.seed, hashes, state])


def _run_cohort(config, comm, stage_hash):
    if comm.rank:
        return
    from anyecg.loaders.cohort import build_cohort, write_cohort
    from anyecg.loaders.table1 import render, render_flow, table1

    cohort = build_cohort(config.cohort, seed=config.seed)
    table = table1(cohort)
    with replacing(_folder(config, "cohort/table1.csv")) as temporary:
        table.write_csv(temporary)
    write_cohort(_folder(config, "cohort"), cohort, stage_hash)
    write_config(_folder(config, "cohort"), config)
    if cohort.may_overlap:
        print(f"cohort: split by visit, {cohort.n_overlapping} patients stand in two splits", flush=True)
    print(f"{render_flow(cohort.flow)}\n\n{render(table)}", flush=True)


def _wanted_shard(config):
    return digest([_cohort(config).hash, config.shard.identity("ranks"), config.seed])


def _run_shard(config, comm, stage_hash):
    from anyecg.loaders.shards import write_shards

    write_shards(
        _folder(config, "shards"), _cohort(config), config.shard, comm, seed=config.seed,
        stage_hash=stage_hash, beside={"config.toml": render_config(config)},
    )  # fmt: skip


def _internal_hash(config):
    """Return the hash of the results that stand beside; empty without any."""
    path = config.evaluate.internal
    if path and not Path(path).is_file():
        raise ModelError(f"{path}: no such file; give the results.json of the model's own cohort as 'internal'")
    return path and file_hash(path)


def check_inputs(config):
    """Refuse a config whose model or weights are missing or do not fit, before hours of work on what comes first."""
    _check_start(config.finetune)
    _internal_hash(config)
    join = config.finetune.join
    if config.predict.model:
        join = check_weights(model_folder(config))["join"]
    check_levels(config.evaluate.levels, join)


def _check_start(finetune):
    """Refuse weights that are not there, or plainly of another network."""
    path = Path(finetune.weights)
    if not finetune.weights or path.is_file():
        return
    if not path.is_dir():
        raise ModelError(
            f"{path}: no such file; give ECGFounder's .pth, what import-weights made of it, or a model of ours, as "
            "'weights'"
        )
    if (found := read_card(path)["model"]) != finetune.model:
        raise ModelError(f"{path}: a model {found!r}; found finetune.model = {finetune.model!r}")


def _hash_of_start(path):
    """Return the hash of the weights to start from; empty from scratch."""
    return path and file_hash(Path(path) / "model.safetensors" if Path(path).is_dir() else path)


def _wanted_finetune(config):
    check_inputs(config)
    if config.predict.model:
        return read_card(model_folder(config))["stage_hash"]
    return digest(
        [
            _index(config).hash, config.finetune.identity("ranks", "weights", "hang_seconds", "log_every"),
            _hash_of_start(config.finetune.weights), config.deepspeed,
            config.stream.identity("prefetch", "read_threads", "workers", "loader", "on_damage"), config.seed,
        ]
    )  # fmt: skip


def _run_finetune(config, comm, stage_hash):
    from anyecg.train.finetune import finetune

    index = _index_for_batches(config, comm, splits=("train", "val"))
    finetune(
        _folder(config, "checkpoint"), _folder(config, "model"), index, config.finetune, config.stream,
        raw=config.deepspeed, seed=config.seed, comm=comm, stage_hash=stage_hash, log_folder=_folder(config, "log"),
    )  # fmt: skip
    if comm.rank == 0:
        for name in ("model", f"checkpoint/{stage_hash}"):
            write_config(_folder(config, name), config)


def _ranks_of_training(config):
    """Return one rank a GPU where there are any, at most as many as the config says."""
    # To import torch takes seconds, and this process needs it for nothing else.
    if not any(next(Path("/dev").glob(pattern), None) for pattern in GPU_DEVICES):
        return config.finetune.ranks
    import torch

    n_gpus = torch.cuda.device_count()
    return min(config.finetune.ranks, n_gpus) if n_gpus else config.finetune.ranks


def _wanted_predict(config):
    index, folder = _index(config), model_folder(config)
    card = check_weights(folder)
    check_target_table(folder, card, index)
    return digest([index.hash, *(card[key] for key in ("weights_sha256", "head", "join", "windows_per_sample"))])


def _run_predict(config, comm, stage_hash):
    from anyecg.train.predict import predict_shards

    index = _index_for_batches(config, comm, splits=("val", "test"))
    predict_shards(
        _folder(config, "scores.h5"), index, model_folder(config), stream=config.stream, comm=comm,
        stage_hash=stage_hash,
    )  # fmt: skip


def _scores(config, node=None):
    from anyecg.train.scores import read_scores

    card = check_weights(model_folder(config))
    return read_scores(_folder(config, "scores.h5"), _index(config), card["weights_sha256"], node=node)


def _wanted_evaluate(config):
    from anyecg.train.evaluate import check_evaluation
    from anyecg.train.scores import check_scores

    card = check_weights(model_folder(config))
    check_scores(_folder(config, "scores.h5"), _index(config), card["weights_sha256"])
    check_evaluation(config.evaluate, card)
    beside = [_internal_hash(config), _hash_in(config, "cohort/cohort.json")]
    return digest([file_hash(_folder(config, "scores.h5")), config.evaluate.identity("ranks"), config.seed, beside])


def _run_evaluate(config, comm, stage_hash):
    from anyecg.train.evaluate import evaluate
    from anyecg.train.shared import Node

    with Node(comm) as node:
        evaluate(
            config.folder, _index(config), _scores(config, node), config.evaluate,
            _cohort(config), seed=config.seed, comm=comm, stage_hash=stage_hash, node=node,
        )  # fmt: skip


STAGES = {
    stage.name: stage
    for stage in (
        Stage("cohort", _wanted_cohort, _found_cohort, lambda c: 1, _run_cohort),
        Stage("shard", _wanted_shard, _found_shard, lambda c: c.shard.ranks, _run_shard),
        Stage("finetune", _wanted_finetune, _found_finetune, _ranks_of_training, _run_finetune),
        Stage("predict", _wanted_predict, _found_predict, _ranks_of_training, _run_predict),
        Stage("evaluate", _wanted_evaluate, _found_evaluate, lambda c: c.evaluate.ranks, _run_evaluate),
    )
}
