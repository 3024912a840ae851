import numpy as np

from anyecg.kernels.coverage import windows_by_epoch


def test_windows_by_epoch_agrees_with_an_obvious_twin():
    rng = np.random.default_rng(5)
    start_NS = np.sort(rng.uniform(0, 3000, (20, 3)), axis=1).round(1)
    stop_NS = start_NS + rng.uniform(0, 900, (20, 3)).round(1)
    n_draws_N = rng.integers(1, 5, 20)
    time_ND = np.where(np.arange(4) < n_draws_N[:, None], np.sort(rng.uniform(0, 3600, (20, 4)), axis=1), np.inf)
    draw_N = np.array([rng.integers(0, n) for n in n_draws_N])
    counts_ND = windows_by_epoch(start_NS, stop_NS, time_ND, n_draws_N, draw_N, half_s=900)
    for n in range(20):
        twin = np.zeros(4, int)
        for start, stop in zip(start_NS[n], stop_NS[n], strict=True):
            for t in start + 10.0 * np.arange(int((stop - start) / 10 + 1e-9)):
                if t >= time_ND[n, draw_N[n]] - 900 and t + 10 <= time_ND[n, draw_N[n]] + 900:
                    twin[np.abs(t + 5 - time_ND[n]).argmin()] += 1
        np.testing.assert_array_equal(counts_ND[n], twin)
