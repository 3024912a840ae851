"""Arrays that all ranks of a node see, held once."""

import math
import os
from typing import Any

import numpy as np

from anyecg.loaders.errors import AnyECGError, ModelError
from anyecg.loaders.ranks import node_of, share_error


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
            self._node = node_of(comm)
        self._rank: int = 0 if self._node is None else self._node.rank
        self._size: int = 1 if self._node is None else self._node.size
        self._windows: list = []

    def filled(self, shape, dtype, fill):
        """Return an array of the node that its ranks have filled together.

        Parameters
        ----------
        shape : tuple of int
        fill : function of (array, rank, number of ranks)
            Fills this rank's part.

        Raises
        ------
        AnyECGError
            What ``fill`` raised on any node, on every rank; no room in /dev/shm.
        """
        array = self._empty(shape, np.dtype(dtype))
        self._together(lambda: fill(array, self._rank, self._size))
        return array

    def made(self, make):
        """Return on every rank the array that ``make`` returns on the first rank of each node."""
        found = self._together(lambda: None if self._rank else np.ascontiguousarray(make()))
        if self._node is None:
            return found
        shape, dtype = self._node.bcast(None if found is None else (found.shape, found.dtype))

        def fill(array, rank, _):
            if rank == 0:
                array[...] = found

        return self.filled(shape, dtype, fill)

    def _together(self, work):
        """Return what ``work`` returns; every rank waits for the others, and raises the first error of any."""
        found, error = None, None
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

        self._together(lambda: None if self._rank else _check_room(n_bytes))
        window = MPI.Win.Allocate_shared(0 if self._rank else n_bytes, dtype.itemsize, comm=self._node)
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
