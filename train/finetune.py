"""Train a network on the shards with DeepSpeed; every epoch ends in a checkpoint that is complete or invisible."""

import csv
import logging
import math
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from anyecg.kernels.auroc import auroc
from anyecg.loaders.errors import ModelError
from anyecg.loaders.files import file_hash, read_document, replacing, write_document
from anyecg.loaders.progress import Progress
from anyecg.loaders.ranks import share_error
from anyecg.loaders.settings import Section
from anyecg.loaders.stream import n_units, rows_of_rank
from anyecg.train.batches import PairBatches, WindowBatches
from anyecg.train.distributed import join, leave
from anyecg.train.heads import Head
from anyecg.train.loss import masked_bce
from anyecg.train.model import build_model, load_weights, publish, save_weights
from anyecg.train.weights import load_ecgfounder

log = logging.getLogger(__name__)
# Share of an epoch's samples that may stand in for damaged ones.
MOST_SUBSTITUTED = 0.05
CURVE = ("epoch", "windows", "train_loss", "val_loss", "val_auroc", "learning_rate", "windows_per_s", "waiting_share")


class FinetuneConfig(Section):
    """How a network is trained."""

    model: Literal["resnet", "net1d"] = Field(
        "resnet", description="network: resnet (1.3 M parameters) or net1d (30.7 M, ECGFounder's)"
    )
    head: Head = Field(
        "multilabel", description="outputs: multilabel, exclusive (one label of all) or regression (values)"
    )
    join: Literal["logits", "features"] = Field(
        "logits", description="windows of a sample: their mean logit, or a head that reads their features together"
    )
    weights: str = Field("", description="net1d: published ECGFounder file (.pth) to start from; empty: from scratch")
    horizon_min: Literal[60, 30, 15] = Field(60, description="half-width of the time around a draw, in minutes")
    epochs: int = Field(20, ge=1, le=10_000, description="passes over the training pairs")
    batch_size: int = Field(256, ge=1, le=1_000_000, description="samples in a global batch, over all ranks")
    learning_rate: float = Field(1e-3, gt=0, lt=10, description="largest learning rate of AdamW")
    weight_decay: float = Field(0.05, ge=0, lt=10, description="weight decay of AdamW")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="share of the steps with rising rate; cosine follows")
    best_by: Literal["loss", "auroc"] = Field(
        "loss", description="which epoch is published: lowest validation loss, or highest mean validation AUROC"
    )
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of a gradient")
    ranks: int = Field(2, ge=1, description="MPI ranks that train and predict, one a GPU or a share of the cores")

    @model_validator(mode="after")
    def _weights_fit_the_model(self):
        if self.weights and self.model != "net1d":
            raise ValueError("weights are those of model = 'net1d'; set it, or leave weights empty")
        return self


