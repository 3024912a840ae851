"""Trainings of a tiny network under DeepSpeed: run on MPI ranks by test_engine.py, which imports what they are made of.

python engine_cases.py TINY_SET OUT [compile]
"""

import sys
from pathlib import Path

import numpy as np
import torch

from anyecg.loaders.errors import ConfigError
from anyecg.loaders.files import digest
from anyecg.loaders.source import Batch
from anyecg.loaders.stream import open_index, rows_of_rank
from anyecg.train.finetune_config import FinetuneConfig
from anyecg.train.network import Network

RATE, N_SAMPLES, HALF = 0.01, 5, 3
# Samples of each step; two are fewer than three ranks, and one step has no label at all.
SIZES, UNLABELLED, BAD = (7, 7, 2, 7, 7, 7), 3, 4
BAD_SAMPLE = 5
RAW = {"zero_optimization": {"reduce_bucket_size": 8, "reduce_scatter": False}, "prescale_gradients": True}
REFUSED = {"zero_optimization": {"reduce_bucket_size": "large"}}
PLAIN = {"gradient_clip": 0.05}
HEAD_ONLY = {"train": "head", "model": "net1d", "weights": "published", "join": "features"}
CASES = {
    **{f"zero {zero}, in {n} parts": {"zero": zero, "accumulation": n} for zero in (0, 1, 2) for n in (1, 4)},
    "joined": {"join": "features", "accumulation": 4},
    "by target": {"average": "targets", "zero": 2, "accumulation": 4, "label_smoothing": 0.1},
    "unclipped": {"gradient_clip": 1e6, "zero": 1},
    "joined, zero 2": {"join": "features", "zero": 2},
    "head alone": {**HEAD_ONLY, "zero": 1},
    "head alone, zero 0": HEAD_ONLY,
    "raw table": {"zero": 2, "accumulation": 4},
    "bf16, zero 0": {"precision": "bf16"},
    "bf16, zero 2": {"precision": "bf16", "zero": 2},
}

N_EVERYWHERE = 8


def cases_on(n_ranks):
    """Return the names of the cases: on two ranks all, on others the first."""
    return list(CASES) if n_ranks == 2 else list(CASES)[:N_EVERYWHERE]


class Tiny(Network):
    """Two layers that take five samples of one lead."""

    in_channels = 1

    def __init__(self):
        super().__init__()
        self.body, self.dense = torch.nn.Linear(N_SAMPLES, 6), torch.nn.Linear(6, 2)

    def features(self, x_BLT):
        return torch.tanh(self.body(x_BLT[:, 0]))


def tiny(config):
    """Return the network that every training of a config begins with."""
    torch.manual_seed(1)
    network = Tiny()
    if config.join == "features":
        network.join_features()
    return network


def config_of(name):
    return FinetuneConfig(batch_size=7, learning_rate=RATE, **{**PLAIN, **CASES[name]})


def n_each_of(config):
    return 3 if config.join == "features" else 1


def whole_batch(step, n_each):
    """Return windows and labels of a global batch."""
    rng = np.random.default_rng([2, step])
    x_BLT = torch.tensor(rng.standard_normal((SIZES[step] * n_each, 1, N_SAMPLES)), dtype=torch.float32)
    label_BC = torch.tensor(rng.integers(-1, 2, (SIZES[step], 2)), dtype=torch.int8)
    if step == UNLABELLED:
        label_BC[:] = -1
    if step == BAD:
        x_BLT[BAD_SAMPLE * n_each, 0, 2] = float("nan")
    return x_BLT, label_BC.repeat_interleave(n_each, 0)


def share_of(step, n_each, comm):
    """Return a rank's part of a batch as the loaders give it: a rank without rows has one that counts for nothing."""
    x_BLT, label_BC = whole_batch(step, n_each)
    rows = rows_of_rank(np.arange(SIZES[step]), comm.rank, comm.size)
    idle = not len(rows)
    flat = (np.array([0] if idle else rows)[:, None] * n_each + np.arange(n_each)).reshape(-1)
    x_BLT, label_BC = x_BLT[flat], label_BC[flat]
    if idle:
        label_BC[:] = -1
    return Batch(x_BLT, label_BC, SIZES[step], 0)


