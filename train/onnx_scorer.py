"""Scores with an ONNX model, on the CPU."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime

from anyecg.loaders.errors import ModelError
from anyecg.train.onnx_file import BEFORE, SIGNAL, read_onnx

# Numbers below 1e-38 would be a hundred times slower than others. onnxruntime takes them for zero in the
# threads of a session and in that which made the first one: a thread of its own, so that no other's arithmetic changes.
_THREAD = ThreadPoolExecutor(1, "onnxruntime")


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
            self.session = _THREAD.submit(
                onnxruntime.InferenceSession, data, options, providers=["CPUExecutionProvider"]
            ).result()
        except Exception as cause:  # its errors have no class in common
            raise ModelError(f"{path}: refused by onnxruntime ({str(cause).splitlines()[0][:200]})") from None

    def _run(self, names, x_WLT, **more):
        try:
            return _THREAD.submit(self.session.run, names, {SIGNAL: x_WLT, **more}).result()
        except Exception as cause:
            raise ModelError(f"{self.path}: failed in onnxruntime ({str(cause).splitlines()[0][:200]})") from None

    def outputs(self, batches):
        """Return the outputs (windows, targets) and (targets,) of a record whose windows come in batches."""
        joins = self.card["join"] == "features"
        names = ["logits", "features"] if joins else ["logits"]
        found = []
        for x_WLT in batches:
            for part_WLT in np.split(x_WLT, range(self.n_together, len(x_WLT), self.n_together)):
                found.append(self._run(names, part_WLT))
        logit_WC = np.concatenate([logit for logit, *_ in found])
        if not joins:
            return logit_WC, logit_WC.mean(0)
        before_WF = np.concatenate([feature for _, feature in found])[:-1]
        return logit_WC, self._run(["record_logits"], part_WLT[-1:], **{BEFORE: before_WF})[0][0]
