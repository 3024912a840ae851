"""The network that a training starts from: fresh, ECGFounder's, or a model of ours with its head kept or replaced."""

import logging
from pathlib import Path

import torch
from torch import nn

from anyecg.loaders.errors import ModelError
from anyecg.loaders.lead_names import STANDARD_LEADS, lead_name
from anyecg.loaders.ranks import share_error
from anyecg.train.model import build_model
from anyecg.train.scoring import open_network
from anyecg.train.weights import IMPORTED, load_ecgfounder

log = logging.getLogger(__name__)


def initial_network(config, index, comm, *, targets, seed, fresh):
    """Return the network to train, the same on every rank.

    Parameters
    ----------
    config : anyecg.train.finetune_config.FinetuneConfig
    index : anyecg.loaders.index.Index
    comm : MPI communicator
    targets : sequence of str
    seed : int
    fresh : bool
        Whether to take the weights of the config's file; a checkpoint brings its own.

    Raises
    ------
    ModelError
        Weights that cannot be read, or of a network for other windows.
    """
    if not (fresh and config.weights):
        return build_model(
            config.model, n_leads=len(index.leads), n_targets=len(targets), seed=seed, fs=index.head["fs"],
            join=config.join,
        )  # fmt: skip
    error = None
    try:
        start = _start_at_ours if _is_ours(config.weights) else _start_at_ecgfounder
        network = start(config, index, targets, seed)
    except ModelError as cause:
        error = cause
    share_error(comm, error)
    return network.train()


def _is_ours(path):
    """Say whether weights are a model of ours, not ECGFounder's: a folder, or a safetensors file with a card."""
    from anyecg.train.tensor_file import document_of

    path = Path(path)
    if path.suffix != ".safetensors":
        return path.is_dir()
    return (document_of(path) or {}).get("format") != IMPORTED


def _start_at_ecgfounder(config, index, targets, seed):
    if config.model != "net1d":
        raise ModelError(f"{config.weights}: weights of net1d; found finetune.model = {config.model!r}")
    network = load_ecgfounder(config.weights, n_targets=len(targets), seed=seed)
    _check_leads(config, index, network.in_channels)
    if len(index.leads) > 1 and tuple(map(lead_name, index.leads)) != STANDARD_LEADS:
        log.warning(
            "weights of 12 leads expect %s; the shards hold %s: set shard.lead", ", ".join(STANDARD_LEADS),
            ", ".join(index.leads),
        )  # fmt: skip
    if config.join == "features":
        torch.manual_seed(seed)
        network.join_features()
    return network


def _start_at_ours(config, index, targets, seed):
    network, card = open_network(config.weights)
    if card["model"] != config.model:
        raise ModelError(f"{config.weights}: a model {card['model']!r}; found finetune.model = {config.model!r}")
    _check_leads(config, index, len(card["leads"]))
    for key in ("fs", "preset_hash"):
        if card.get(key) != index.head[key]:
            raise ModelError(
                f"{config.weights}: made for windows of {card['fs']} Hz prepared by {card['preset']!r}; {index.folder} "
                f"holds {index.head['fs']} Hz by {index.head['preset']!r}; set shard.fs and shard.preset to the model's"
            )
    if card["targets"] == list(targets) and (card["head"], card["join"]) == (config.head, config.join):
        head = "the model's"
    else:
        head = f"fresh targets={len(targets)} seed={seed}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network.dense, network.several = nn.Linear(network.dense.in_features, len(targets)), None
            if config.join == "features":
                network.join_features()
    log.info("weights=%s model=%s head=%s", config.weights, card["model"], head)
    return network


def _check_leads(config, index, n_leads):
    if n_leads != len(index.leads):
        raise ModelError(f"{config.weights}: takes {n_leads} leads; {index.folder} holds {len(index.leads)}")
