"""Train a network on the shards with DeepSpeed, so that it can be killed at any moment and goes on where it was."""

import csv
import logging
import math
import time
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import torch

from anyecg.loaders.errors import AnyECGError, ModelError, Stopped
from anyecg.loaders.files import make_folder, replacing
from anyecg.loaders.progress import Progress
from anyecg.loaders.ranks import share_error
from anyecg.loaders.stop import Asked
from anyecg.loaders.stream import n_units
from anyecg.train.average import Average
from anyecg.train.batches import PairBatches
from anyecg.train.card import portable
from anyecg.train.checkpoint import Checkpoint
from anyecg.train.distributed import join, leave
from anyecg.train.engine import Engine
from anyecg.train.initial import initial_network
from anyecg.train.journal import Journal
from anyecg.train.model import load_weights, publish
from anyecg.train.objective import Objective
from anyecg.train.schedule import Plateau, learning_rate_factor
from anyecg.train.tensor_file import write_tensor_file
from anyecg.train.validation import Validation
from anyecg.train.watch import Watch

log = logging.getLogger(__name__)
# Share of an epoch's samples that may stand in for damaged ones.
MOST_SUBSTITUTED = 0.05
CURVE = (
    "epoch", "step", "windows", "train_loss", "val_loss", "val_score", "learning_rate", "windows_per_s",
    "waiting_share",
)  # fmt: skip
BEATS = ".beats"
# The first steps of a process may compile.
SLOW_STEPS, SLOW_FACTOR = 2, 20.0


