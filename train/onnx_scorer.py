"""Scores with an ONNX model, on the CPU."""

import numpy as np
import onnxruntime

from anyecg.loaders.errors import ModelError
from anyecg.train.onnx_file import BEFORE, SIGNAL, read_onnx


class OnnxScorer:
    """Scores with an ONNX model of ours, by onnxruntime.

    Raises
    ------
    ModelError, UpgradeNeeded
        As ``anyecg.train.onnx_file.read_onnx``; a model that onnxruntime refuses.
    """

    def __init__(self, path):
        self.path = path
        data, self.card, self.n_together = read_onnx(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        try:
            self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as cause:  # its errors have no class in common
            raise ModelError(f"{path}: refused by onnxruntime ({str(cause).splitlines()[0][:200]})") from None

    def _run(self, names, x_WT, **more):
        try:
            return self.session.run(names, {SIGNAL: x_WT[:, None], **more})
        except Exception as cause:
            raise ModelError(f"{self.path}: failed in onnxruntime ({str(cause).splitlines()[0][:200]})") from None

    def outputs(self, batches):
        """Return the outputs (windows, targets) and (targets,) of a record whose windows come in batches."""
        joins = self.card["join"] == "features"
        names = ["logits", "features"] if joins else ["logits"]
        found = []
        for x_WT in batches:
            for part_WT in np.split(x_WT, range(self.n_together, len(x_WT), self.n_together)):
                found.append(self._run(names, part_WT))
        logit_WC = np.concatenate([logit for logit, *_ in found])
        if not joins:
            return logit_WC, logit_WC.mean(0)
        before_WF = np.concatenate([feature for _, feature in found])[:-1]
        return logit_WC, self._run(["record_logits"], part_WT[-1:], **{BEFORE: before_WF})[0][0]
