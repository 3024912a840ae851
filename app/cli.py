"""The command line: ``anyecg STAGE config.toml [key=value ...]``."""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from anyecg.app.run import CHAIN, as_rank, lock_folder, mend, run_chain, run_profile, run_stage, run_stage_on_ranks
from anyecg.loaders.errors import AnyECGError

EPILOG = """\
stages of a run, in order                      example
  cohort     records and labels -> tables      anyecg cohort config.toml
  shard      recordings -> HDF5 shards (MPI)   anyecg shard config.toml shard.ranks=8
  finetune   shards -> model (DALI, DeepSpeed) anyecg finetune config.toml finetune.epochs=20
  predict    model, shards -> scores           anyecg predict config.toml
                                               anyecg predict --model runs/demo/model --input FOLDER --out scores.csv
  evaluate   scores -> results table (MPI)     anyecg evaluate config.toml evaluate.n_replicates=2000
  report     all of it -> report.html          anyecg report config.toml

around them
  demo       the whole chain on real ECGs      anyecg demo
  run        all stages, kept where unchanged  anyecg run config.toml
  compare    runs side by side, paired CIs     anyecg compare runs/a runs/b:draw-head --out compare.csv
  verify     shards, checkpoints, model, all   anyecg verify config.toml (or a folder of them; --json)
             against their checksums
  profile    the data path, stage by stage     anyecg profile config.toml --seconds 20 (--model: with training steps)
  simulate   MC-MED's layout, known truth      anyecg simulate --out sim --visits 300 --hours 1 --seed 1
  export     a finished model as one file      anyecg export runs/demo/model --format onnx --out model.onnx
  import-weights  ECGFounder's, made safe      anyecg import-weights 1_lead_ECGFounder.pth --out ecgfounder.safetensors
  targets    components of labs.csv, counted   anyecg targets config.toml --out candidates.csv
  doctor     what this machine has and lacks   anyecg doctor
  config     the resolved config, explained    anyecg config config.toml seed=7
"""
DEMO_MARK = ".anyecg-demo"
LEVELS = ("window", "draw", "visit", "draw-head")


def _parser():
    parser = argparse.ArgumentParser(
        prog="anyecg",
        description="From hospital ECG waveforms to laboratory estimates, with confidence intervals.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in (*CHAIN, "run", "verify", "targets", "profile", "config"):
        command = commands.add_parser(name, help=argparse.SUPPRESS)
        required = name not in ("config", "predict")
        command.add_argument("config", nargs=None if required else "?", help="config (TOML)")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="as in finetune.epochs=3")
        if name == "predict":
            command.add_argument("--model", type=Path, help="published folder, .safetensors or .onnx")
            command.add_argument("--input", type=Path, help="a folder of WFDB records, or one record")
            command.add_argument("--out", type=Path, help="CSV to write")
        if name == "verify":
            command.add_argument("--json", action="store_true", help="print what was found as JSON")
        if name == "profile":
            command.add_argument("--seconds", type=float, default=20.0, help="how long the batches run (20)")
            command.add_argument("--model", action="store_true", help="train on the batches, as finetune does")
            command.add_argument("--out", type=Path, help="folder to write (default: profile in the run folder)")
        if name == "targets":
            command.add_argument("--out", type=Path, required=True, help="CSV of candidates to write")
            command.add_argument("--min-visits", type=int, default=500, help="fewer visits with ECG are rare (500)")
    compare = commands.add_parser("compare", help=argparse.SUPPRESS)
    compare.add_argument("runs", nargs="+", metavar="RUN[:LEVEL]", help="run folders; differences are to the first")
    compare.add_argument("--level", default="draw", choices=LEVELS, help="of runs without a level of their own (draw)")
    compare.add_argument("--horizon", type=int, default=60, choices=(60, 30, 15), help="in minutes (60)")
    compare.add_argument("--out", type=Path, default=Path("compare.csv"), help="CSV to write (compare.csv), and a JSON")
    demo = commands.add_parser("demo", help=argparse.SUPPRESS)
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default: runs/demo)")
    demo.add_argument("--resume", action="store_true", help="continue what is there instead of starting anew")
    demo.add_argument("overrides", nargs="*", metavar="key=value", help="as in finetune.epochs=3")
    simulate = commands.add_parser("simulate", help=argparse.SUPPRESS)
    simulate.add_argument("--out", type=Path, required=True, help="folder to write")
    simulate.add_argument("--visits", type=int, required=True, help="number of visits")
    simulate.add_argument("--hours", type=float, required=True, help="length of a visit")
    simulate.add_argument("--seed", type=int, default=0, help="another seed, other visits (0)")
    simulate.add_argument("--replay", type=Path, help="folder of WFDB records with .atr: replay and alter their beats")
    simulate.add_argument("--ranks", type=int, default=2, help="MPI ranks started on this machine (2)")
    weights = commands.add_parser("import-weights", help=argparse.SUPPRESS)
    weights.add_argument("published", type=Path, help="file (.pth) that ECGFounder publishes")
    weights.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    weights.add_argument("--targets", type=int, help="outputs of a fresh head (default: the published head)")
    export = commands.add_parser("export", help=argparse.SUPPRESS)
    export.add_argument("model", type=Path, help="folder of a finished model")
    export.add_argument("--format", required=True, choices=("ecgfounder", "safetensors", "onnx"), help="form to write")
    export.add_argument("--out", type=Path, required=True, help="file to write (.pth, .safetensors, .onnx)")
    commands.add_parser("doctor", help=argparse.SUPPRESS)
    return parser


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


