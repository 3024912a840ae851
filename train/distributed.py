"""Join the MPI ranks of a stage in one torch process group, on the GPU with NCCL, on the CPU with gloo."""

import logging
import os
import socket

import torch


def _free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def join(comm):
    """Initialise DeepSpeed's communication over the ranks of ``comm`` and return this rank's device.

    Without a network route too: on one machine only the loopback address is used.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from mpi4py import MPI

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    local_rank = node.rank
    one_node = node.size == comm.size
    node.Free()
    host = "127.0.0.1" if one_node else socket.gethostname()
    host, port = comm.bcast((host, _free_port()) if comm.rank == 0 else None)
    if one_node:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ |= {
        "RANK": str(comm.rank), "WORLD_SIZE": str(comm.size), "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": host, "MASTER_PORT": str(port),
    }  # fmt: skip
    # The shared-memory extension would be compiled for half a minute at the first start on a CPU.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False)
    if not on_gpu:
        torch.set_flush_denormal(True)
        return torch.device("cpu")
    torch.cuda.set_device(local_rank % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())


def leave():
    """Close the process group."""
    torch.distributed.destroy_process_group()