class Training:
    """One training run: what it holds, one step of it, what follows a step.

    ``state`` is everything that is no tensor and decides what comes next; with the tensors of ``engine`` and
    ``average`` it is a checkpoint, on any number of ranks.
    """

    def __init__(self, folder, index, config, stream, raw, *, seed, comm, log_folder, exits):
        self.folder, self.index, self.config, self.comm = Path(folder), index, config, comm
        self.stream, self.seed = stream, seed
        self.watch = Watch(self.folder / BEATS, comm.rank, comm.size, config.hang_seconds)
        exits.callback(self.watch.close)
        seed = seed + config.seed
        order = {
            "seed": seed, "split": "train", "horizon_min": config.horizon_min, "batch_size": config.batch_size
        }  # fmt: skip
        self.checkpoint = Checkpoint(folder)
        found = self._load()
        self.objective = Objective(config, index)
        self.network = initial_network(
            config, index, comm, targets=self.objective.targets, seed=seed, fresh=found is None
        )  # fmt: skip
        if found:
            tensors, self.state = found
            model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
            try:
                self.network.load_state_dict(model)
            except RuntimeError as cause:
                self._fail(f"{self.folder}: weights of another network ({str(cause).splitlines()[-1].strip()})")
        else:
            self.state = {
                "step": 0, "n_optimiser_steps": 0, "curve": [], "best_value": math.inf, "best_row": None, "best": None,
                "n_worse": 0, "plateau": None, "n_substituted": 0, "n_left_out": 0, "sums": _no_sums(),
            }  # fmt: skip
        device = join(comm, folder)
        self.engine = Engine(self.network, self.objective, config, raw, seed=seed, comm=comm, device=device)
        self.average = Average(self.network, config.weight_average)
        self.plateau = Plateau(config.plateau_patience, config.plateau_factor)
        if found:
            self.engine.load(tensors, self.state["n_optimiser_steps"])
            self.average.load(tensors)
            self.plateau.state = self.state["plateau"]
        self.batches = exits.enter_context(closing(PairBatches(
            index, stream, order, comm, first_step=self.state["step"], device_id=device.index,
            label_DC=self.objective.label_DC,
        )))  # fmt: skip
        self.validation = exits.enter_context(
            closing(Validation(index, config, stream, self.objective, comm, device))
        )  # fmt: skip
        self.n_steps = self.batches.first_step(config.epochs)
        self.journal = exits.enter_context(closing(Journal(log_folder, shown=comm.rank == 0)))
        self._first_step, self._rate = self.state["step"], 0.0
        self._window = {"start": time.monotonic(), "windows": 0, "waited": 0.0}

    def _load(self):
        """Return the newest state; all ranks fail with one, and have read the same."""
        found = error = None
        try:
            found = self.checkpoint.load()
        except AnyECGError as cause:
            error = cause
        share_error(self.comm, error)
        steps = self.comm.allgather(found and found[1]["step"])
        if len(set(steps)) > 1:
            self._fail(f"{self.folder}: the ranks see states of other steps, {steps}; run the same command again")
        return found

    def run(self, asked):
        """Train to the end, or until a signal or an early stop; publishes nothing yet.

        Parameters
        ----------
        asked : anyecg.loaders.stop.Asked

        Raises
        ------
        Stopped
            A signal asked for it; the state is saved.
        ModelError
            Too many steps left out, or too many samples replaced.
        """
        state, config = self.state, self.config
        parameters = sum(p.numel() for p in self.network.parameters())
        log.info("ranks=%d device=%s parameters=%d", self.comm.size, self.engine.device, parameters)
        self.journal.write(
            "start", step=state["step"], n_steps=self.n_steps, ranks=self.comm.size, parameters=parameters
        )  # fmt: skip
        n_samples = (self.n_steps - state["step"]) * config.batch_size
        with Progress("finetune", n_samples, " samples", shown=self.comm.rank == 0) as progress:
            while state["step"] < self.n_steps and not self._is_over():
                stop = self._step(asked, progress)
                epoch_ends = state["step"] == self.batches.first_step(self.batches.epoch_of(state["step"] - 1) + 1)
                validates = self._is_due(config.validate_every, epoch_ends)
                if validates:
                    self._validate()
                if epoch_ends:
                    self._end_epoch()
                if validates or stop or self._is_due(config.save_every, False):
                    self._save()
                if stop:
                    self.journal.write("stopped", step=state["step"], signal=stop)
                    raise Stopped(
                        f"asked to stop by signal {stop}; saved at step {state['step']} of {self.n_steps}; "
                        "run the same command again to go on"
                    )
        self.journal.write("end", step=state["step"], best_step=state["best_row"][1])

    def _is_over(self):
        return bool(self.config.patience) and self.state["n_worse"] >= self.config.patience

    def _is_due(self, every, otherwise):
        step = self.state["step"]
        return step == self.n_steps or (step % every == 0 if every else otherwise)

    def learning_rate(self):
        """Return the learning rate of the next step."""
        config = self.config
        factor = learning_rate_factor(
            self.state["step"], n_steps=self.n_steps, warmup_fraction=config.warmup_fraction, schedule=config.schedule
        )  # fmt: skip
        if config.schedule == "plateau":
            factor *= self.plateau.state["factor"]
        return config.learning_rate * factor

    def _step(self, asked, progress):
        """Train on the next batch; return the signal that asked any rank to stop, or 0."""
        state, batches, step = self.state, self.batches, self.state["step"]
        allowed = SLOW_FACTOR if step < self._first_step + SLOW_STEPS else 1.0
        epoch = batches.epoch_of(step)
        self.watch.phase(f"waiting for batch {step}", allowed=allowed)
        start = time.monotonic()
        batch = batches.next()
        waited = time.monotonic() - start
        self._rate = rate = self.learning_rate()
        done = self.engine.train_step(
            batch, step, learning_rate=rate, n_each=batches.n_each, asked=asked.number,
            phase=lambda name, together: self.watch.phase(f"{name} {step}", together=together, allowed=allowed),
        )  # fmt: skip
        self.watch.phase(f"after step {step}")
        if done.left_out:
            self._leave_out(step, done, batch)
        else:
            self.average.update(step)
            state["sums"]["loss"] += done.loss * done.n_observed
            state["sums"]["observed"] += done.n_observed
        state["step"] = step + 1
        n_windows = batch.n_pairs * batches.n_each
        for sums in (state["sums"], self._window):
            sums["windows"] += n_windows
            sums["waited"] += waited
        state["sums"]["samples"] += batch.n_pairs
        state["sums"]["substituted"] += done.n_substituted
        state["sums"]["seconds"] += time.monotonic() - start
        waiting = state["sums"]["waited"] / max(state["sums"]["seconds"], 1e-9)
        progress.advance(batch.n_pairs, f"epoch {epoch + 1} loss {done.loss:.3f} waiting for data {waiting:.1%}")
        if state["step"] % self.config.log_every == 0:
            self._log_step(epoch, done, rate)
        return done.asked

    def _log_step(self, epoch, done, rate):
        window, now = self._window, time.monotonic()
        seconds = now - window["start"]
        numbers = {
            "epoch": epoch + 1, "loss": done.loss, "learning_rate": rate, "gradient_norm": self.engine.norm,
            "windows_per_s": window["windows"] / seconds, "waiting_share": window["waited"] / seconds,
            "memory_gb": psutil.Process().memory_info().rss / 1e9,
        }  # fmt: skip
        if self.engine.device.type == "cuda":
            numbers["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self.journal.write("step", step=self.state["step"], **numbers)
        self._window = {"start": now, "windows": 0, "waited": 0.0}

    def _leave_out(self, step, done, batch):
        """Count a step whose gradient is not finite and name its windows; stop when there are too many."""
        state, n_each = self.state, self.batches.n_each
        state["n_left_out"] += 1
        mine = self.batches.names_of(step, done.bad_samples)
        # A finite output whose gradient is not: any sample of the batch may be to blame.
        of_rank = self.batches.names_of(step, range(len(batch.label_BC) // n_each))
        found = self.comm.allgather((mine, of_rank))
        names = [name for bad, _ in found for name in bad] or [name for _, whole in found for name in whole]
        self.journal.write("left out", step=step, loss=done.loss, gradient_norm=self.engine.norm, windows=names)
        log.warning(
            "step=%d left_out=gradient_not_finite loss=%s n_so_far=%d windows=%s", step, done.loss,
            state["n_left_out"], ",".join(names[:8]) + ",…" * (len(names) > 8),
        )  # fmt: skip
        if state["n_left_out"] > self.config.most_left_out:
            self._fail(
                f"{state['n_left_out']} steps had a gradient that is not finite, allowed are "
                f"{self.config.most_left_out}; the last at batch {step}, windows {', '.join(names[:3])}; lower "
                "finetune.learning_rate, or look at these windows (all are in log/finetune.jsonl)"
            )

    def _validate(self):
        state, sums = self.state, self.state["sums"]
        epoch = self.batches.epoch_of(state["step"] - 1)
        first, last = self.batches.first_step(epoch), self.batches.first_step(epoch + 1)
        with self.average.in_place():
            loss, score = self.validation.measure(
                self.network, phase=lambda name, together: self.watch.phase(name, together=together)
            )  # fmt: skip
            row = [
                epoch + (state["step"] - first) / (last - first), state["step"], sums["windows"],
                sums["loss"] / max(sums["observed"], 1), loss, score, self._rate,
                sums["windows"] / max(sums["seconds"], 1e-9), sums["waited"] / max(sums["seconds"], 1e-9),
            ]  # fmt: skip
            state["curve"].append(row)
            value = loss if self.config.best_by == "loss" else -score
            # Without a validation split the last one is taken.
            better = value < state["best_value"] or math.isnan(value)
            if better:
                state["best_value"], state["best_row"] = value, row
                state["best"] = f"best-{state['step']:08d}.safetensors"
                self._on_first(self._write_best)
        state["n_worse"] = 0 if better else state["n_worse"] + 1
        self.plateau.see(better)
        log.info(" ".join(f"{key}={number:.5g}" for key, number in zip(CURVE, row, strict=True)))
        self.journal.write("validation", **dict(zip(CURVE, row, strict=True)))

    def _write_best(self):
        """Write the network as it is, with its card: a model that can be scored with before the training's end."""
        path = self.folder / self.state["best"]
        write_tensor_file(path, self.network.state_dict(), "anyecg-export", portable(_card(self)))

    def _end_epoch(self):
        """Judge what an epoch has put in the place of damaged samples, and begin new sums."""
        sums = self.state["sums"]
        n_substituted = sums["substituted"]
        self.state["n_substituted"] += n_substituted
        if n_substituted:
            log.warning("samples_in_place_of_damaged_ones=%d", n_substituted)
        self.state["sums"] = _no_sums()
        check_substituted(n_substituted, sums["samples"], self.index.folder)

    def _save(self):
        """Save the state: every rank gives its part, rank 0 writes."""
        self.watch.phase("saving", together=self.comm.rank != 0, allowed=4)
        tensors, self.state["n_optimiser_steps"] = self.engine.state()
        self.state["plateau"] = self.plateau.state
        state, beside = self.state, [self.state["best"]] if self.state["best"] else []
        tensors |= self.average.state()
        self._on_first(lambda: self.checkpoint.save(state["step"], tensors, state, beside=beside))
        self.journal.write("saved", step=state["step"])

    def _on_first(self, work):
        """Do something on rank 0; all ranks fail with it."""
        error = None
        if self.comm.rank == 0:
            try:
                work()
            except (AnyECGError, OSError) as cause:
                error = cause if isinstance(cause, AnyECGError) else ModelError(f"{cause}; mend the disk and run again")
        share_error(self.comm, error)

    def _fail(self, text):
        cause = ModelError(text)
        cause.on_every_rank = True
        raise cause


def _no_sums():
    return {"loss": 0.0, "observed": 0.0, "windows": 0, "samples": 0, "substituted": 0, "seconds": 0.0, "waited": 0.0}


def finetune(folder, model_folder, index, config, stream, *, raw, seed, comm, stage_hash, log_folder):
    """Train, and publish the network that was best on the validation split.

    Parameters
    ----------
    folder, model_folder : path
        Where the checkpoint goes, in a folder named by ``stage_hash``, so that another config or other shards start
        anew beside it; where the finished model and ``curve.csv`` go.
    index : anyecg.loaders.index.Index
    config : anyecg.train.finetune_config.FinetuneConfig
    stream : anyecg.loaders.stream_config.StreamConfig
    raw : dict
        The [deepspeed] table, laid over what we derive.
    seed : int
    comm : MPI communicator
        Every rank calls this.
    stage_hash : str
        Names config and shards.
    log_folder : path
        Where ``finetune.jsonl`` and ``tensorboard/`` go.

    Raises
    ------
    ModelError
        No training pairs, a damaged checkpoint, weights that do not fit, gradients that are not finite.
    Stopped
        A signal asked for it; the same call goes on.
    """
    order = {"seed": seed + config.seed, "split": "train", "horizon_min": config.horizon_min}
    if not n_units(index, epoch=0, choice=stream, **order):
        raise ModelError(
            f"{index.folder}: no training pairs within {config.horizon_min} min; check [cohort] and [stream]"
        )
    folder = Path(folder) / stage_hash
    if comm.rank == 0:
        make_folder(folder)
        (folder / BEATS).unlink(missing_ok=True)
    comm.barrier()
    with Asked().listening() as asked, ExitStack() as exits:
        training = Training(
            folder, index, config, stream, raw, seed=seed, comm=comm, log_folder=log_folder, exits=exits
        )  # fmt: skip
        try:
            training.run(asked)
        except AnyECGError as cause:
            # A rank that fails alone is not waited for.
            if cause.on_every_rank:
                leave(comm, folder)
            raise
        training.watch.phase("publishing", together=comm.rank != 0, allowed=4)
        if comm.rank == 0:
            load_weights(folder / training.state["best"], training.network)
            _write_curve(Path(model_folder) / "curve.csv", training.state["curve"])
            publish(model_folder, training.network, _card(training))
        comm.barrier()
        leave(comm, folder)
        training.watch.close()
        if comm.rank == 0:
            training.watch.path.unlink(missing_ok=True)


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


def _card(training):
    """Return what a user of the model must know: its input, its outputs, where it comes from."""
    index, config, state = training.index, training.config, training.state
    same = ("fs", "samples", "preset", "preset_hash", "target_hash")
    best = dict(zip(CURVE, state["best_row"], strict=True))
    return {
        "model": config.model,
        "head": config.head,
        "join": config.join,
        "windows_per_sample": training.stream.windows_per_sample,
        "targets": list(training.objective.targets),
        **training.objective.card,
        "leads": list(index.leads),
        **{key: index.head[key] for key in same},
        "standardised": "each window: (x - mean) / SD",
        "index_hash": index.hash,
        "stage_hash": training.folder.name,
        "n_parameters": sum(p.numel() for p in training.network.parameters()),
        **{key: None if math.isnan(best[key]) else best[key] for key in ("epoch", "step", "val_loss", "val_score")},
        "n_substituted": state["n_substituted"],
        "n_left_out": state["n_left_out"],
        "seed": training.seed,
        # The path of the weights belongs to this machine; their hash is part of the stage's.
        "finetune": config.model_dump(mode="json", exclude={"weights"}),
        "from_weights": bool(config.weights),
    }
