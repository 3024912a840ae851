"""The command line: ``anyecg STAGE config.toml [key=value ...]``."""

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from anyecg.app import cli_files, cli_runs
from anyecg.app.run import CHAIN, lock_folder, mend, run_chain, run_stage, run_stage_on_ranks
from anyecg.loaders.errors import AnyECGError
from anyecg.loaders.ranks import leave_together
from anyecg.loaders.stop import Ended, end_process, ending
from anyecg.slurm.launch import is_spare, ranks_wanted

EPILOG = """\
stages of a run, in order                      example
  cohort     records and labels -> tables      anyecg cohort config.toml
  shard      recordings -> HDF5 shards (MPI)   anyecg shard config.toml shard.ranks=8
  finetune   shards -> model (DALI, DeepSpeed) anyecg finetune config.toml finetune.epochs=20
  predict    model, shards -> scores           anyecg predict config.toml
                                               anyecg predict --model runs/demo/model --input FOLDER --out scores.csv
  evaluate   scores -> results table (MPI)     anyecg evaluate config.toml evaluate.n_replicates=2000
  report     all of it -> report.html          anyecg report config.toml

on a cluster
  submit     all stages as jobs of Slurm       anyecg submit config.toml (--dry-run, --stop)
  status     how far they are                  anyecg status config.toml (or the run folder; --json)
  gather     the runs of a sweep as one table  anyecg gather config.toml

in a browser
  serve      look at ECGs, on this machine     anyecg serve --folder recordings

around them
  demo       the whole chain on real ECGs      anyecg demo
  run        all stages, kept where unchanged  anyecg run config.toml
  compare    runs side by side, paired CIs     anyecg compare runs/a runs/b:draw-head --out compare.csv
  verify     shards, checkpoints, model, all   anyecg verify config.toml (or a folder of them; --json)
             against their checksums
  profile    the data path, stage by stage     anyecg profile config.toml --seconds 20 (--model: with training steps)
  scale      the same on 1, 2, 4 .. nodes,     anyecg scale config.toml --ranks 1,2 (--nodes 1,2,4,8 on a cluster)
             with a forecast for full MC-MED
  simulate   MC-MED's layout, known truth      anyecg simulate --out sim --visits 300 --hours 1 --seed 1
  export     a finished model as one file      anyecg export runs/demo/model --format onnx --out model.onnx
  inspect    what a recording is, and its picture  anyecg inspect FILE --png ecg.png (--json)
  convert    a recording in another format     anyecg convert FILE out.h5 --format hdf5
  import-weights  ECGFounder's, made safe      anyecg import-weights 1_lead_ECGFounder.pth --out ecgfounder.safetensors
  targets    components of labs.csv, counted   anyecg targets config.toml --out candidates.csv
  doctor     what this machine has and lacks   anyecg doctor
  config     the resolved config, explained    anyecg config config.toml seed=7
"""
# What goes on where it stood when it is started again.
STOPPABLE = (*CHAIN, "run", "profile")


def _parser():
    parser = argparse.ArgumentParser(
        prog="anyecg",
        description="From hospital ECG waveforms to laboratory estimates, with confidence intervals.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in (*CHAIN, "run", "config"):
        command = cli_runs.add_with_config(commands, name, required=name not in ("config", "predict"))
        if name == "predict":
            command.add_argument("--model", type=Path, help="published folder, .safetensors or .onnx")
            command.add_argument("--input", type=Path, help="a folder of recordings of any format, or one of them")
            command.add_argument("--out", type=Path, help="CSV to write")
            cli_files.add_of_models(command)
    cli_runs.add_commands(commands)
    cli_files.add_commands(commands)
    return parser


def _dispatch(arguments):
    if "work" in arguments:
        return arguments.work(arguments)
    if arguments.command == "predict" and (
        arguments.model or arguments.input or arguments.out or not arguments.config
    ):  # fmt: skip
        return cli_files.predict_from_files(arguments)

    from anyecg.app.config import load_config, render_config
    from anyecg.loaders.ranks import is_first, n_launched, under_launcher

    if arguments.command == "config" and arguments.config and "=" in arguments.config:
        arguments.config, arguments.overrides = None, [arguments.config, *arguments.overrides]
    config = load_config(arguments.config, arguments.overrides)
    if arguments.command == "config":
        print(render_config(config), end="")
        return 0
    if "work_on" in arguments:
        return arguments.work_on(config, arguments)
    if under_launcher() and arguments.command in CHAIN:
        return run_stage_on_ranks(arguments.command, config)
    if n_launched() > 1:
        error = AnyECGError(f"{arguments.command} starts ranks of its own; start it once, or its stages with srun")
        error.quiet = not is_first()
        raise error
    with lock_folder(config.folder):
        return run_chain(config) if arguments.command == "run" else run_stage(arguments.command, config)


def main(argv=None):
    """Run one command; 0 done, 1 a fault of ours (with its traceback), 2 one line about what the user can mend."""
    # Outputs may come from credentialed data: readable by their owner only.
    os.umask(0o077)
    # Threads that wait leave their core to others; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = _parser().parse_args(argv)
    if is_spare():
        return 0
    try:
        # Refuses torchrun on several machines.
        ranks_wanted(1)
        with ending(arguments.command) if arguments.command in STOPPABLE else nullcontext():
            code = _dispatch(arguments)
            leave_together()
            return code
    except Ended:
        return end_process()
    except AnyECGError as cause:
        if not cause.quiet:
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
