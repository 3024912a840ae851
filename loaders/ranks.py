"""Who takes part in a stage: the MPI ranks this process was started with, or itself alone."""

import os

from anyecg.loaders.errors import AnyECGError

LAUNCHER_VARIABLES = ("PMI_RANK", "PMI_ID", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_STEP_ID")


def under_launcher():
    """Say whether mpirun or srun started this process."""
    return any(name in os.environ for name in LAUNCHER_VARIABLES)


def world():
    """Return the communicator of all ranks of this job; alone, one of size 1.

    Raises
    ------
    AnyECGError
        srun started another number of tasks than MPI sees: two process managers that do not fit start N jobs of one.
    """
    from mpi4py import MPI

    if "SLURM_STEP_ID" in os.environ:
        n_tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1")))
        if n_tasks != MPI.COMM_WORLD.size:
            raise AnyECGError(
                f"Slurm started {n_tasks} tasks but MPI sees {MPI.COMM_WORLD.size}; start them with srun --mpi=pmi2"
            )
    return MPI.COMM_WORLD


def share_error(comm, error):
    """Raise on every rank the first rank's error, so that none waits for a rank that has given up.

    ``error`` is this rank's AnyECGError or None; what is raised is marked ``on_every_rank``.
    """
    for rank, found in enumerate(comm.allgather(error)):
        if found is not None:
            shared = type(found)(f"{found} (rank {rank})" if comm.size > 1 else str(found))
            shared.on_every_rank = True
            raise shared
