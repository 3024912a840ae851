"""The commands around runs: the demo, made-up data, comparison, checks, the cluster, and what is measured."""

import argparse
import logging
import time
from pathlib import Path

from anyecg.app.run import as_rank, lock_folder, run_chain, run_profile
from anyecg.loaders.errors import AnyECGError

DEMO_MARK = ".anyecg-demo"
LEVELS = ("window", "draw", "visit", "draw-head")


def add_with_config(commands, name, *, required=True):
    """Add a command that takes a config and overrides; return its parser."""
    command = commands.add_parser(name)
    command.add_argument("config", nargs=None if required else "?", help="config (TOML)")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="as in finetune.epochs=3")
    return command


def add_commands(commands):
    """Add the commands around runs to the subparsers; ``work_on`` of one that takes a config takes it opened."""
    submit = add_with_config(commands, "submit")
    submit.set_defaults(work=_submit)
    what = submit.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")
    what.add_argument("--stop", action="store_true", help="cancel all jobs of the chain")
    what.add_argument("--mend", metavar="STAGE", help=argparse.SUPPRESS)
    status = add_with_config(commands, "status")
    status.set_defaults(work=_status)
    status.add_argument("--json", action="store_true", help="print it as JSON")
    add_with_config(commands, "gather").set_defaults(work_on=_gather)
    verify = add_with_config(commands, "verify")
    verify.set_defaults(work=_verify)
    verify.add_argument("--json", action="store_true", help="print what was found as JSON")
    profile = add_with_config(commands, "profile")
    profile.set_defaults(work_on=_profile)
    profile.add_argument("--seconds", type=float, default=20.0, help="how long the batches run (20)")
    profile.add_argument("--model", action="store_true", help="train on the batches, as finetune does")
    profile.add_argument("--out", type=Path, help="folder to write (default: profile in the run folder)")
    _add_scale(add_with_config(commands, "scale"))
    targets = add_with_config(commands, "targets")
    targets.set_defaults(work_on=_targets)
    targets.add_argument("--out", type=Path, required=True, help="CSV of candidates to write")
    targets.add_argument("--min-visits", type=int, default=500, help="fewer visits with ECG are rare (500)")
    _add_without_config(commands)


def _add_without_config(commands):
    compare = commands.add_parser("compare")
    compare.set_defaults(work=_compare)
    compare.add_argument("runs", nargs="+", metavar="RUN[:LEVEL]", help="run folders; differences are to the first")
    compare.add_argument("--level", default="draw", choices=LEVELS, help="of runs without a level of their own (draw)")
    compare.add_argument("--horizon", type=int, default=60, choices=(60, 30, 15), help="in minutes (60)")
    compare.add_argument("--out", type=Path, default=Path("compare.csv"), help="CSV to write (compare.csv), and a JSON")
    demo = commands.add_parser("demo")
    demo.set_defaults(work=_demo)
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default: runs/demo)")
    demo.add_argument("--resume", action="store_true", help="continue what is there instead of starting anew")
    demo.add_argument("overrides", nargs="*", metavar="key=value", help="as in finetune.epochs=3")
    simulate = commands.add_parser("simulate")
    simulate.set_defaults(work=_simulate)
    simulate.add_argument("--out", type=Path, required=True, help="folder to write")
    simulate.add_argument("--visits", type=int, required=True, help="number of visits")
    simulate.add_argument("--hours", type=float, required=True, help="length of a visit")
    simulate.add_argument("--seed", type=int, default=0, help="another seed, other visits (0)")
    simulate.add_argument("--replay", type=Path, help="folder of WFDB records with .atr: replay and alter their beats")
    simulate.add_argument("--ranks", type=int, default=2, help="MPI ranks started on this machine (2)")
    commands.add_parser("doctor").set_defaults(work=_doctor)


