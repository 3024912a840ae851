"""A model as files: safetensors weights and a card that says what goes in and what comes out."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from anyecg.loaders.errors import ModelError
from anyecg.loaders.files import file_hash, replacing, write_document
from anyecg.train.card import check_network, check_weights
from anyecg.train.finetune_config import Model
from anyecg.train.net1d import Net1D
from anyecg.train.network import Network
from anyecg.train.resnet import ResNet
from anyecg.train.s4d import S4D
from anyecg.train.tensors import write_tensors

MODELS: dict[Model, Callable[..., Network]] = {
    "resnet": ResNet,
    "s4d": S4D,
    # The published network is the same at any rate.
    "net1d": lambda in_channels, n_targets, fs: Net1D(in_channels, n_targets),
}


def build_model(name, *, n_leads, n_targets, seed, fs=500, join="logits"):
    """Return a freshly initialised network for windows at ``fs`` Hz, its weights a function of the seed.

    ``join`` "features" adds the head that reads several windows together.
    """
    torch.manual_seed(seed)
    network = MODELS[name](in_channels=n_leads, n_targets=n_targets, fs=fs)
    if join == "features":
        network.join_features()
    return network


def save_weights(path, model):
    """Write a network's weights as safetensors, whole or absent."""
    with replacing(path) as temporary:
        write_tensors(temporary, model.state_dict())


def load_weights(path, model):
    """Read safetensors weights into a network.

    Raises
    ------
    ModelError
        Missing, damaged, or made for another network.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as cause:
        raise ModelError(f"{path}: cannot be read ({cause}); run 'anyecg finetune' again") from None
    fill(path, model, state)


def fill(path, model, state):
    """Give a network the weights of a file; refuse those of another network."""
    try:
        model.load_state_dict(state)
    except RuntimeError as cause:
        raise ModelError(f"{path}: weights of another network ({str(cause).splitlines()[-1].strip()})") from None


def publish(folder, model, card):
    """Write a model folder: weights, then ``card.json``, whose presence means that the model is complete."""
    folder = Path(folder)
    (folder / "card.json").unlink(missing_ok=True)
    save_weights(folder / "model.safetensors", model)
    document = {**card, "weights_sha256": file_hash(folder / "model.safetensors")}
    write_document(folder / "card.json", "anyecg-model", document)


def open_model(folder):
    """Open a published model in eval mode.

    Returns
    -------
    (torch.nn.Module, dict)
        The network and its card: targets, head (``anyecg.train.heads``), rate, samples, leads, preset,
        windows_per_sample, join.

    Raises
    ------
    ModelError
        Missing, damaged, or of another version.
    """
    folder = Path(folder)
    card = check_weights(folder)
    weights = folder / "model.safetensors"
    model = network_of(folder, card)
    load_weights(weights, model)
    return model.eval(), card


def network_of(where, card):
    """Return the network that a card describes, its weights not yet those of the model."""
    check_network(where, card)
    return build_model(
        card["model"], n_leads=len(card["leads"]), n_targets=len(card["targets"]), fs=card["fs"], seed=0,
        join=card["join"],
    )  # fmt: skip
