"""A model in any of its forms, opened to score recordings: windows in mV in, outputs of windows and record out."""

from pathlib import Path

from anyecg.loaders.errors import ModelError
from anyecg.train.card import check_card


def open_scorer(path):
    """Open a model to score recordings.

    Parameters
    ----------
    path : path
        A published folder (``card.json`` beside ``model.safetensors``), its ``.safetensors`` file, or what
        ``anyecg export`` makes: one ``.safetensors`` file, or ``.onnx``.

    Returns
    -------
    NetworkScorer or anyecg.train.onnx_scorer.OnnxScorer
        ``.card``; ``.outputs(batches)`` takes the windows of one record in batches, float32 (windows, leads, samples)
        in mV,
        and gives float32 (windows, targets) and (targets,).

    Raises
    ------
    ModelError, UpgradeNeeded
        No such model, damaged, without a card, or of another version.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        from anyecg.train.onnx_scorer import OnnxScorer

        return OnnxScorer(path)
    return NetworkScorer(*open_network(path))


def open_network(path):
    """Open a model, in any form but ONNX, as a network in eval mode and its card; errors as ``open_scorer``."""
    from anyecg.train.model import fill, network_of, open_model
    from anyecg.train.tensor_file import document_of, read_tensor_file

    path = Path(path)
    if path.suffix != ".safetensors":
        if path.exists() and not path.is_dir():
            raise ModelError(f"{path}: no form of a model; give a published folder, a .safetensors or an .onnx file")
        return open_model(path)
    if document_of(path) is None:
        if path.name != "model.safetensors" or not (path.parent / "card.json").is_file():
            raise ModelError(
                f"{path}: carries no card; give the published folder, or make one file of it with "
                "'anyecg export FOLDER --format safetensors'"
            )
        return open_model(path.parent)
    card, state = read_tensor_file(path, "anyecg-export")
    check_card(path, card)
    network = network_of(path, card)
    fill(path, network, state)
    return network.eval(), card


class NetworkScorer:
    """Scores with a network of ours."""

    def __init__(self, network, card):
        self.network, self.card = network, card

    def outputs(self, batches):
        """Return the outputs (windows, targets) and (targets,) of a record whose windows come in batches."""
        import torch

        from anyecg.train.network import standardised

        # Numbers below 1e-38 would be a hundred times slower than others.
        torch.set_flush_denormal(True)
        try:
            with torch.inference_mode():
                feature_WF = torch.cat(
                    [self.network.features(standardised(torch.from_numpy(x_WLT))) for x_WLT in batches]
                )
                output_WC = self.network.dense(feature_WF)
                if self.card["join"] == "features":
                    own_C = self.network.joined_of_all(feature_WF, self.card["windows_per_sample"])
                else:
                    own_C = output_WC.mean(0)
                return output_WC.numpy(), own_C.numpy()
        finally:
            torch.set_flush_denormal(False)
