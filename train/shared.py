"""Arrays that all ranks of a node see, held once."""

import math
import os
from typing import Any

import numpy as np

from anyecg.loaders.errors import AnyECGError, ModelError
from anyecg.loaders.ranks import share_error


class Node:
    """The ranks that share a node's memory.

    Parameters
    ----------
    comm : MPI communicator, optional
        All its ranks make every call of this class together; without one this process is alone.
    """

    def __init__(self, comm=None):
        self._comm, self._node = comm, None
        if comm is not None and comm.size > 1:
            from mpi4py import MPI

            self._node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self._is_first = self._node is None or self._node.rank == 0
        self._windows: list = []

    def filled(self, shape, dtype, fill):
        """Return an array of the node that ``fill`` has filled, on its first rank.

        Parameters
        ----------
        shape : tuple of int
        fill : function of the array

        Raises
        ------
        AnyECGError
            What ``fill`` raised on any node, on every rank; no room in /dev/shm.
        """
        array = self._empty(shape, np.dtype(dtype))
        self._on_first(lambda: fill(array))
        return array

    def made(self, make):
        """Return on every rank the array that ``make`` returns on the first rank of each node."""
        found = self._on_first(lambda: np.ascontiguousarray(make()))
        if self._node is None:
            return found
        shape, dtype = self._node.bcast(None if found is None else (found.shape, found.dtype))
        return self.filled(shape, dtype, lambda array: array.__setitem__(..., found))

    def _on_first(self, work):
        """Return what ``work`` returns on the node's first rank; every rank waits for it, and raises its error."""
        found, error = None, None
        if self._is_first:
            try:
                found = work()
            except AnyECGError as cause:
                error = cause
        if self._comm is not None:
            share_error(self._comm, error)
        elif error is not None:
            raise error
        return found

    def _empty(self, shape, dtype):
        n_bytes = math.prod(shape) * dtype.itemsize
        if self._node is None or not n_bytes:
            return np.empty(shape, dtype)
        from mpi4py import MPI

        self._on_first(lambda: _check_room(n_bytes))
        window = MPI.Win.Allocate_shared(n_bytes if self._is_first else 0, dtype.itemsize, comm=self._node)
        self._windows.append(window)
        memory: Any = window.Shared_query(0)[0]
        return np.frombuffer(memory, dtype, count=math.prod(shape)).reshape(shape)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        # An error of one rank alone ends the job, and the windows with it.
        if kind is None or getattr(error, "on_every_rank", False):
            for window in self._windows:
                window.Free()
            if self._node is not None:
                self._node.Free()


def _check_room(n_bytes):
    place = os.statvfs("/dev/shm")
    n_free = place.f_bavail * place.f_frsize
    if n_bytes > n_free:
        raise ModelError(
            f"/dev/shm has {n_free / 1e9:.1f} GB free, the ranks of this node want to share {n_bytes / 1e9:.1f} GB; "
            "make it larger, or evaluate with one rank a node"
        )