class _Trainer:
    """Runs cases on the ranks of this program and notes what comes of them."""

    def __init__(self, index, comm, device):
        self.index, self.comm, self.device = index, comm, device

    def engine(self, config, *, network=None, raw=None, state=None):
        from anyecg.train.engine import Engine
        from anyecg.train.objective import Objective

        seen = set()

        class Noting(Objective):
            def loss(self, output_BC, label_BC, denominator):
                loss = super().loss(output_BC, label_BC, denominator)
                seen.add((str(output_BC.dtype), str(loss.dtype)))
                return loss

        network = network or tiny(config)
        if state:
            weights = {name[6:]: value for name, value in state[0].items() if name.startswith("model.")}
            network.load_state_dict(weights)
        engine = Engine(
            network, Noting(config, self.index), config, raw or {}, seed=1, comm=self.comm, device=self.device
        )
        if state:
            engine.load(*state)
        engine.seen = seen
        return engine

    def steps(self, engine, numbers):
        """Train; return what each step said, and the state before and after the bad one."""
        n_each, said, around = n_each_of(engine.config), [], []
        for step in numbers:
            around += [engine.state()] if step == BAD else []
            done = engine.train_step(
                share_of(step, n_each, self.comm), step, learning_rate=RATE, n_each=n_each, asked=self.comm.rank + step
            )
            around += [engine.state()] if step == BAD else []
            said.append([done.loss, done.n_observed, done.asked, done.left_out, done.bad_samples.tolist(), engine.norm])
        return self.comm.allgather(said), around

    def run(self, name):
        engine = self.engine(config_of(name), raw=RAW if name == "raw table" else None)
        half, _ = self.steps(engine, range(HALF))
        at_half = engine.state()
        rest, around = self.steps(engine, range(HALF, len(SIZES)))
        state = engine.state()
        said = [first + second for first, second in zip(half, rest, strict=True)]
        weights = digest([value.tolist() for value in engine.network.state_dict().values()])
        return {
            "said": said, "half": at_half, "state": state, "around": around, "seen": sorted(engine.seen),
            "weights": self.comm.allgather(weights),
        }  # fmt: skip

    def go_on(self, state, zero):
        """Train the second half from a state of the first."""
        engine = self.engine(FinetuneConfig(batch_size=7, learning_rate=RATE, zero=zero, **PLAIN), state=state)
        self.steps(engine, range(HALF, len(SIZES)))
        return engine.state()

    def refusal(self):
        """Say why DeepSpeed takes no table of text."""
        try:
            self.engine(FinetuneConfig(zero=1), raw=REFUSED)
        except ConfigError as cause:
            return str(cause)

    def compiled(self):
        engine = self.engine(FinetuneConfig(batch_size=7, learning_rate=RATE, compile=True, **PLAIN))
        said, _ = self.steps(engine, range(2))
        return {"said": said, "state": engine.state()}


def main():
    """Run every case and write what came of it."""
    from mpi4py import MPI

    from anyecg.train.distributed import join, leave

    tiny_set, out, *also = sys.argv[1:]
    comm, out = MPI.COMM_WORLD, Path(out)
    device = join(comm, out)
    trainer = _Trainer(open_index(tiny_set), comm, device)
    found = {name: trainer.run(name) for name in cases_on(comm.size)}
    found["2 to 0"] = trainer.go_on(found["zero 2, in 1 parts"]["half"], 0)
    found["0 to 1"] = trainer.go_on(found["zero 0, in 4 parts"]["half"], 1)
    found["refusal"] = trainer.refusal()
    before = out / f"half-{comm.size - 1}.pt"
    if before.exists():
        found["fewer ranks"] = trainer.go_on(torch.load(before), 2)
    if "compile" in also:
        found["compiled"] = trainer.compiled()
    if comm.rank == 0:
        torch.save(found["zero 1, in 4 parts"]["half"], out / f"half-{comm.size}.pt")
        torch.save(found, out / f"found-{comm.size}.pt")
    leave(comm, out)


if __name__ == "__main__":
    main()
