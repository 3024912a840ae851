"""A network as an ONNX graph that takes windows in any scale: the z-score is in it, and what the outputs mean."""

import logging
import warnings

import torch
from onnx import TensorProto
from torch import nn

from anyecg.train.network import standardised
from anyecg.train.onnx_file import BEFORE, SIGNAL, output_names

OPSET = 18


class _Whole(nn.Module):
    """Windows in, logits and what a user reads of them out; with a joining head the record's own too."""

    def __init__(self, network, card):
        super().__init__()
        self.network, self.head, self.n_each = network, card["head"], card["windows_per_sample"]
        if self.head == "regression":
            self.register_buffer("value_mean", torch.tensor(card["value_mean"]))
            self.register_buffer("value_sd", torch.tensor(card["value_sd"]))

    def scores(self, logit_BC):
        """Do what ``anyecg.train.heads.scores_of`` does."""
        if self.head == "multilabel":
            return torch.sigmoid(logit_BC)
        if self.head == "exclusive":
            return torch.softmax(logit_BC, 1)
        return logit_BC * self.value_sd + self.value_mean

    def forward(self, signal_BLT, before_WF=None):
        feature_BF = self.network.features(standardised(signal_BLT))
        logit_BC = self.network.dense(feature_BF)
        found = (logit_BC, self.scores(logit_BC))
        if before_WF is None:
            return found
        own_1C = self.network.joined_of_all(torch.cat([before_WF, feature_BF]), self.n_each)[None]
        return *found, feature_BF, own_1C, self.scores(own_1C)


def make_graph(network, card):
    """Return the ONNX model of a network, an ``onnx.ModelProto``.

    Parameters
    ----------
    network : anyecg.train.network.Network
        In eval mode, on the CPU.
    card : dict

    Returns
    -------
    onnx.ModelProto
        Input ``signal``, float32 (windows, leads, samples), any number of windows in any scale. Outputs: ``logits``,
        then ``probabilities`` or, of a regression, ``values``, (windows, targets). Where the card joins features, all
        windows are one record's: ``features`` (windows, features), ``record_logits`` and ``record_...`` (1, targets)
        follow, and a second input, ``features_before``, may give the features of its windows scored earlier.
    """
    joins = card["join"] == "features"
    n_features, several = network.dense.in_features, torch.export.Dim.DYNAMIC
    example = torch.randn(2, len(card["leads"]), card["samples"])
    inputs = (example, torch.randn(3, n_features)) if joins else (example,)
    whole = _Whole(network.exportable(card["samples"]), card).eval()
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            program = torch.onnx.export(
                whole, inputs, dynamo=True, opset_version=OPSET, verbose=False,
                input_names=[SIGNAL, BEFORE][: len(inputs)], output_names=output_names(card),
                dynamic_shapes=tuple({0: several} for _ in inputs),
            )  # fmt: skip
    finally:
        quiet.setLevel(level)
    assert program is not None
    model = program.model_proto
    if joins:
        # Its default, so that a record of few windows needs one call and one input.
        model.graph.initializer.add(name=BEFORE, data_type=TensorProto.FLOAT, dims=[0, n_features], raw_data=b"")
    return model