def _add_scale(command):
    command.set_defaults(work_on=_scale)
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("--nodes", metavar="1,2,4", help="one Slurm job for each number of nodes, and one that gathers")
    where.add_argument("--ranks", metavar="1,2", help="on this machine, with so many MPI ranks, one after another")
    where.add_argument("--gather", action="store_true", help="make tables and page of what was measured")
    where.add_argument(
        "--measure", type=Path, metavar="JSON", help="measure on the ranks of this job, write a document"
    )
    command.add_argument("--parts", default="shard,stream,finetune,evaluate", help="what is measured (all four)")
    command.add_argument("--seconds", type=float, default=60.0, help="at most for each part and kind of scaling (60)")
    command.add_argument("--largest", type=int, help="--measure: ranks of the largest job (default: this job's)")
    command.add_argument("--hold", action="store_true", help=argparse.SUPPRESS)


def _doctor(_):
    from anyecg.app.doctor import examine

    return examine()


def _demo(arguments):
    import shutil
    from importlib.resources import as_file, files

    from anyecg.app.config import load_config

    out = arguments.out.absolute()
    if out.is_dir() and any(out.iterdir()) and not (out / DEMO_MARK).exists():
        raise AnyECGError(f"{out}: not empty and not a run of the demo; give another folder with --out")
    with as_file(files("anyecg.app") / "demo") as folder:
        config = load_config(folder / "config.toml", [f"folder={out}", *arguments.overrides])
        lock = lock_folder(out)
        (out / DEMO_MARK).touch()
        if not arguments.resume:
            for name in ("cohort", "shards", "checkpoint", "model", "log"):
                shutil.rmtree(out / name, ignore_errors=True)
            tables = ("results.csv", "decisions.csv", "regression.csv", "results.json")
            for name in ("scores.h5", *tables, "report.html"):
                (out / name).unlink(missing_ok=True)
        with lock:
            return run_chain(config)


def _compare(arguments):
    from anyecg.app.compare import compare_runs

    _log_lines(0)
    print(compare_runs(arguments.runs, level=arguments.level, horizon_min=arguments.horizon, out=arguments.out))
    return 0


def _log_lines(rank):
    """Send log lines of rank 0 to standard error where no bar is shown."""
    from anyecg.loaders.progress import on_terminal

    level = logging.INFO if rank == 0 and not on_terminal() else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")


def _simulate(arguments):
    from anyecg.loaders.ranks import under_launcher, world
    from anyecg.loaders.simulate import check_numbers, simulate

    check_numbers(arguments.visits, arguments.hours, arguments.seed)
    if arguments.ranks < 1:
        raise AnyECGError(f"--ranks {arguments.ranks}; wanted 1 or more")
    if arguments.ranks > 1 and not under_launcher():
        from anyecg.slurm.launch import start_ranks

        passed = {
            "out": arguments.out.absolute(),
            **{key: getattr(arguments, key) for key in ("visits", "hours", "seed")},
        }
        passed |= {"replay": arguments.replay.absolute()} if arguments.replay else {}
        return start_ranks(["simulate", *(f"--{key}={value}" for key, value in passed.items())], arguments.ranks)
    comm = world()
    _log_lines(comm.rank)

    def work():
        start = time.monotonic()
        fresh = simulate(
            arguments.out,
            n_visits=arguments.visits,
            hours=arguments.hours,
            seed=arguments.seed,
            comm=comm,
            replay=arguments.replay,
        )
        if comm.rank == 0:
            said = f"done in {time.monotonic() - start:.0f} s" if fresh else "kept, it holds just this simulation"
            print(f"{arguments.out}: {said}", flush=True)

    return as_rank("simulate", comm, work)


