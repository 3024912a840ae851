"""Published models that were never trained, for what does not depend on what they learned."""

from anyecg.kernels.prepare import preset_hash
from anyecg.train.model import build_model, publish

TARGETS = ["anaemia", "fever", "gout"]


def make_model(folder, *, model="resnet", head="multilabel", join="logits", leads=("first",), **changes):
    """Publish a network of random weights, always the same; return its folder."""
    card = {
        "model": model, "head": head, "join": join, "windows_per_sample": 1 if join == "logits" else 3,
        "targets": TARGETS, "leads": list(leads), "fs": 500, "samples": 5000, "preset": "ecgfounder",
        "preset_hash": preset_hash("ecgfounder", 500), "target_hash": "0" * 16, "epoch": 4, "val_loss": float("nan"),
        "finetune": {"model": model, "weights": "/somewhere/on/this/machine.pth"},
    }  # fmt: skip
    if head == "regression":
        card |= {"value_mean": [10.0, 37.0, 0.3], "value_sd": [2.0, 0.5, 0.1]}
    network = build_model(model, n_leads=len(leads), n_targets=len(TARGETS), seed=7, join=join)
    publish(folder, network, {**card, **changes})
    return folder
