"""``anyecg scale``: jobs of several sizes are measured, and what they found is gathered in tables and a page."""

import csv
import io
import math
import os
from pathlib import Path

from anyecg.loaders.errors import AnyECGError

# One document a job; a site may measure CPU parts and GPU parts of a size in jobs of their own.
DOCUMENTS = ("nodes-*.json", "ranks-*.json")


def numbers_of(option, text):
    """Return the whole numbers of a list such as "1,2,4".

    Raises
    ------
    AnyECGError
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise AnyECGError(f"{option} {text}; wanted whole numbers, each once, as in 1,2,4,8")
    return sorted(numbers)


def check_scale(config, parts, seconds):
    """Refuse what a measurement would refuse, before any job is started.

    Raises
    ------
    AnyECGError
        Parts or seconds that are none; a cohort or shards that are not done; weights that are missing.
    """
    from anyecg.app.stages import STAGES, check_inputs
    from anyecg.slurm.profile import check_shards
    from anyecg.slurm.scale import check_request

    check_request(parts, seconds)
    for name in ("cohort", "shard"):
        if not STAGES[name].is_done(config):
            raise AnyECGError(
                f"{name} is not done for this config, or its output is gone; run 'anyecg {name}' with the same config"
            )
    if "finetune" in parts:
        check_inputs(config)
    check_shards(Path(config.folder) / "shards", config, 1.0)


def clear(folder):
    """Remove the documents of an earlier experiment, so that no table mixes two."""
    for form in DOCUMENTS:
        for path in Path(folder).glob(form):
            path.unlink()


def run_measure(config, path, *, parts, seconds, largest, hold):
    """Measure on the ranks of this job, or alone, and write one document; return the exit code.

    Parameters
    ----------
    path : Path
        Of the document, as ``RUN/scale/nodes-2.json``; a folder beside it, without the ending, holds log and lock.
    hold : bool
        Hold each rank to its share of this machine's cores.
    """
    from anyecg.app.run import on_ranks
    from anyecg.loaders.ranks import world

    if path.suffix != ".json":
        raise AnyECGError(f"--measure {path}; wanted a name that ends in .json, as in nodes-2.json")
    folder = path.with_suffix("")
    if hold:
        # Before anything starts threads, which keep the cores they began with.
        from anyecg.slurm.scale import hold_to_cores

        comm = world()
        hold_to_cores(comm.rank, max(largest or 1, comm.size))

    def prepare():
        from anyecg.slurm.scale import check_request

        check_request(parts, seconds)

    def work(comm, _):
        from anyecg.loaders.files import write_document
        from anyecg.slurm.scale import measure

        found = measure(config, comm, parts=parts, seconds=seconds, folder=folder, largest=largest)
        if comm.rank == 0:
            write_document(path, "anyecg-scale", found)
            print(f"scale: measured {found['ranks']} ranks on {found['nodes']} nodes: {path}", flush=True)

    return on_ranks("scale", folder, prepare, work)


def run_on_this_machine(config, numbers, *, parts, seconds):
    """Measure with each number of ranks here, one after another, then gather; return the exit code."""
    from anyecg.app.config import render_config
    from anyecg.app.run import lock_folder
    from anyecg.loaders.files import write_text
    from anyecg.slurm.launch import start_ranks

    check_scale(config, parts, seconds)
    folder, largest = Path(config.folder) / "scale", max(numbers)
    # The same threads for each rank, however many of them run.
    n_threads = max(1, len(os.sched_getaffinity(0)) // largest)
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, str(n_threads))
    with lock_folder(folder):
        clear(folder)
        write_text(folder / "config.toml", render_config(config))
        for place, n_ranks in enumerate(numbers, 1):
            print(f"scale: {n_ranks} rank{'s' * (n_ranks > 1)} ({place} of {len(numbers)})", flush=True)
            arguments = [
                "scale", str(folder / "config.toml"), f"--measure={folder / f'ranks-{n_ranks}.json'}",
                f"--parts={','.join(parts)}", f"--seconds={seconds}", f"--largest={largest}", "--hold",
            ]  # fmt: skip
            code = start_ranks(arguments, n_ranks)
            if code:
                return code
        return gather(config)


def submit_to_slurm(config, numbers, *, parts, seconds):
    """Submit a job for each number of nodes, one after another, and one that gathers; return the exit code.

    shard and evaluate run on nodes and ranks of a node as ``[slurm.shard]`` has them, stream and finetune as
    ``[slurm.finetune]``; ``[slurm.scale]`` gives the time.
    """
    from anyecg.app.config import render_config
    from anyecg.loaders.files import make_folder, write_text
    from anyecg.slurm import queue
    from anyecg.slurm.scripts import in_shell, render

    check_scale(config, parts, seconds)
    folder, site = Path(config.folder) / "scale", config.slurm
    given = in_shell(folder / "config.toml")
    scripts = {}
    for like, own in (("shard", ("shard", "evaluate")), ("finetune", ("stream", "finetune"))):
        mine, job = [part for part in parts if part in own], getattr(site, like)
        for n_nodes in numbers if mine else ():
            name = f"nodes-{n_nodes}-{like}"
            arguments = (
                f"scale {given} --measure {in_shell(folder / f'{name}.json')} --parts {','.join(mine)} "
                f"--seconds {seconds:g} --largest {max(numbers) * job.tasks}"
            )
            sized = job.model_copy(update={"nodes": n_nodes, "time": site.scale.time})
            scripts[name] = render(
                f"scale-{name}", sized, site, arguments=arguments, log=folder / f"{name}.log", kind="scale"
            )  # fmt: skip
    gathers = site.report.model_copy(update={"time": site.scale.time})
    scripts["gather"] = render(
        "scale-gather", gathers, site, arguments=f"scale {given} --gather", log=folder / "gather.log", kind="scale"
    )  # fmt: skip
    for text in scripts.values():
        queue.check(text)
    make_folder(folder)
    with queue.all_or_none() as submit:
        clear(folder)
        write_text(folder / "config.toml", render_config(config))
        after: list[str] = []
        for name, text in scripts.items():
            write_text(folder / f"{name}.sbatch", text)
            number = submit(folder / f"{name}.sbatch", *after)
            # Side by side they would share file system and network; a size that fails shall not hold up the others.
            after = [f"--dependency=afterany:{number}"]
            print(f"scale: job {number}: {name}; log {folder / name}.log", flush=True)
    print(f"scale: the table will be {folder / 'scale.csv'}, the page scale.html", flush=True)
    return 0


def read_documents(folder):
    """Return what the jobs of one experiment wrote.

    Raises
    ------
    AnyECGError
        None, of other shards or amounts of work than each other's, or two of the same size and part.
    """
    from anyecg.loaders.files import read_document
    from anyecg.slurm.scale_numbers import unit_of

    paths = sorted(path for form in DOCUMENTS for path in Path(folder).glob(form))
    if not paths:
        raise AnyECGError(f"{folder}: nothing measured; run 'anyecg scale' with --nodes or --ranks first")
    documents = [read_document(path, "anyecg-scale", missing=f"{path}: gone; run it again") for path in paths]
    if len({document["data"]["index_hash"] for document in documents}) > 1:
        raise AnyECGError(f"{folder}: measurements of different shards; remove those that are old, or run all again")
    for part in ("shard", "evaluate"):
        largest = {d["largest"] for d in documents if any(one["part"] == part for one in d["measured"])}
        if len(largest) > 1:
            raise AnyECGError(
                f"{folder}: strong scaling of {part} with other amounts of work (--largest {sorted(largest)}); measure "
                "every size with the same --largest, the ranks of the largest job"
            )
    unit = unit_of(documents)
    seen: dict[tuple, Path] = {}
    for path, document in zip(paths, documents, strict=True):
        for measured in document["measured"]:
            what = measured["part"], measured["kind"], document[unit]
            if what in seen:
                raise AnyECGError(
                    f"{path}: {what[0]} on {what[2]} {unit} is in {seen[what].name} too; remove the older one"
                )
            seen[what] = path
    return documents


def gather(config):
    """Make tables, forecast and page of what was measured; return the exit code."""
    from anyecg.app.scale_page import text_scale, write_page
    from anyecg.loaders.files import write_document
    from anyecg.loaders.targets import read_targets
    from anyecg.slurm.scale_numbers import forecast, points_of

    folder = Path(config.folder) / "scale"
    documents = read_documents(folder)
    points = points_of(documents)
    found = forecast(documents, [target.paper_windows for target in read_targets()])
    write_csv(folder / "scale.csv", points)
    write_csv(folder / "forecast.csv", found["rows"])
    head = {key: documents[0][key] for key in ("setting", "machine", "versions", "data", "seconds")}
    largest = max(documents, key=lambda document: document["ranks"])
    head |= {"machine": largest["machine"], "points": points, **found}
    write_document(folder / "scale.json", "anyecg-scale-table", without_nan(head))
    page = write_page(folder, head)
    print(f"{text_scale(head)}\nscale: {page}", flush=True)
    return 0


def without_nan(found):
    """Return a JSON-like value whose missing numbers are None: JSON knows no NaN."""
    if isinstance(found, dict):
        return {key: without_nan(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [without_nan(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


def write_csv(path, rows):
    """Write rows (dicts of the same keys) as a CSV, missing numbers as nothing."""
    from anyecg.loaders.files import write_text

    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(without_nan(rows))
    write_text(path, text.getvalue())
