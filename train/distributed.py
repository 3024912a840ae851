"""Join the MPI ranks of a stage in one torch process group, on the GPU with NCCL, on the CPU with gloo."""

import logging
import os
import socket
from pathlib import Path

import torch

from anyecg.loaders.errors import ModelError

STORE = ".store"


def _free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _meet_in_a_file(comm, path, backend):
    """Form the process group over a file: torch's TCP store looks names up, even on one machine."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if comm.rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    comm.barrier()
    store = torch.distributed.FileStore(str(path), comm.size)
    torch.distributed.init_process_group(backend, store=store, rank=comm.rank, world_size=comm.size)


def _place(comm):
    """Return (this rank's number on its machine, ranks on this machine)."""
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    found = node.rank, node.size
    node.Free()
    return found


def device_of(comm):
    """Return this rank's device: a GPU of its own where there are any, else the CPU.

    Raises
    ------
    ModelError
        More ranks than GPUs on this machine.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank, n_local = _place(comm)
    if n_local > torch.cuda.device_count():
        raise ModelError(
            f"{n_local} ranks on a machine with {torch.cuda.device_count()} GPUs; start one rank a GPU (finetune.ranks)"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def join(comm, folder):
    """Initialise DeepSpeed's communication over the ranks of ``comm`` and return this rank's device.

    On one machine the ranks meet in a file in ``folder``, only the loopback address is used, and no name is looked up.
    """
    device = device_of(comm)
    on_gpu = device.type == "cuda"
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    local_rank, n_local = _place(comm)
    host, port = comm.bcast((socket.gethostname(), _free_port()) if comm.rank == 0 else None)
    os.environ |= {
        "RANK": str(comm.rank), "WORLD_SIZE": str(comm.size), "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": host, "MASTER_PORT": str(port),
    }  # fmt: skip
    # The shared-memory extension would be compiled for half a minute at the first start on a CPU.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if n_local == comm.size:
        _meet_in_a_file(comm, Path(folder) / STORE, "nccl" if on_gpu else "gloo")
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False)
    if on_gpu:
        torch.backends.cudnn.deterministic = True
    else:
        torch.set_flush_denormal(True)
    return device


def leave(comm, folder):
    """Close the process group on every rank."""
    torch.distributed.destroy_process_group()
    comm.barrier()
    if comm.rank == 0:
        (Path(folder) / STORE).unlink(missing_ok=True)