def _deepspeed_config(config, world_size, on_gpu):
    """Derive DeepSpeed's JSON; rows may be uneven over ranks, so its micro-batch is nominal."""
    micro = -(-config.batch_size // world_size)
    return {
        "train_batch_size": micro * world_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.gradient_clip,
        "zero_optimization": {"stage": 0},
        "steps_per_print": 2**31,
        "torch_autocast": {"enabled": on_gpu, "dtype": "bfloat16"},
    }


def learning_rate_factor(step, *, n_steps, warmup_fraction):
    """Return the share of the largest learning rate at a step: linear warm-up, then half a cosine to zero."""
    n_warmup = max(1, round(warmup_fraction * n_steps))
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


class Checkpoint:
    """The newest whole state of one training run, named by a pointer that is written last."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.pointer = self.folder / "pointer.json"

    def load(self):
        """Return the state of the last finished epoch, or None for a fresh start.

        Raises
        ------
        UpgradeNeeded, ModelError
            Another version; a state file that is not the one the pointer names.
        """
        if not self.pointer.exists():
            return None
        document = read_document(self.pointer, "anyecg-checkpoint", missing="", error=ModelError)
        path = self.folder / document["file"]
        if not path.is_file() or file_hash(path) != document["sha256"]:
            raise ModelError(f"{path}: missing or damaged; remove {self.folder} and run 'anyecg finetune' again")
        return torch.load(path, map_location="cpu", weights_only=True)

    def save(self, state):
        """Write a state, then the pointer, then remove older states."""
        path = self.folder / f"epoch-{state['epoch']:04d}.pt"
        with replacing(path) as temporary:
            torch.save(state, temporary)
        write_document(self.pointer, "anyecg-checkpoint", {"file": path.name, "sha256": file_hash(path)})
        for old in self.folder.glob("epoch-*.pt"):
            if old != path:
                old.unlink()


class Validation:
    """Masked loss and mean AUROC over the windows of the validation pairs."""

    def __init__(self, index, config, stream, comm, device):
        pairs = index.pairs_of("val", config.horizon_min)
        tables = index.tables
        self.comm, self.device = comm, device
        self.labels = np.asarray(tables["draw_labels"])[tables["pair_draw"][pairs]]
        mine = rows_of_rank(tables["pair_window"][pairs], comm.rank, comm.size)
        batch_size = max(1, min(256, len(mine)))
        self.batches = None
        if len(mine):
            self.batches = WindowBatches(index, mine, stream, batch_size=batch_size, device_id=device.index)

    def measure(self, model):
        """Return (loss, mean AUROC over targets with both classes), the same on every rank; NaN without labels."""
        model.eval()
        with torch.no_grad():
            logits = [model(x.to(self.device)).float().cpu() for x in self.batches or []]
        model.train()
        n_targets = self.labels.shape[1]
        gathered = self.comm.gather(torch.cat(logits).numpy() if logits else np.empty((0, n_targets), np.float32))
        return self.comm.bcast(self._summarise(np.concatenate(gathered)) if self.comm.rank == 0 else None)

    def close(self):
        """End what reads ahead."""
        if self.batches:
            self.batches.close()

    def _summarise(self, logit_BC):
        if not (self.labels >= 0).any():
            return float("nan"), float("nan")
        loss = masked_bce(torch.from_numpy(logit_BC), torch.from_numpy(self.labels)).item()
        values = [auroc(logit_BC[seen, c], self.labels[seen, c]) for c, seen in enumerate((self.labels >= 0).T)]
        values = [value for value in values if not math.isnan(value)]
        return loss, float(np.mean(values)) if values else float("nan")


def initial_network(config, index, comm, *, seed, fresh):
    """Return the network to train, the same on every rank; a fresh start takes the weights of the config's file."""
    n_leads, n_targets = len(index.leads), len(index.targets)
    if not (fresh and config.weights):
        return build_model(config.model, n_leads=n_leads, n_targets=n_targets, seed=seed)
    error = None
    try:
        network = load_ecgfounder(config.weights, n_targets=n_targets, seed=seed)
        if network.in_channels != n_leads:
            raise ModelError(f"{config.weights}: takes {network.in_channels} leads; {index.folder} holds {n_leads}")
    except ModelError as cause:
        error = cause
    share_error(comm, error)
    return network.train()


def start_engine(network, config, n_steps, comm, device):
    """Wrap a network for DeepSpeed; return (engine, optimiser, schedule)."""
    import deepspeed

    optimiser = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_factor(step, n_steps=n_steps, warmup_fraction=config.warmup_fraction)
    )
    engine, optimiser, _, schedule = deepspeed.initialize(
        model=network.to(device), optimizer=optimiser, lr_scheduler=schedule,
        config=_deepspeed_config(config, comm.size, device.type == "cuda"),
    )  # fmt: skip
    return engine, optimiser, schedule


