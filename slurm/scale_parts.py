"""What a scaling run measures: blocks of real work of each part, written where nothing of the run is touched."""

import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anyecg.loaders.counters import Counters
from anyecg.loaders.errors import AnyECGError, ModelError, ShardError
from anyecg.loaders.ranks import share_error
from anyecg.loaders.stream import n_units

# A block of sharding holds so many shards a rank of the largest job, of at most so many windows.
SHARDS_A_RANK, WINDOWS_A_SHARD = 4, 2_000
# Steps (0.2 ns each) of an evaluation that a block holds for each rank of the largest job.
STEPS_A_RANK = 5_000_000_000


class Did(NamedTuple):
    """What this rank did in one block; ``seconds`` go from the common start of all ranks to the end of the last."""

    windows: float
    n_bytes: int
    waited_data: float
    waited_others: float
    seconds: float


class _Kept:
    """What sharding tells of its progress: only the windows kept are counted."""

    def __init__(self):
        self.windows = 0

    def advance(self, _, counts):
        """Add what was found."""
        self.windows += counts.get("windows kept", 0)


class _Waiting:
    """What an evaluation tells of its progress: only how long this rank, when it has finished, waits for the others."""

    def __init__(self, comm):
        self._comm, self.seconds = comm, 0.0

    def advance(self, n, counts):
        """Do nothing."""

    def finish(self):
        """Wait until all ranks have come here."""
        start = time.perf_counter()
        self._comm.barrier()
        self.seconds += time.perf_counter() - start