def _predict_files(arguments):
    from anyecg.train.predict_files import predict_files

    if arguments.config or not (arguments.model and arguments.input and arguments.out):
        raise AnyECGError("predict wants either a config, or all of --model, --input and --out")
    n_records, n_bad = predict_files(arguments.model, arguments.input, arguments.out)
    print(f"{arguments.out}: {n_records} records, {n_bad} of them unreadable")
    return 0


def _compare(arguments):
    from anyecg.app.compare import compare_runs

    _log_lines(0)
    print(compare_runs(arguments.runs, level=arguments.level, horizon_min=arguments.horizon, out=arguments.out))
    return 0


def _import_weights(arguments):
    from anyecg.train.weights import import_weights

    found = import_weights(arguments.published, arguments.out, n_targets=arguments.targets)
    print(f"{arguments.out}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
    return 0


def _export(arguments):
    from anyecg.train.export import export_model

    n_bytes = export_model(arguments.model, arguments.format, arguments.out)
    print(f"{arguments.out}: {n_bytes / 1e6:.1f} MB")
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


def _dispatch(arguments):
    if arguments.command == "doctor":
        from anyecg.app.doctor import examine

        return examine()
    if arguments.command == "demo":
        return _demo(arguments)
    if arguments.command == "simulate":
        return _simulate(arguments)
    if arguments.command == "import-weights":
        return _import_weights(arguments)
    if arguments.command == "export":
        return _export(arguments)
    if arguments.command == "predict" and (arguments.model or arguments.input or arguments.out):
        return _predict_files(arguments)
    if arguments.command == "compare":
        return _compare(arguments)
    if arguments.command == "verify":
        return _verify(arguments)
    if arguments.command == "predict" and not arguments.config:
        raise AnyECGError("predict wants either a config, or all of --model, --input and --out")

    from anyecg.app.config import load_config, render_config
    from anyecg.loaders.ranks import under_launcher

    if arguments.command == "config" and arguments.config and "=" in arguments.config:
        arguments.config, arguments.overrides = None, [arguments.config, *arguments.overrides]
    config = load_config(arguments.config, arguments.overrides)
    if arguments.command == "config":
        print(render_config(config), end="")
        return 0
    if arguments.command == "targets":
        return _targets(config, arguments)
    if arguments.command == "profile":
        return _profile(config, arguments)
    if under_launcher() and arguments.command in CHAIN[:-1]:
        return run_stage_on_ranks(arguments.command, config)
    with lock_folder(config.folder):
        return run_chain(config) if arguments.command == "run" else run_stage(arguments.command, config)


def main(argv=None):
    """Run one command; 0 done, 1 a fault of ours (with its traceback), 2 one line about what the user can mend."""
    # Outputs may come from credentialed data: readable by their owner only.
    os.umask(0o077)
    arguments = _parser().parse_args(argv)
    try:
        return _dispatch(arguments)
    except AnyECGError as cause:
        print(f"anyecg {arguments.command}: {cause}", file=sys.stderr)
        return cause.code
    except OSError as cause:
        print(f"anyecg {arguments.command}: {mend(cause)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"anyecg {arguments.command}: stopped; run the same command again", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
