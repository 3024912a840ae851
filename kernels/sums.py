"""Sums over clusters under the weights of many replicates."""

import numpy as np

from anyecg.kernels._jit import kernel
from anyecg.kernels.weights import LANES


@kernel
def _weighted_sums(sum_PK, weight_PL, weight_L, out_KL):
    out_KL[:] = 0
    for p in range(len(sum_PK)):
        for lane in range(LANES):
            weight_L[lane] = weight_PL[p, lane]
        for k in range(sum_PK.shape[1]):
            value = sum_PK[p, k]
            # Most patients have units in few of the bins.
            if value == 0:
                continue
            for lane in range(LANES):
                out_KL[k, lane] += value * weight_L[lane]


def weighted_sums(sum_PK, weight_PL):
    """Return float64 (K, LANES): the K sums of all clusters under each lane's weights, added up in their order.

    Parameters
    ----------
    sum_PK : float64 array, shape (clusters, K)
        Finite.
    weight_PL : int8 array, shape (clusters, LANES)
    """
    out_KL = np.empty((sum_PK.shape[1], LANES))
    _weighted_sums(np.ascontiguousarray(sum_PK), weight_PL, np.empty(LANES), out_KL)
    return out_KL
