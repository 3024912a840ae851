"""A finished model in the forms that others read: ECGFounder's, one safetensors file, ONNX."""

import math
from pathlib import Path
from typing import Literal, get_args

import torch

from anyecg.loaders.errors import ModelError
from anyecg.loaders.files import file_hash, replacing
from anyecg.train.card import portable
from anyecg.train.model import open_model
from anyecg.train.tensor_file import write_tensor_file
from anyecg.train.weights import published_state_dict

Form = Literal["ecgfounder", "safetensors", "onnx"]


def _document(folder, card):
    """Return the card as an export carries it: traceable to its folder."""
    return {**portable(card), "card_sha256": file_hash(folder / "card.json")}


def _write_published_form(path, network, card):
    if card["model"] != "net1d" or card["join"] == "features":
        raise ModelError(
            f"{path}: the published class is net1d with a head of single windows; this model is {card['model']}, "
            f"join = '{card['join']}'; export it as safetensors or onnx"
        )
    document = {
        "epoch": card.get("epoch"), "step": card.get("step"), "state_dict": published_state_dict(network),
        "optimizer": {}, "scheduler": {}, "val_auroc": math.nan if card.get("val_score") is None else card["val_score"],
    }  # fmt: skip
    with replacing(path) as temporary:
        torch.save(document, temporary)


def export_model(folder, form, out):
    """Write a finished model as one file.

    Parameters
    ----------
    folder : path
        A published model: ``card.json`` beside ``model.safetensors``.
    form : str
        "ecgfounder": the pickled dict that ECGFounder's class loads with ``strict=True`` (net1d only; optimiser and
        scheduler are empty, numbers that the card has not are None or NaN). "safetensors": weights, and the card as
        metadata. "onnx": the graph with the z-score, and the card as metadata; beside it the same card, OUT.json.
    out : path
        The file to write; .pth, .safetensors or .onnx.

    Returns
    -------
    int
        Bytes of the model.

    Raises
    ------
    ModelError
        No such model or form, a network that the form cannot hold, another suffix.
    """
    folder, out = Path(folder), Path(out)
    if form not in get_args(Form):
        raise ModelError(f"format {form!r}; wanted one of {', '.join(get_args(Form))}")
    suffix = ".pth" if form == "ecgfounder" else f".{form}"
    if out.suffix != suffix or out.is_dir():
        raise ModelError(f"{out}: wanted a path of a file that ends in {suffix}")
    network, card = open_model(folder)
    if form == "ecgfounder":
        _write_published_form(out, network, card)
    elif form == "safetensors":
        write_tensor_file(out, network.state_dict(), "anyecg-export", _document(folder, card))
    else:
        from anyecg.train.onnx_file import write_onnx
        from anyecg.train.onnx_graph import make_graph

        write_onnx(out, make_graph(network, card), _document(folder, card))
    return out.stat().st_size
