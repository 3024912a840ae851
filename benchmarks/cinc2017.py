"""Score runs of one recipe that differ in their seed alone: each one, and their mean with a CI over the recordings.

    anyecg run app/cinc2017/config.toml cohort.path=FOLDER folder=runs/s0 finetune.seed=0     # and 1, 2
    python -m benchmarks.cinc2017 runs/s0 runs/s1 runs/s2

The test split is scored: mean F1 over N, A and O by plain highest score, and the AUROC of A against the rest. The CI of
the mean is that of the same resampled recordings for all runs; how far the seeds lie apart is beside it.
"""

import argparse
from pathlib import Path

import numpy as np

from anyecg.loaders.index import open_index
from anyecg.train.decide import Decisions, decided
from anyecg.train.evaluate import bootstrap_auroc
from anyecg.train.intervals import interval_of, mean_of
from anyecg.train.scores import read_scores
from anyecg.train.units import clusters_of, fewer_clusters, one_target, units_of

LEVELS = {"draw-head": "windows read together", "draw": "mean logit"}


def measured(folder, level, classes, n_replicates):
    """Return {metric: (value, replicates, degrees of freedom)} of one run's test split."""
    index = open_index(folder / "shards")
    scores = read_scores(folder / "scores.h5", index)
    targets = scores.card["targets"]
    units = units_of(index, scores, "test", 60, level)
    rows, called, true = decided(units, level)
    cluster = clusters_of(units, rows, "patient")
    decisions = Decisions(called, true, cluster, len(targets))
    value_C = decisions.measure()[0, :, 0]
    replicates_RC = decisions.replicates(0, n_replicates, seed=0)[:, :, 0]
    df_C = [fewer_clusters((true == number).astype(int), cluster) - 1 for number in range(len(targets))]
    found = {f"F1 {name}": (value_C[c], replicates_RC[:, c], df_C[c]) for c, name in enumerate(targets)}
    of_mean = [targets.index(name) for name in classes]
    found["mean F1"] = mean_of(value_C[of_mean], replicates_RC[:, of_mean], np.array(df_C)[of_mean])
    column = targets.index("A")
    one = one_target(units, column, level)
    cluster = clusters_of(units, one.rows, "patient")
    alone = bootstrap_auroc(one.logit, one.label, cluster, n_replicates=n_replicates)
    found["AUROC A"] = alone.value, alone.replicates, fewer_clusters(one.label, cluster) - 1
    return found


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--classes", nargs="+", default=["N", "A", "O"])
    parser.add_argument("--replicates", type=int, default=2000)
    arguments = parser.parse_args()
    for level, said in LEVELS.items():
        runs = [measured(folder, level, arguments.classes, arguments.replicates) for folder in arguments.runs]
        print(f"\n{said}\n{'':10}" + "".join(f"{folder.name:>10}" for folder in arguments.runs) + "      mean  its CI")
        for metric in runs[0]:
            values = [run[metric][0] for run in runs]
            replicates = np.mean([run[metric][1] for run in runs], axis=0)
            low, high = interval_of(
                np.mean(values), replicates, df=runs[0][metric][2], level=0.95, interval="logit-t"
            )  # fmt: skip
            print(
                f"{metric:10}" + "".join(f"{value:10.4f}" for value in values)
                + f"{np.mean(values):10.4f}  {low:.4f}-{high:.4f}   SD of seeds {np.std(values, ddof=1):.4f}"
            )  # fmt: skip


if __name__ == "__main__":
    main()
