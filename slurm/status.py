"""Where a chain is: what Slurm says of its jobs, and how far the stages' own logs say they are."""

import os
import re
from pathlib import Path

from anyecg.slurm.chain import Chain

_TAIL_BYTES = 64 << 10
_PROGRESS = re.compile(r"(\w+) done=(\d+) of=(\d+) (\S+)_per_s=([0-9.naif]+) seconds_left=([0-9.naif]+)")


def status(run_folder):
    """Return what is known of the chain of a run folder.

    Returns
    -------
    dict : ``submitted``, ``stopped`` and ``jobs``, a list with ``stage``, ``job``, ``state``, ``reason``, ``elapsed``,
    ``nodes``, ``restarts``, ``exit_code``, ``progress``, ``log`` and ``given_up`` of each job; None without a chain
    """
    chain = Chain(run_folder)
    document, known = chain.states()
    if document is None:
        return None
    rows, runs = [], _runs(chain.folder)
    for stage, entry in document["stages"].items():
        for place, job in enumerate(entry["jobs"]):
            found = known.get(job)
            of_array = entry["n_tasks"] > 0
            folder = runs[place] if of_array else Path(run_folder)
            state = found.state if found else "UNKNOWN"
            rows.append({
                "stage": stage, "job": job, "state": state,
                "reason": found.reason if found and found.reason != "None" else "",
                "elapsed": found.elapsed if found else "", "nodes": found.nodes if found else "",
                "restarts": entry["restarts"] + (found.restarts if found else 0),
                "exit_code": found.exit_code if found else None,
                "progress": "" if state == "PENDING" else progress(folder / "log" / f"{stage}.log"),
                "log": str(chain.folder / f"{stage}{f'-{place}' if of_array else ''}.log"),
                "given_up": entry["given_up"],
            })  # fmt: skip
    return {"submitted": document["submitted"], "stopped": document["stopped"], "jobs": rows}


def _runs(folder):
    path = folder / "runs.txt"
    return [Path(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def progress(path):
    """Return how far a stage is by the newest line of its log that says so; empty without one."""
    found = figures(path)
    if found is None:
        return ""
    left = found["seconds_left"]
    ends = "" if found["share"] >= 1 or left is None else f", {_clock(left)} left"
    return (
        f"{found['what']}: {found['done']:,} of {found['total']:,} ({found['share']:.0%}), "
        f"{found['rate']:,.0f} {found['unit']}/s{ends}"
    )


def figures(path):
    """Return the same as a dict: what, done, total, share, unit, rate, seconds_left (None unknown)."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    lines = _PROGRESS.findall(text)
    if not lines:
        return None
    what, done, total, unit, rate, left = lines[-1]
    return {
        "what": what, "done": int(done), "total": int(total), "unit": unit, "rate": float(rate),
        "share": int(done) / int(total) if int(total) else 1.0,
        "seconds_left": None if left in ("nan", "inf") else float(left),
    }  # fmt: skip


def _clock(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
