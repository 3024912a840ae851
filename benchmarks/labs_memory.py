"""Peak memory and time of reading labs.csv: made-up results of the 108 targets' components in MC-MED's layout."""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from anyecg.loaders.cohort_config import CohortConfig
from anyecg.loaders.labs import LAB_COLUMNS, read_draws
from anyecg.loaders.targets import read_targets

BLOCK = 500_000


def write_labs(path, n_rows, n_visits):
    """Write ``n_rows`` results, half of them of components without target, each visit's draws 30 results long."""
    targets = read_targets()
    units = {target.component: target.unit for target in targets}
    names = np.array([*units, *(f"OTHER, {number}" for number in range(len(units)))])
    unit = np.array([*units.values(), *[""] * len(units)])
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for first in range(0, n_rows, BLOCK):
            draw = np.arange(first, min(first + BLOCK, n_rows)) // 30
            which = rng.integers(0, len(names), len(draw))
            minute = pl.Series(draw // n_visits * 60)
            moment = pl.select(pl.datetime(2250, 1, 1) + pl.duration(minutes=minute)).to_series()
            block = pl.DataFrame(
                {
                    "CSN": (99_000_000 + draw % n_visits).astype(str),
                    "Order_time": moment.dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "Result_time": moment.dt.offset_by("40m").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "Component_name": names[which],
                    "Component_value": np.round(rng.gamma(4.0, 2.0, len(draw)), 2).astype(str),
                    "Component_units": unit[which],
                    "Component_nml_low": "",
                    "Component_nml_high": "",
                }
            ).select(LAB_COLUMNS)
            block.write_csv(file, include_header=first == 0)


def main():
    """Print rows, bytes, seconds, CPU seconds, peak memory, and the flow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--visits", type=int, default=118_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labs.csv"
        write_labs(path, arguments.rows, arguments.visits)
        visits = pl.DataFrame({"CSN": [str(99_000_000 + number) for number in range(arguments.visits)]})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        start, cpu_start = time.perf_counter(), time.process_time()
        draws, flow = read_draws(path, visits, read_targets(), CohortConfig(kind="mcmed"))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{arguments.rows} rows, {path.stat().st_size / 1e9:.2f} GB: {seconds:.0f} s ({cpu_seconds:.0f} s of CPU), "
            f"{draws.height} draws; ",
            end="",
        )
        print(f"peak memory {peak:.2f} GB ({before:.2f} GB before)")
        print(flow)


if __name__ == "__main__":
    main()
