"""Run a config's real training batches for a while, and measure what each stage of the data path does."""

import os
import platform
import threading
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from anyecg.loaders.counters import Counters, Event
from anyecg.loaders.errors import AnyECGError, ModelError, ShardError
from anyecg.loaders.files import code_version
from anyecg.loaders.index import lost_files, open_index
from anyecg.loaders.index_form import CHUNK_COLUMNS
from anyecg.loaders.progress import Progress
from anyecg.loaders.stream import n_units
from anyecg.slurm.limits import SequentialDisk, device_copier, memory_copier, repeat
from anyecg.slurm.profile_numbers import rank_profile, summarise, verdict

MAX_SECONDS = 600
# How long each limit is measured; training steps are long and few.
LIMIT_SECONDS = {"disk": 1.0, "memory": 1.0, "pcie": 1.0, "model": 3.0}
# Over all ranks; a trace of a long run shows its beginning.
MAX_TRACED = 200_000
VERSIONS = ("numpy", "torch", "deepspeed", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "mpich")


def _order(config):
    return {"seed": config.seed, "split": "train", "horizon_min": config.finetune.horizon_min}


def check_shards(folder, config, seconds):
    """Refuse shards in ``folder`` that cannot be profiled.

    Raises
    ------
    AnyECGError
        No whole shards, no training pairs, or a time that is out of range.
    """
    if not 0 < seconds <= MAX_SECONDS:
        raise AnyECGError(f"--seconds {seconds:g}; wanted more than 0 and at most {MAX_SECONDS}")
    index = open_index(folder)
    lost = lost_files(folder)
    if lost:
        raise ShardError(f"{folder}: {len(lost)} files are missing or cut short, as {lost[0]}; run 'anyecg shard'")
    if not _n_samples(index, config):
        raise ModelError(
            f"{folder}: no training pairs within {config.finetune.horizon_min} min; check [cohort] and [stream]"
        )


def _n_samples(index, config):
    return n_units(index, epoch=0, choice=config.stream, **_order(config))


class Consumer:
    """Take this rank's training batches and, where there is an engine, train on them as finetune does."""

    def __init__(self, index, config, comm, *, device, engine=None, traced=True, phase=lambda name, together: None):
        from anyecg.train.batches import PairBatches

        self.counters, self.phase = Counters(traced=traced), phase
        self.comm, self.engine = comm, engine
        # Ranks that train together stop together.
        self.together = comm if engine is not None else None
        order = {**_order(config), "batch_size": config.finetune.batch_size}
        self.batches = PairBatches(
            index, config.stream, order, comm, device_id=device.index, counters=self.counters
        )  # fmt: skip

    def take(self):
        """Take one batch; return its windows on this rank."""
        self.batch: Any = self.batches.next()
        if self.engine is not None:
            self.train()
        return len(self.batch.x_BLT)

    def train(self):
        """Do one training step on the newest batch; return its windows on this rank."""
        start, n_windows = time.perf_counter_ns(), len(self.batch.x_BLT)
        rate = self.engine.config.learning_rate
        self.engine.train_step(self.batch, 0, learning_rate=rate, n_each=self.batches.n_each, phase=self.phase)
        self.counters.add("step", start, n_windows=n_windows)
        return n_windows


def start_engine(index, config, comm, device):
    """Return the engine of the configured network as finetune starts it, on ranks that have joined."""
    from anyecg.train.engine import Engine
    from anyecg.train.initial import initial_network
    from anyecg.train.objective import Objective

    objective = Objective(config.finetune, index)
    network = initial_network(
        config.finetune, index, comm, targets=objective.targets, seed=config.seed, fresh=True
    )  # fmt: skip
    return Engine(
        network, objective, config.finetune, config.deepspeed, seed=config.seed, comm=comm, device=device
    )  # fmt: skip