def finetune(folder, model_folder, index, config, stream, *, seed, comm, stage_hash):
    """Train, and publish the network of the epoch that is best on the validation split.

    Parameters
    ----------
    folder, model_folder : path
        Where the checkpoint goes, in a folder named by ``stage_hash``, so that another config or other shards start
        anew beside it; where the finished model and ``curve.csv`` go.
    index : anyecg.loaders.index.Index
    config : FinetuneConfig
    stream : anyecg.loaders.stream_config.StreamConfig
    comm : MPI communicator
        Every rank calls this.
    stage_hash : str
        Names config and shards.

    Raises
    ------
    ModelError
        No training pairs, a damaged checkpoint, weights that do not fit, or a loss that is not finite.
    """
    order = {"seed": seed, "split": "train", "horizon_min": config.horizon_min}
    n_samples = n_units(index, epoch=0, choice=stream, **order)
    if not n_samples:
        raise ModelError(
            f"{index.folder}: no training pairs within {config.horizon_min} min; check [cohort] and [stream]"
        )
    folder = Path(folder) / stage_hash
    checkpoint = Checkpoint(folder)
    state = checkpoint.load()
    network = initial_network(config, index, comm, seed=seed, fresh=state is None)
    device = join(comm, folder)
    n_steps = -(-n_samples // config.batch_size) * config.epochs
    engine, optimiser, schedule = start_engine(network, config, n_steps, comm, device)
    first_epoch, curve, best_value, best_epoch, n_substituted = 0, [], math.inf, 0, 0
    if state:
        engine.module.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        first_epoch, curve, best_value, best_epoch, n_substituted = (
            state[key] for key in ("epoch", "curve", "best_value", "best_epoch", "n_substituted")
        )  # fmt: skip
    batches = PairBatches(
        index, stream, {**order, "batch_size": config.batch_size}, comm, first_epoch=first_epoch, device_id=device.index
    )  # fmt: skip
    validation = Validation(index, config, stream, comm, device)
    best = folder / "best.safetensors"
    log.info("ranks=%d device=%s parameters=%d", comm.size, device, sum(p.numel() for p in network.parameters()))
    with Progress("finetune", (config.epochs - first_epoch) * n_samples, " samples", shown=comm.rank == 0) as progress:
        for epoch in range(first_epoch, config.epochs):
            rate = schedule.get_last_lr()[0]
            row = _train_epoch(engine, batches, epoch, progress, comm)
            n_substituted += row["substituted"]
            check_substituted(row["substituted"], row["windows"] // batches.n_each, index.folder)
            val_loss, val_auroc = validation.measure(engine.module)
            curve.append(
                [epoch + 1, row["windows"], row["loss"], val_loss, val_auroc, rate, row["rate"], row["waiting"]]
            )  # fmt: skip
            # Without a validation split the last epoch is taken.
            value = val_loss if config.best_by == "loss" else -val_auroc
            better = value < best_value or math.isnan(value)
            if better:
                best_value, best_epoch = value, epoch + 1
            if comm.rank == 0:
                log.info(" ".join(f"{key}={value:.5g}" for key, value in zip(CURVE, curve[-1], strict=True)))
                if row["substituted"]:
                    log.warning("epoch=%d samples_in_place_of_damaged_ones=%d", epoch + 1, row["substituted"])
                if better:
                    save_weights(best, engine.module)
                checkpoint.save(
                    {
                        "epoch": epoch + 1, "model": engine.module.state_dict(), "optimiser": optimiser.state_dict(),
                        "schedule": schedule.state_dict(), "curve": curve, "best_value": best_value,
                        "best_epoch": best_epoch, "n_substituted": n_substituted,
                    }
                )  # fmt: skip
    batches.close()
    validation.close()
    if comm.rank == 0:
        load_weights(best, network)
        _write_curve(Path(model_folder) / "curve.csv", curve)
        card = _card(index, config, seed, curve[best_epoch - 1], network, stage_hash)
        publish(model_folder, network, {**card, "n_substituted": n_substituted})
    comm.barrier()
    leave(comm, folder)


def backward(engine, x_BLT, label_BC, *, n_observed, n_ranks, n_each=1):
    """Add this rank's share of the global batch to the gradients; return its share of the loss.

    DeepSpeed averages gradients over ranks; the loss is a sum over the global batch, so its division is undone. The
    logit of a sample of ``n_each`` windows is their mean.
    """
    logit_BC = engine(x_BLT.to(engine.device)).unflatten(0, (-1, n_each)).mean(1)
    loss = masked_bce(logit_BC, label_BC[::n_each].to(engine.device), n_observed=n_observed)
    engine.backward(loss * n_ranks)
    return loss.item()


def train_step(engine, batch, comm, *, n_each=1):
    """Train on this rank's share of a global batch; return the loss of the whole, and its observed labels."""
    # The denominator of the loss on every rank: what the rows of all ranks really carry.
    n_observed = comm.allreduce(batch.n_measured)
    total = comm.allreduce(
        backward(engine, batch.x_BLT, batch.label_BC, n_observed=n_observed, n_ranks=comm.size, n_each=n_each)
    )
    engine.step()
    return total, n_observed


def _train_epoch(engine, batches, epoch, progress, comm):
    """Run one epoch; return windows, mean loss a label, windows/s, share of waiting for data, samples substituted."""
    start, waited, n_samples, loss_sum, n_labels, n_substituted = time.monotonic(), 0.0, 0, 0.0, 0, 0
    for number in range(batches.n_batches(epoch)):
        asked = time.monotonic()
        batch = batches.next()
        waited += time.monotonic() - asked
        total, n_observed = train_step(engine, batch, comm, n_each=batches.n_each)
        if not math.isfinite(total):
            raise ModelError(
                f"the loss is {total} at batch {number} of epoch {epoch + 1}; "
                "lower finetune.learning_rate, or look at the shards"
            )
        n_samples, n_labels, loss_sum = n_samples + batch.n_pairs, n_labels + n_observed, loss_sum + total * n_observed
        n_substituted += batch.n_substituted
        waiting = waited / (time.monotonic() - start)
        progress.advance(batch.n_pairs, f"epoch {epoch + 1} loss {total:.3f} waiting for data {waiting:.1%}")
    n_windows, seconds = n_samples * batches.n_each, time.monotonic() - start
    return {
        "windows": n_windows, "loss": loss_sum / max(n_labels, 1), "rate": n_windows / seconds,
        "waiting": waited / seconds, "substituted": comm.allreduce(n_substituted),
    }  # fmt: skip


def check_substituted(n_substituted, n_samples, folder):
    """Stop a run in which too many samples of an epoch stood in for damaged ones; every rank knows the same numbers."""
    if n_substituted > MOST_SUBSTITUTED * n_samples:
        cause = ModelError(
            f"{folder}: {n_substituted} of {n_samples} samples of an epoch lay in damaged chunks, wanted at most "
            f"{MOST_SUBSTITUTED:.0%}; run 'anyecg verify' to see which, remove those files and run 'anyecg shard' again"
        )
        cause.on_every_rank = True
        raise cause


def _write_curve(path, curve):
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CURVE)
        writer.writerows([f"{value:.6g}" for value in row] for row in curve)


def _card(index, config, seed, best, network, stage_hash):
    """Return what a user of the model must know: its input, its outputs, where it comes from."""
    same = ("fs", "samples", "preset", "preset_hash", "target_hash")
    return {
        "model": config.model,
        "head": config.head,
        "join": config.join,
        "windows_per_sample": 1,
        "targets": list(index.targets),
        "leads": list(index.leads),
        **{key: index.head[key] for key in same},
        "standardised": "each window: (x - mean) / SD",
        "index_hash": index.hash,
        "stage_hash": stage_hash,
        "n_parameters": sum(p.numel() for p in network.parameters()),
        "epoch": best[0],
        "val_loss": best[CURVE.index("val_loss")],
        "seed": seed,
        "finetune": config.model_dump(mode="json"),
    }
