"""Train on one simulated set and judge on another, whose best possible AUROCs are known."""

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from anyecg.loaders.sim_law import PLANTED

CONFIG = Path(__file__).parent.parent / "slurm" / "configs" / "mcmed.toml"
AIM, WANTED = 0.03, 0.05


def _anyecg(*arguments):
    print("anyecg", *arguments, flush=True)
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "anyecg.app.cli", *map(str, arguments)], check=True)
    return time.monotonic() - start


def _rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def judge(results, truth):
    """Print how far planted targets lie below the best, and how often an unplanted target's CI holds 0.5."""
    best = {(r["target"], r["horizon_min"], r["level"]): float(r["auroc"]) for r in truth}
    # What a mean of logits can reach where the level of the draws differs; a window has no mean.
    reach = {
        key: best.get((key[0], key[1], "draw_mean"), value) if key[2] == "draw" else value
        for key, value in best.items()
    }
    verdict = True
    for horizon, level in dict.fromkeys((r["horizon_min"], r["level"]) for r in results):
        rows = [r for r in results if (r["horizon_min"], r["level"]) == (horizon, level)]
        title = f"{level} level, {horizon} min"
        print(f"\n{title:22}{'target':24} {'n':>7} {'positive':>9} {'AUROC':>6} {'CI':>15} {'best':>6} {'by mean':>8}")
        planted = [r for r in rows if r["target"].rsplit(" ", 1)[0] in PLANTED]
        short = []
        for r in sorted(planted, key=lambda r: -float(r["auroc"])):
            top = best[r["target"], horizon, level]
            short.append(top - float(r["auroc"]))
            interval = f"{float(r['auroc_low']):.3f}-{float(r['auroc_high']):.3f}"
            print(
                f"{'':22}{r['target']:24} {r['n']:>7} {int(r['n_positive']) / int(r['n']):>9.1%} "
                f"{float(r['auroc']):>6.3f} {interval:>15} {top:>6.3f} {reach[r['target'], horizon, level]:>8.3f}"
                f"  {-short[-1]:+.3f}"
            )
        others = [r for r in rows if r not in planted and r["auroc_low"]]
        held = sum(float(r["auroc_low"]) <= 0.5 <= float(r["auroc_high"]) for r in others)
        mean = np.mean([float(r["auroc"]) for r in others])
        print(
            f"largest shortfall of a planted target {max(short):.3f} (wanted {WANTED}, aim {AIM}); "
            f"unplanted: {held} of {len(others)} CIs hold 0.5 (wanted 88 of 100), "
            f"mean AUROC {mean:.4f} (wanted 0.49 to 0.51)"
        )
        verdict &= max(np.abs(short)) <= WANTED and held >= 0.88 * len(others) and abs(mean - 0.5) <= 0.01
    return verdict


def main():
    """Simulate, train, judge; exit 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/truth"), help="about 20 GB go here (runs/truth)")
    parser.add_argument("--visits", type=int, nargs=2, default=[4000, 3000], metavar=("TRAIN", "JUDGE"))
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    for seed, (name, n_visits) in enumerate(zip(("train", "judge"), arguments.visits, strict=True), 1):
        _anyecg("simulate", "--out", folder / name, "--visits", n_visits, "--hours", 1, "--seed", seed)
    seconds = 0.0
    # Each visit's labels are seen from few windows, so that what is independent of the ECG is hard to learn by heart.
    trained = [
        f"cohort.path={folder / 'train'}", f"folder={folder / 'run'}", "cohort.test_fraction=0.0",
        "shard.windows_per_draw=10", "finetune.best_by=auroc",
    ]  # fmt: skip
    for stage in ("cohort", "shard", "finetune"):
        seconds = _anyecg(stage, CONFIG, *trained, f"finetune.epochs={arguments.epochs}")
    _anyecg(
        "run", CONFIG, f"cohort.path={folder / 'judge'}", f"folder={folder / 'judged'}", "cohort.split=all",
        f"predict.model={folder / 'run' / 'model'}", "shard.windows_per_draw=20", 'evaluate.levels=["window","draw"]',
    )  # fmt: skip
    print(f"training took {seconds / 60:.0f} min")
    sys.exit(0 if judge(_rows(folder / "judged" / "results.csv"), _rows(folder / "judge" / "truth.csv")) else 1)


if __name__ == "__main__":
    main()