def profile(index, config, comm, *, seconds, with_model, folder):
    """Measure the data path of a config, and the limits of the machine.

    Parameters
    ----------
    index : anyecg.loaders.index.Index
    config : with seed, finetune and stream
    comm : MPI communicator
        Every rank calls this, and runs its own share of the batches.
    seconds : float
        How long the batches run; each limit takes a second more.
    with_model : bool
        Train on the batches; otherwise they are only taken.
    folder : path
        Where the ranks of a model meet.

    Returns
    -------
    (dict of figures, list of (events, thread names) of each rank) on rank 0, else (None, None)
    """
    from anyecg.train.distributed import device_of, join, leave

    engine = None
    if with_model:
        device = join(comm, folder)
        engine = start_engine(index, config, comm, device)
    else:
        device = device_of(comm)
    limits = ["disk", "memory"] + ["pcie"] * (device.type == "cuda") + ["model"] * with_model
    total = seconds + sum(LIMIT_SECONDS[name] for name in limits)
    with Progress("profile", total, " s", shown=comm.rank == 0) as progress:
        consumer = Consumer(index, config, comm, device=device, engine=engine)
        measured = _run_path(consumer, config.stream.prefetch + 1, seconds, progress)
        comm.barrier()
        found, how = _measure_limits(limits, index, consumer, device, progress)
    consumer.batches.close()
    if with_model:
        leave(comm, folder)
    mine = rank_profile(**measured, limits=found)
    gathered = comm.gather((mine, machine_of(device), measured["events"][: MAX_TRACED // comm.size], _thread_names()))
    if comm.rank:
        return None, None
    ranks, machines, *traces = zip(*gathered, strict=True)
    summary = summarise(ranks)
    document = {
        "verdict": verdict(summary), **summary, "disk_read_by": how, "with_model": with_model,
        "setting": setting_of(index, config), "machine": counted(machines), "versions": versions(),
    }  # fmt: skip
    return document, list(zip(*traces, strict=True))


def _run_path(consumer, n_warm, seconds, progress):
    """Take batches for some seconds, after ``n_warm`` that do not count; return what ``rank_profile`` asks for."""
    for _ in range(n_warm):
        consumer.take()
    consumer.comm.barrier()
    start = time.perf_counter_ns()
    told = partial(progress.advance, note="batches")
    n_windows, took = repeat(consumer.take, seconds, comm=consumer.together, told=told)
    events = _shifted(consumer.counters.events, start, time.perf_counter_ns())
    return {"events": events, "seconds": took, "n_windows": n_windows}


def _thread_names():
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    return {**names, threading.get_native_id(): "consumer"}


def _shifted(events, start, end):
    """Return the events that lie between ``start`` and ``end``, their times counted from ``start``."""
    return [
        Event(event.stage, event.start - start, event.end - start, *event[3:])
        for event in tuple(events)
        if start <= event.start and event.end <= end
    ]


def _measure_limits(names, index, consumer, device, progress):
    """Return ({limit: windows a second of this rank}, how the disk was read); all ranks measure at the same time."""
    shards = [index.folder / shard["name"] for shard in index.head["shards"]]
    first = consumer.comm.rank * len(shards) // consumer.comm.size
    disk = SequentialDisk(shards[first:] + shards[:first])
    chunks, shape = index.tables["chunks"], (len(index.leads), index.head["samples"])
    n_windows, n_bytes = (float(chunks[:, CHUNK_COLUMNS.index(name)].sum()) for name in ("n_windows", "n_bytes"))
    limits = {}
    for name in names:
        work = {
            "disk": lambda: disk.read, "memory": lambda: memory_copier(*shape),
            "pcie": lambda: device_copier(*shape, device), "model": lambda: consumer.train,
        }[name]()  # fmt: skip
        comm = consumer.comm if name == "model" else None
        done, took = repeat(work, LIMIT_SECONDS[name], comm=comm, told=partial(progress.advance, note=f"limit: {name}"))
        limits[name] = done / took
    disk.close()
    limits["disk"] *= n_windows / n_bytes
    return limits, disk.how


def machine_of(device):
    """Describe this rank's machine without its name."""
    import torch

    with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(), "cores_of_rank": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }  # fmt: skip


def counted(machines):
    """Return each kind of machine once, with the number of ranks on it."""
    kinds = [machine for number, machine in enumerate(machines) if machine not in machines[:number]]
    return [{**kind, "ranks": machines.count(kind)} for kind in kinds]


def setting_of(index, config):
    """Return what of the config and the shards decides the speed."""
    keys = ("loader", "prefetch", "read_threads", "run_chunks", "workers")
    return {
        "batch_size": config.finetune.batch_size, "model": config.finetune.model,
        **{key: getattr(config.stream, key) for key in keys},
        "filter": index.head["filter"], "leads": len(index.leads), "samples": index.head["samples"],
        "windows": index.head["counts"]["windows"],
    }  # fmt: skip


def versions():
    """Return the versions of what decides the speed."""
    installed = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    found = {name: installed[name] for name in VERSIONS if name in installed}
    return {"anyecg-lab": code_version(), "python": platform.python_version(), **found}
