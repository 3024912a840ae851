"""``anyecg gather``: the runs of a sweep as one table."""

import csv
from pathlib import Path

from anyecg.app.report_text import MANY_ROWS, aligned
from anyecg.loaders.errors import AnyECGError
from anyecg.loaders.files import replacing

TABLE = "sweep.csv"


def gather(config, runs):
    """Write ``sweep.csv``: the rows of every run's results.csv behind the name of the run and its swept keys.

    Parameters
    ----------
    config : Config
    runs : dict
        Name of each run to its config.

    Returns
    -------
    str : the table of mean AUROCs for a terminal

    Raises
    ------
    AnyECGError
        No sweep in the config, or a run without results; the table of those that have some is written before.
    """
    keys = list(config.slurm.sweep)
    if not keys:
        raise AnyECGError('slurm.sweep is empty; wanted keys and their values, as "finetune.seed" = [1, 2, 3]')
    head: list[str] = []
    lines, said, lost = [], [("run", "rows", "mean AUROC", "its lowest", "its highest")], []
    for name, run in runs.items():
        path = Path(run.folder) / "results.csv"
        if not path.is_file():
            lost.append(name)
            continue
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        values = [str(_value(run, key)) for key in keys]
        head = head or ["run", *keys, *rows[0]]
        lines += [[name, *values, *row.values()] for row in rows]
        said.append((name, str(len(rows)), *_mean_auroc(rows)))
    if lines:
        with (
            replacing(Path(config.folder) / TABLE) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file, lineterminator="\n").writerows([head, *lines])
    if lost:
        raise AnyECGError(
            f"{config.folder}: {len(lost)} of {len(runs)} runs have no results yet, as {lost[0]}; see 'anyecg status', "
            f"the others stand in {TABLE}"
        )
    more = [f"the first {MANY_ROWS} of {len(runs)} runs; {TABLE} holds all"] if len(runs) > MANY_ROWS else []
    return "\n".join([aligned(said[: MANY_ROWS + 1]), *more])


def _value(run, key):
    section, _, name = key.partition(".")
    return getattr(getattr(run, section), name)


def _mean_auroc(rows):
    """Return mean, lowest and highest AUROC of the rows that have one, as text."""
    found = [float(row["auroc"]) for row in rows if row["auroc"] not in ("", "nan")]
    return tuple(f"{value:.3f}" for value in (sum(found) / len(found), min(found), max(found))) if found else ("–",) * 3
