"""The stages of a run: what each reads, writes and needs, and whether it is already done."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from anyecg.app.config import Config, write_config
from anyecg.loaders.cohort import build_cohort, describe_flow, open_cohort, write_cohort
from anyecg.loaders.errors import CohortError
from anyecg.loaders.files import digest, file_hash
from anyecg.loaders.index import lost_shards, open_index


@dataclass(frozen=True)
class Stage:
    """One step of the chain.

    Attributes
    ----------
    wanted : function of the config
        Hash of everything that decides the stage's output; raises when what it reads is missing.
    found : function of the config
        The hash that the output there carries; None without whole output.
    n_ranks : function of the config
        MPI ranks to start on this machine.
    run : function of (config, communicator, hash)
    """

    name: str
    wanted: Callable
    found: Callable
    n_ranks: Callable
    run: Callable

    def is_done(self, config):
        """Say whether the output of just this config and input is there."""
        found = self.found(config)
        return found is not None and found == self.wanted(config)


def _folder(config: Config, name):
    return Path(config.folder) / name


def _index(config):
    return open_index(_folder(config, "shards"))


def _hash_in(name):
    """Return a function of the config that reads ``stage_hash`` from a JSON document of the run folder."""

    def found(config):
        try:
            return json.loads(_folder(config, name).read_text(encoding="utf-8")).get("stage_hash")
        except (OSError, ValueError, AttributeError):
            return None

    return found


def _found_shard(config):
    found = _hash_in("shards/index.json")(config)
    return found if found and not lost_shards(_folder(config, "shards")) else None


def _found_predict(config):
    import h5py

    try:
        with h5py.File(_folder(config, "scores.h5"), "r") as file:
            return file.attrs.get("stage_hash")
    except OSError:
        return None


def _wanted_cohort(config):
    labels = Path(config.cohort.labels)
    if not labels.is_file():
        raise CohortError(f"{labels}: no such file; give the CSV of labels as 'labels' in [cohort]")
    return digest([config.cohort.identity(), config.seed, file_hash(labels)])


def _run_cohort(config, comm, stage_hash):
    cohort = build_cohort(config.cohort, seed=config.seed)
    write_config(_folder(config, "cohort"), config)
    write_cohort(_folder(config, "cohort"), cohort, stage_hash)
    print(f"cohort: {describe_flow(cohort.flow)}", flush=True)


def _wanted_shard(config):
    return digest([open_cohort(_folder(config, "cohort")).hash, config.shard.identity("ranks")])


def _run_shard(config, comm, stage_hash):
    from anyecg.loaders.shards import write_shards

    folder = _folder(config, "shards")
    if comm.rank == 0:
        write_config(folder, config)
    write_shards(folder, open_cohort(_folder(config, "cohort")), config.shard, comm, stage_hash=stage_hash)


def _wanted_finetune(config):
    return digest(
        [_index(config).hash, config.finetune.identity("ranks"), config.stream.identity("prefetch"), config.seed]
    )  # fmt: skip


def _run_finetune(config, comm, stage_hash):
    from anyecg.train.finetune import finetune

    if comm.rank == 0:
        write_config(_folder(config, "model"), config)
    finetune(
        _folder(config, "checkpoint"), _folder(config, "model"), _index(config), config.finetune, config.stream,
        seed=config.seed, comm=comm, stage_hash=stage_hash,
    )  # fmt: skip


def _wanted_predict(config):
    from anyecg.train.model import check_target_table, read_card

    index, folder = _index(config), _folder(config, "model")
    card = read_card(folder)
    check_target_table(folder, card, index)
    return digest([index.hash, card["weights_sha256"]])


def _run_predict(config, comm, stage_hash):
    from anyecg.train.predict import predict_shards

    predict_shards(
        _folder(config, "scores.h5"), _index(config), _folder(config, "model"), prefetch=config.stream.prefetch,
        comm=comm, stage_hash=stage_hash,
    )  # fmt: skip


def _scores(config):
    from anyecg.train.predict import read_scores

    return read_scores(_folder(config, "scores.h5"), _index(config))


def _wanted_evaluate(config):
    _scores(config)
    scores_hash = file_hash(_folder(config, "scores.h5"))
    return digest([scores_hash, config.evaluate.identity("ranks"), config.seed])


def _run_evaluate(config, comm, stage_hash):
    from anyecg.train.evaluate import evaluate

    evaluate(
        config.folder, _index(config), _scores(config), config.evaluate, seed=config.seed, comm=comm,
        stage_hash=stage_hash,
    )  # fmt: skip


STAGES = {
    stage.name: stage
    for stage in (
        Stage("cohort", _wanted_cohort, _hash_in("cohort/cohort.json"), lambda c: 1, _run_cohort),
        Stage("shard", _wanted_shard, _found_shard, lambda c: c.shard.ranks, _run_shard),
        Stage("finetune", _wanted_finetune, _hash_in("model/card.json"), lambda c: c.finetune.ranks, _run_finetune),
        Stage("predict", _wanted_predict, _found_predict, lambda c: c.finetune.ranks, _run_predict),
        Stage("evaluate", _wanted_evaluate, _hash_in("results.json"), lambda c: c.evaluate.ranks, _run_evaluate),
    )
}
