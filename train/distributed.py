"""Join the MPI ranks of a stage in one torch process group, on GPUs with NCCL, on CPUs with gloo."""

import logging
import os
import socket
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from anyecg.loaders.errors import ModelError
from anyecg.loaders.ranks import by_srun, node_of

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


class Place(NamedTuple):
    """Where this rank is: its number on its node, the ranks there, the first rank of each rank's node."""

    local_rank: int
    n_local: int
    nodes: list


def _place(comm):
    node = node_of(comm)
    found = node.rank, node.size, comm.allgather(node.bcast(comm.rank))
    node.Free()
    return Place(*found)


def device_of(comm):
    """Return this rank's device: a GPU of its own where there are any, else the CPU.

    A batch system may show each rank all GPUs of the node, or its own alone.

    Raises
    ------
    ModelError
        More ranks than GPUs on this machine.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    node = node_of(comm)
    mine = _visible_gpus()
    all_seen = node.allgather(mine)
    number = all_seen[: node.rank].count(mine)
    node.Free()
    if number >= torch.cuda.device_count():
        raise ModelError(
            f"{all_seen.count(mine)} ranks share {torch.cuda.device_count()} GPUs; start one rank a GPU "
            "(finetune.ranks; with srun as many tasks on a node as GPUs)"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _visible_gpus():
    """Name the GPUs that this process sees; a process sees one part of a divided GPU, so its setting counts too."""
    numbers = range(torch.cuda.device_count())
    return os.environ.get("CUDA_VISIBLE_DEVICES"), [str(torch.cuda.get_device_properties(n).uuid) for n in numbers]


def _names():
    """Return the names that other nodes may know this one by."""
    names = [os.environ["SLURMD_NODENAME"]] if by_srun() and "SLURMD_NODENAME" in os.environ else []
    return [*names, socket.gethostname()]


def _master():
    """Return the address and the port that ranks of several nodes meet at; for rank 0."""
    address = os.environ.get("MASTER_ADDR") or next((name for name in _names() if _resolves(name)), _names()[-1])
    return address, int(os.environ.get("MASTER_PORT") or _free_port())


def _resolves(name):
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def _interface_to_others(comm, nodes):
    """Return the network interface by which this rank's node reaches another node of the job; None if none is found.

    Left to itself, gloo takes the one that the machine's own name stands for, which is often the loopback.
    """
    names = comm.allgather(_names())
    first, mine = nodes[comm.rank], names[comm.rank]
    # The next node; the last one looks at the first.
    other = min((rank for rank in nodes if rank > first), default=nodes[0])
    for name in names[other]:
        if (address := _own_address_to(name)) and (names[other][-1] == mine[-1] or not address.startswith("127.")):
            found = psutil.net_if_addrs().items()
            return next((name for name, its in found if any(one.address == address for one in its)), None)
    return None


def _own_address_to(name):
    """Return the own IPv4 address that a packet to a machine would carry, sending none."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((name, 9))
            return probe.getsockname()[0]
    except OSError:
        return None


def join(comm, folder):
    """Initialise DeepSpeed's communication over the ranks of ``comm`` and return this rank's device.

    On one node the ranks meet in a file in ``folder``, only the loopback address is used, and no name is looked up. On
    several they meet at rank 0's node, or at the ``MASTER_ADDR`` and ``MASTER_PORT`` of its environment.
    """
    device = device_of(comm)
    on_gpu = device.type == "cuda"
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    place = _place(comm)
    on_one_node = place.n_local == comm.size
    host, port = comm.bcast(("localhost", 0) if on_one_node else _master() if comm.rank == 0 else None)
    if not on_one_node and (interface := _interface_to_others(comm, place.nodes)):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ |= {
        "RANK": str(comm.rank), "WORLD_SIZE": str(comm.size), "MASTER_ADDR": host, "MASTER_PORT": str(port),
        # DeepSpeed takes the GPU of this number.
        "LOCAL_RANK": str(device.index if on_gpu else place.local_rank),
    }  # fmt: skip
    # The shared-memory extension would be compiled for half a minute at the first start on a CPU.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if on_one_node:
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