def _verify(arguments):
    """Re-read the shards, checkpoints and model of a run, or one of those folders."""
    import json

    from anyecg.app.config import load_config
    from anyecg.app.verify import as_json, verify_all

    folder = Path(arguments.config)
    if not folder.is_dir():
        folder = Path(load_config(arguments.config, arguments.overrides).folder)
    parts = verify_all(folder)
    problems = [problem for part in parts for problem in part.problems]
    if arguments.json:
        print(json.dumps(as_json(folder, parts), indent=1))
    else:
        for part in parts:
            if not part.problems:
                print(f"{part.folder}: {part.said}: everything is as it was written", flush=True)
    if problems:
        lines = [] if arguments.json else [f"\n  {problem}" for problem in problems]
        said = f"{len(problems)} problems{''.join(lines)}" if len(problems) > 1 else problems[0]
        raise AnyECGError(f"{folder}: {said}")
    return 0


def _submit(arguments):
    from anyecg.app.config import load_config
    from anyecg.app.submit import submit
    from anyecg.slurm.chain import Chain

    if not (arguments.stop or arguments.mend):
        return submit(arguments.config, arguments.overrides, dry_run=arguments.dry_run)
    config = load_config(arguments.config, arguments.overrides)
    chain = Chain(config.folder)
    if arguments.stop:
        print(f"{chain.folder}: {chain.stop()} jobs cancelled; 'anyecg submit' goes on where they were")
    else:
        print(chain.mend(arguments.mend, max_restarts=config.slurm.max_restarts), flush=True)
    return 0


def _status(arguments):
    import json

    from anyecg.app.config import load_config
    from anyecg.app.submit import text_status
    from anyecg.slurm.status import status

    folder = Path(arguments.config)
    if not folder.is_dir():
        folder = Path(load_config(arguments.config, arguments.overrides).folder)
    found = status(folder)
    if found is None:
        raise AnyECGError(f"{folder}: no chain was submitted from here; submit one with 'anyecg submit config.toml'")
    print(json.dumps(found, indent=1) if arguments.json else text_status(found))
    return 0


def _gather(config, arguments):
    from anyecg.app.gather import gather
    from anyecg.app.submit import cells

    with lock_folder(config.folder):
        print(gather(config, cells(config, arguments.config, arguments.overrides)), flush=True)
    return 0


def _targets(config, arguments):
    from anyecg.loaders.files import replacing
    from anyecg.loaders.labs import candidate_targets

    if config.cohort.kind != "mcmed":
        raise AnyECGError("targets counts the components of MC-MED's labs.csv; set cohort.kind = 'mcmed'")
    found = candidate_targets(config.cohort, min_visits=arguments.min_visits)
    with replacing(arguments.out) as temporary:
        found.write_csv(temporary)
    reasons = found["excluded"].value_counts(sort=True).iter_rows()
    print(
        f"{arguments.out}: {found.height} components; " + ", ".join(f"{why or 'candidates'} {n}" for why, n in reasons)
    )
    return 0


def _profile(config, arguments):
    passed = ["profile", arguments.config, *arguments.overrides, f"--seconds={arguments.seconds}"]
    passed += ["--model"] * arguments.model + ([f"--out={arguments.out}"] if arguments.out else [])
    return run_profile(
        config, seconds=arguments.seconds, with_model=arguments.model, out=arguments.out, arguments=passed
    )


def _scale(config, arguments):
    from anyecg.app.scale import gather, numbers_of, run_measure, run_on_this_machine, submit_to_slurm

    work = {"parts": arguments.parts.split(","), "seconds": arguments.seconds}
    if arguments.gather:
        return gather(config)
    if arguments.measure:
        if arguments.largest is not None and arguments.largest < 1:
            raise AnyECGError(f"--largest {arguments.largest}; wanted the ranks of the largest job, 1 or more")
        return run_measure(config, arguments.measure, largest=arguments.largest, hold=arguments.hold, **work)
    if arguments.ranks is not None:
        return run_on_this_machine(config, numbers_of("--ranks", arguments.ranks), **work)
    return submit_to_slurm(config, numbers_of("--nodes", arguments.nodes), **work)