class ShardPart:
    """Shards made, fsynced and read back in a folder of their own, then removed.

    Every call makes the next visits of the cohort: strong scaling as many shards as suit the largest job, dealt over
    all ranks; weak scaling the same number a rank.

    Parameters
    ----------
    folder : Path
        New; on the file system of the run's own shards.
    largest : int
        Ranks of the largest job of the experiment.
    """

    n_warm = 1

    def __init__(self, config, cohort, comm, folder, *, kind, largest):
        from anyecg.loaders.plan import plan_shards
        from anyecg.loaders.shards import ShardMaker

        self._comm, self._folder = comm, folder
        whole = plan_shards(cohort, windows_per_shard=config.shard.windows_per_shard)
        n_windows = sum(plan.n_windows for plan in whole)
        self.n_shards = SHARDS_A_RANK * (largest if kind == "strong" else comm.size)
        self.windows_a_shard = max(
            1, min(WINDOWS_A_SHARD, config.shard.windows_per_shard, n_windows // (SHARDS_A_RANK * largest))
        )
        self._plans = plan_shards(cohort, windows_per_shard=self.windows_a_shard)
        self._next = 0
        self._make = ShardMaker(folder, cohort, config.shard, config.seed, "scale").keep_or_make
        self._check_room(2 * 10 * config.shard.fs)

    def _check_room(self, window_bytes):
        error = None
        if self._comm.rank == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            wanted = 2 * self.n_shards * self.windows_a_shard * window_bytes
            free = shutil.disk_usage(self._folder).free
            if wanted > free:
                error = ShardError(
                    f"{self._folder}: {free / 1e9:.1f} GB free; a block of sharding wants {wanted / 1e9:.1f} GB for a "
                    "while: free space, or leave out shard (--parts)"
                )
        share_error(self._comm, error)

    @property
    def note(self):
        """What a reader of the table must know."""
        return f"{self.n_shards} shards of {self.windows_a_shard} windows a block"

    def block(self, n_calls):
        """Make ``n_calls`` sets of shards."""
        return _sum(self._call() for _ in range(n_calls))

    def _call(self):
        from anyecg.loaders.plan import deal

        chosen = [
            self._plans[(self._next + number) % len(self._plans)]._replace(number=number)
            for number in range(self.n_shards)
        ]
        self._next += self.n_shards
        mine = deal(chosen, self._comm.size)[self._comm.rank]
        kept, described, error = _Kept(), [], None
        self._comm.barrier()
        start = time.perf_counter()
        try:
            described = [self._make(plan, kept) for plan in mine]
        except AnyECGError as cause:
            error = cause
        except OSError as cause:
            error = ShardError(f"{self._folder}: {cause}; free space or mend the disk, then run again")
        own = time.perf_counter() - start
        share_error(self._comm, error)
        seconds = time.perf_counter() - start
        n_bytes = 0
        for shard in described:
            path = self._folder / shard["name"]
            n_bytes += path.stat().st_size
            path.unlink()
            path.with_suffix(".quarantine.csv").unlink()
        return Did(kept.windows, n_bytes, 0.0, seconds - own, seconds)

    def close(self):
        """Do nothing: the folder is removed with all that is in it."""


class _Phases:
    """Add up the seconds in which this rank waits for the others' labels, the first thing of a step done together."""

    def __init__(self):
        self.seconds, self._since = 0.0, None

    def __call__(self, name, together):
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now if together and name.startswith("counting labels") else None


class BatchPart:
    """Training batches: taken only (stream), or trained on (finetune), as ``anyecg profile`` does.

    Parameters
    ----------
    index : anyecg.loaders.index.Index
    config : Config
        With the batch size and learning rate of this kind of scaling.
    device : torch.device
    with_model : bool
        The ranks have joined (``anyecg.train.distributed.join``) then.
    """

    def __init__(self, index, config, comm, *, device, with_model):
        from anyecg.slurm.profile import Consumer, start_engine

        self._comm, self._phases = comm, _Phases()
        engine = start_engine(index, config, comm, device) if with_model else None
        self._consumer = Consumer(
            index, config, comm, device=device, engine=engine, traced=False, phase=self._phases
        )  # fmt: skip
        self.n_warm = config.stream.prefetch + 1
        self._window_bytes = 2 * len(index.leads) * index.head["samples"]
        n_samples, size = samples_of(index, config), config.finetune.batch_size
        self.note = f"a batch holds the {n_samples} samples of an epoch" if size > n_samples else ""

    def _waited(self):
        counters: Counters = self._consumer.counters
        return counters.totals()["wait"].seconds

    def block(self, n_calls):
        """Take ``n_calls`` batches."""
        waited, for_others = self._waited(), self._phases.seconds
        self._comm.barrier()
        start = time.perf_counter()
        windows = sum(self._consumer.take() for _ in range(n_calls))
        own = time.perf_counter() - start
        self._comm.barrier()
        seconds = time.perf_counter() - start
        for_others = self._phases.seconds - for_others + seconds - own
        return Did(windows, windows * self._window_bytes, self._waited() - waited, for_others, seconds)

    def close(self):
        """End what reads ahead."""
        self._consumer.batches.close()


def samples_of(index, config):
    """Return the training samples of an epoch."""
    return n_units(
        index, epoch=0, seed=config.seed, split="train", horizon_min=config.finetune.horizon_min, choice=config.stream
    )  # fmt: skip


class EvaluatePart:
    """Tasks of the config's table with their replicates, through the store of finished pieces; baselines are left out.

    Strong scaling makes the config's replicates, weak scaling so many a rank.

    Parameters
    ----------
    scores : path
        The run's ``scores.h5``; without it, or with those of other shards, made-up logits are evaluated.
    folder : Path
        New.
    node : anyecg.train.shared.Node
    """

    n_warm = 1

    def __init__(self, index, config, cohort, comm, folder, *, scores, node, kind, largest):
        from anyecg.train.evaluate import Evaluation, tasks_of
        from anyecg.train.work import pieces_of

        self._comm, self._folder, self._n_done = comm, folder, 0
        found, self.note = _scores(scores, index, config, node)
        levels = [level for level in config.evaluate.levels if level != "draw-head" or found.draws] or ["window"]
        of_table = config.evaluate.model_copy(
            update={"internal": "", "baselines": False, "f1_classes": [], "levels": levels}
        )
        evaluation = Evaluation(index, found, of_table, cohort, seed=config.seed)
        tasks = tasks_of(evaluation)
        n_windows = len(index.windows_of("test"))
        if not n_windows:
            raise ModelError(f"{index.folder}: no test windows to evaluate; leave out evaluate (--parts)")
        self.n_replicates = config.evaluate.n_replicates * (comm.size if kind == "weak" else 1)
        self.steps_a_window = _steps(pieces_of(tasks, config.evaluate.n_replicates)) / n_windows
        # Every k-th task, so that a block has about the same mix as the table.
        wanted = STEPS_A_RANK * largest
        every = max(1, min(-(-int(self.steps_a_window * n_windows) // wanted), len(tasks) // (4 * largest)))
        self._tasks = tasks[::every]
        self._windows = _steps(pieces_of(self._tasks, self.n_replicates)) / self.steps_a_window / comm.size

    def block(self, n_calls):
        """Work out the tasks ``n_calls`` times."""
        return _sum(self._call() for _ in range(n_calls))

    def _call(self):
        from anyecg.train.work import run_tasks

        self._n_done += 1
        folder = self._folder / str(self._n_done)
        self._comm.barrier()
        start, waiting = time.perf_counter(), _Waiting(self._comm)
        _, forget = run_tasks(
            self._tasks, folder, n_replicates=self.n_replicates, comm=self._comm, progress=waiting
        )  # fmt: skip
        # Rank 0 puts the pieces together meanwhile.
        waiting.finish()
        seconds = time.perf_counter() - start
        if self._comm.rank == 0:
            forget()
        return Did(self._windows, 0, 0.0, waiting.seconds, seconds)

    def close(self):
        """Do nothing: the folder is removed with all that is in it."""


def _steps(pieces):
    return sum(piece[3] for piece in pieces)


def _sum(calls):
    return Did(*map(sum, zip(*calls, strict=True)))


def _scores(path, index, config, node):
    """Return (Scores, note): those of the run, or made-up ones of the same windows."""
    from anyecg.train.scores import read_scores

    try:
        return read_scores(Path(path), index, node=node), "the run's scores"
    except ModelError:
        return made_up_scores(index, config.finetune.head, config.seed, node), "made-up scores"


def made_up_scores(index, head, seed, node):
    """Return random logits of all validation and test windows, one copy a node."""
    from anyecg.train.scores import Scores

    targets = list(index.components if head == "regression" else index.targets)
    card: dict[str, Any] = {
        "targets": targets, "head": head, "join": "logits", "target_hash": index.head["target_hash"],
        "weights_sha256": "", "value_mean": [0.0] * len(targets), "value_sd": [1.0] * len(targets),
    }  # fmt: skip
    windows = {}
    for number, split in enumerate(("val", "test")):
        rows = index.windows_of(split)

        def fill(output_CW, rank, n_ranks, number=number):
            for target in range(rank, len(output_CW), n_ranks):
                rng = np.random.default_rng([seed, number, target])
                output_CW[target] = rng.standard_normal(output_CW.shape[1], np.float32)

        windows[split] = rows, node.filled((len(targets), len(rows)), np.float32, fill).T
    return Scores(card, windows, {})


def remove_folder(folder):
    """Remove what a measurement, this one or a killed one, has left in its folder."""
    shutil.rmtree(folder, ignore_errors=True)
