"""Who takes part in a stage: the MPI ranks this process was started with, or itself alone."""

import os
import sys

from anyecg.loaders.errors import AnyECGError
from anyecg.loaders.pmi import keep_requests_short

RANK_VARIABLES = ("PMI_RANK", "PMI_ID", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
# Of mpirun alone: inside a Slurm job, what it starts carries the variables of a step of mpirun's own.
MPIRUN_VARIABLES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_SIZE")
# A batch script and an interactive shell are steps too, with numbers from here on.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


def by_srun():
    """Say whether this process is a task of a step that srun started."""
    step = os.environ.get("SLURM_STEP_ID", "")
    is_step = step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP
    return is_step and not any(name in os.environ for name in MPIRUN_VARIABLES)


def by_torchrun():
    """Say whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def under_launcher():
    """Say whether mpirun or srun started this process."""
    return by_srun() or any(name in os.environ for name in RANK_VARIABLES)


def is_first():
    """Say, before MPI is there, whether this is the first process of its job."""
    names = ("SLURM_PROCID",) if by_srun() else RANK_VARIABLES
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


def n_launched():
    """Return how many processes mpirun or srun started beside this one, itself included."""
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if by_srun() else ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
    return next((int(os.environ[name]) for name in names if name in os.environ), 1)


def world():
    """Return the communicator of all ranks of this job; alone, one of size 1. All ranks call this together.

    Raises
    ------
    AnyECGError
        srun started other tasks than MPI sees: two process managers that do not fit start N jobs of one.
    """
    if by_srun() and "mpi4py.MPI" not in sys.modules:
        keep_requests_short()
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if by_srun():
        n_tasks, number = n_launched(), int(os.environ.get("SLURM_PROCID", "0"))
        wrong = n_tasks != comm.size or any(comm.allgather(number != comm.rank))
        if wrong:
            error = AnyECGError(
                f"Slurm started {n_tasks} tasks but MPI sees {comm.size}, and task {number} is MPI's rank {comm.rank}; "
                "wanted the same numbers: start the stage with srun --mpi=pmi2"
            )
            error.quiet = not is_first()
            raise error
    return comm


def leave_together():
    """Wait, as a rank of a job, until all ranks have come to their end; signals are heard meanwhile."""
    if under_launcher() and "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        MPI.Finalize()


def node_of(comm):
    """Return the communicator of those ranks of ``comm`` that run on this rank's node; to be freed.

    Under srun a node is what Slurm takes for one, else a machine whose memory the ranks share.
    """
    from mpi4py import MPI

    shared = comm.Split_type(MPI.COMM_TYPE_SHARED)
    if not by_srun():
        return shared
    node = shared.Split(int(os.environ["SLURM_NODEID"]))
    shared.Free()
    return node


def share_error(comm, error):
    """Raise on every rank the first rank's error, so that none waits for a rank that has given up.

    ``error`` is this rank's AnyECGError or None; what is raised is marked ``on_every_rank``.
    """
    for rank, found in enumerate(comm.allgather(error)):
        if found is not None:
            shared = type(found)(f"{found} (rank {rank})" if comm.size > 1 else str(found))
            shared.on_every_rank = True
            raise shared


def on_first(comm, work):
    """Return on every rank what ``work`` returns on rank 0, or raise its AnyECGError on every rank."""
    found = error = None
    if comm.rank == 0:
        try:
            found = work()
        except AnyECGError as cause:
            cause.on_every_rank = True
            error = cause
    found, error = comm.bcast((found, error))
    if error is not None:
        raise error
    return found
