"""A network under DeepSpeed: one step of training, and its state free of the number of ranks."""

from typing import Any, NamedTuple

import numpy as np
import torch

from anyecg.loaders.errors import ConfigError
from anyecg.loaders.files import digest

MOMENTS = ("exp_avg", "exp_avg_sq")
# What our config decides in DeepSpeed's.
OURS = {
    "train_batch_size": "finetune.batch_size", "train_micro_batch_size_per_gpu": "finetune.batch_size",
    "gradient_accumulation_steps": "finetune.accumulation", "gradient_clipping": "finetune.gradient_clip",
    "torch_autocast": "finetune.precision", "optimizer": "finetune.learning_rate", "scheduler": "finetune.schedule",
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "amp"), "finetune.precision"),
}  # fmt: skip


class _Guarded(torch.optim.AdamW):
    """AdamW that clips, and leaves weights and moments as they are where the gradients are not finite."""

    def __init__(self, groups, learning_rate, *, clip):
        super().__init__(groups, learning_rate)
        self.clip, self.norm = clip, 0.0

    @torch.no_grad()
    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.clip))
        if np.isfinite(self.norm):
            super().step(closure)


def deepspeed_config(config, raw, *, n_ranks, on_gpu):
    """Derive DeepSpeed's JSON from ours; rows may be uneven over ranks, so its micro-batch is nominal.

    Raises
    ------
    ConfigError
        ``raw``, the [deepspeed] table, sets what our own keys decide.
    """
    for name, key in OURS.items():
        if name in raw:
            raise _refused(f"deepspeed.{name}: that is what {key} decides; set it there")
    zero = raw.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise _refused(f"deepspeed.zero_optimization: found {zero!r}; wanted a table [deepspeed.zero_optimization]")
    if "stage" in zero:
        raise _refused("deepspeed.zero_optimization.stage: that is what finetune.zero decides; set it there")
    micro = -(-config.batch_size // (n_ranks * config.accumulation))
    return {
        "steps_per_print": 2**31,
        **raw,
        "train_batch_size": micro * n_ranks * config.accumulation,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.accumulation,
        # Without ZeRO our optimiser clips.
        "gradient_clipping": config.gradient_clip if config.zero else 0.0,
        "zero_optimization": {**zero, "stage": config.zero},
        "torch_autocast": {
            "enabled": is_bf16(config, on_gpu), "dtype": "bfloat16",
            # Gradients are summed over ranks in float32.
            "lower_precision_safe_modules": [],
        },
    }  # fmt: skip


def _refused(text):
    """Return the error of a table that every rank has read."""
    cause = ConfigError(text)
    cause.on_every_rank = True
    return cause


def is_bf16(config, on_gpu):
    """Say whether the network computes in bf16 under autocast."""
    return config.precision == "bf16" or (config.precision == "auto" and on_gpu)


def _groups(network, weight_decay):
    """Return the parameters to train: matrices decay, biases, norms and what the network names do not."""
    apart: frozenset[str] = getattr(network, "without_decay", frozenset())
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    decaying = [p for name, p in named if p.ndim > 1 and name.rpartition(".")[2] not in apart]
    others = [p for name, p in named if p.ndim <= 1 or name.rpartition(".")[2] in apart]
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Engine:
    """A network, its optimiser and its gradients over all ranks.

    Parameters
    ----------
    network : anyecg.train.network.Network
    objective : anyecg.train.objective.Objective
    config : anyecg.train.finetune_config.FinetuneConfig
    raw : dict
        The [deepspeed] table.
    seed : int
    comm : MPI communicator
    device : torch.device

    Raises
    ------
    ConfigError
        The [deepspeed] table sets what our own keys decide, or DeepSpeed refuses it.

    Attributes
    ----------
    network : the same network, on the device
    norm : float
        Of the last step's gradient before clipping; NaN or infinite where that step was left out.
    """

    def __init__(self, network, objective, config, raw, *, seed, comm, device):
        import deepspeed

        self.network, self.objective, self.config = network.to(device), objective, config
        self.seed, self.comm, self.device, self.norm = seed, comm, device, 0.0
        if config.train == "head":
            for name, parameter in network.named_parameters():
                parameter.requires_grad = name.partition(".")[0] in ("dense", "several")
        groups = _groups(network, config.weight_decay)
        optimiser: torch.optim.AdamW = (
            torch.optim.AdamW(groups, config.learning_rate)
            if config.zero
            else _Guarded(groups, config.learning_rate, clip=config.gradient_clip)
        )
        forward = torch.compile(network) if config.compile else network
        settings = deepspeed_config(config, raw, n_ranks=comm.size, on_gpu=device.type == "cuda")
        try:
            self._deepspeed, self._optimiser, _, _ = deepspeed.initialize(
                model=forward, optimizer=optimiser, config=settings
            )  # fmt: skip
        except (AssertionError, ValueError) as cause:
            if not raw:
                raise
            raise _refused(
                f"[deepspeed]: DeepSpeed refuses it ({' '.join(str(cause).split())}); mend the table"
            ) from None
        self._base = self._optimiser.optimizer if config.zero else self._optimiser

    def train_step(self, batch, step, *, learning_rate, n_each=1, asked=0, phase=lambda name, together: None):
        """Train on this rank's share of a global batch.

        Parameters
        ----------
        batch : anyecg.loaders.source.Batch
        step : int
            Counted from the start of the training; decides random numbers of the network, if it draws any.
        learning_rate : float
        n_each : int
            Windows of a sample.
        asked : int
            Anything that this rank wants to tell; the largest of all ranks is returned.
        phase : function of (name, together)
            Is told what comes next, and whether that waits for other ranks.

        Returns
        -------
        Step
        """
        label_BC = batch.label_BC[::n_each]
        count_C = self.objective.count(label_BC)
        # The denominator of the loss on every rank: what the rows of all ranks really carry.
        phase("counting labels of batch", True)
        told = np.stack(self.comm.allgather(np.append(count_C, [batch.n_substituted, asked])))
        count_C, n_substituted, asked = told[:, :-2].sum(0), int(told[:, -2].sum()), int(told[:, -1].max())
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        torch.manual_seed(int(digest([self.seed, step, self.comm.rank]), 16) % 2**63)
        loss, finite_B = self._backward(batch.x_BLT, label_BC, self.objective.denominator(count_C), n_each, phase)
        phase("step of batch", True)
        loss = self.comm.allreduce(loss)
        self._deepspeed.step()
        norm = self._optimiser._global_grad_norm if self.config.zero else self._optimiser.norm
        self.norm = float(norm)
        left_out = bool(self.comm.allreduce(not np.isfinite(self.norm), op=_largest()))
        return Step(loss, float(count_C.sum()), n_substituted, asked, left_out, np.flatnonzero(~finite_B))

    def _backward(self, x_BLT, label_BC, denominator, n_each, phase):
        """Add this rank's share to the gradients; return its share of the loss, and which samples' outputs are finite.

        DeepSpeed averages gradients over ranks; the loss is a sum over the global batch, so its division is undone.
        """
        n_samples, total, finite = len(label_BC), 0.0, []
        n_parts = self.config.accumulation
        for part in range(n_parts):
            rows = slice(part * n_samples // n_parts, (part + 1) * n_samples // n_parts)
            empty = rows.start == rows.stop
            if empty:
                # Every rank must run as often as the others.
                rows = slice(0, 1)
            label = label_BC[rows].to(self.device)
            label = self.objective.nothing(label) if empty else label
            x = x_BLT[rows.start * n_each : rows.stop * n_each].to(self.device)
            phase("forward pass of batch", False)
            output_BC, window_BC = self._deepspeed(x, n_each=n_each)
            loss = self.objective.loss(output_BC, label, denominator)
            if self.config.join == "features":
                of_window = label.repeat_interleave(n_each, 0)
                loss = loss + self.config.window_loss * self.objective.loss(window_BC, of_window, denominator * n_each)
            phase("backward pass of batch", True)
            self._deepspeed.backward(loss * self.comm.size, scale_wrt_gas=False)
            if part < n_parts - 1:
                self._deepspeed.step()
            total += loss.item()
            if not empty:
                finite.append(torch.isfinite(output_BC).all(1).cpu().numpy())
        return total, np.concatenate(finite)

    def state(self):
        """Return (tensors, number of optimiser steps): every rank calls this, every rank gets all of it.

        Names are ``model.NAME``, ``exp_avg.NAME``, ``exp_avg_sq.NAME``; under ZeRO the ranks' parts are put together.
        """
        tensors = {f"model.{name}": value for name, value in self.network.state_dict().items()}
        n_steps = 0
        for name, parameter, read, _ in self._moments():
            for key in MOMENTS:
                tensors[f"{key}.{name}"] = read(parameter, key)
        for state in self._base.state.values():
            n_steps = int(state["step"])
        return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, n_steps

    def load(self, tensors, n_steps):
        """Take on a state; weights must have been loaded into the network before it came here."""
        for group in self._base.param_groups:
            for parameter in group["params"]:
                moments: dict[str, Any] = {key: torch.zeros_like(parameter) for key in MOMENTS}
                self._base.state[parameter] = {"step": torch.tensor(float(n_steps)), **moments}
        for name, parameter, _, write in self._moments():
            for key in MOMENTS:
                write(parameter, key, tensors[f"{key}.{name}"].to(self.device))

    def _moments(self):
        """Yield (name, parameter, function that reads a moment whole, function that writes it) of what is trained."""
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                yield (name, parameter, self._read_part, self._write_part) if self.config.zero else (
                    name, parameter, self._read_whole, self._write_whole,
                )  # fmt: skip

    def _read_whole(self, parameter, key):
        state = self._base.state.get(parameter, {})
        return state[key] if key in state else torch.zeros_like(parameter)

    def _write_whole(self, parameter, key, value):
        self._base.state[parameter][key].copy_(value)

    def _flat(self, parameter, key):
        """Return this rank's stretch of a parameter's moment, and which of its elements; None if it has none."""
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        partition = self._optimiser.single_partition_of_fp32_groups[mapping.param_group_index]
        state = self._base.state.get(partition, {})
        if key not in state:
            return None
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        return state[key].narrow(0, here.start, here.numel), slice(there.start, there.start + there.numel)

    def _read_part(self, parameter, key):
        whole = torch.zeros(parameter.numel(), device=self.device)
        if found := self._flat(parameter, key):
            whole[found[1]] = found[0]
        torch.distributed.all_reduce(whole)
        return whole.view(parameter.shape)

    def _write_part(self, parameter, key, value):
        if found := self._flat(parameter, key):
            found[0].copy_(value.flatten()[found[1]])


class Step(NamedTuple):
    """What came of one step: the same on every rank but for ``bad_samples``.

    Attributes
    ----------
    loss : float
        Of the whole global batch.
    n_observed : float
        What it was divided by.
    n_substituted : int
        Samples of all ranks that stand in for damaged ones.
    asked : int
        The largest of what the ranks told.
    left_out : bool
        The gradient was not finite, so nothing was changed.
    bad_samples : int array
        This rank's samples whose outputs are not finite.
    """

    loss: float
    n_observed: float
    n_substituted: int
    asked: int
    left_out: bool
    bad_samples: np.ndarray


def _largest():
    from mpi4py import MPI

    return MPI.MAX
