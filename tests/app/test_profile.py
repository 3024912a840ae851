"""``anyecg profile`` on a finished run: what it counts must add up; no speed is tested."""

import json
import re
import shutil

import pytest

from ..conftest import anyecg, on_ranks
from ..slurm.test_profile import assert_valid_trace
from .test_report import Checker

BATCH_SIZE = 16
PREFETCH = 2


def copied(small_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(small_run / "shards", run / "shards")
    shutil.copy(small_run / "config.toml", run / "config.toml")
    return run


@pytest.mark.parametrize(("n_ranks", "with_model"), [(1, False), (1, True), (2, False), (2, True)])
def test_what_a_profile_counts_adds_up(small_run, tmp_path, n_ranks, with_model):
    run = copied(small_run, tmp_path)
    out = run / "profile" if with_model else tmp_path / "out"
    arguments = ["profile", run / "config.toml", f"folder={run}", f"finetune.ranks={n_ranks}", "--seconds=1.5"]
    # Without the model, ranks are started by the command; with it, they are there.
    done = on_ranks(n_ranks, *arguments, "--model") if with_model else anyecg(*arguments, f"--out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " limits the path: " in done.stdout
    assert "seconds_left=" in done.stderr
    assert (run / "profile").exists() == with_model

    profile = json.loads((out / "profile.json").read_text())
    whole, rows = profile["whole"], {row["stage"]: row for row in profile["stages"]}
    assert whole["ranks"] == len(whole["windows_per_s_per_rank"]) == n_ranks
    assert ("step" in rows) == ("model" in profile["limits"]) == with_model
    assert profile["limits"].keys() >= {"disk", "memory"}
    # Batches prepared ahead at the start or at the end of the measurement.
    slack = (PREFETCH + 4) * BATCH_SIZE
    assert rows["dali"]["n_windows"] == whole["n_windows"]
    assert abs(rows["gather"]["n_windows"] - whole["n_windows"]) <= slack
    assert rows["dali"]["events"] == whole["n_batches"]
    if with_model:
        assert rows["step"]["n_windows"] == whole["n_windows"]
    for row in rows.values():
        assert 0 <= row["share"] <= 1
        assert 0 <= row["share_of_waiting"] <= 1
    assert 0 <= whole["waiting_share"] <= 1
    assert profile["nearest"] in profile["limits"]
    assert sum(kind["ranks"] for kind in profile["machine"]) == n_ranks

    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    assert_valid_trace(events)
    assert {event["pid"] for event in events} == set(range(n_ranks))
    spans = [event for event in events if event["ph"] == "X"]
    # The ranks end within a step of each other.
    assert max(event["ts"] + event["dur"] for event in spans) <= 1.5 * whole["seconds"] * 1e6
    if n_ranks == 1:
        assert max(event["ts"] + event["dur"] for event in spans) <= whole["seconds"] * 1e6 + 1000
        counted = sum(event["args"]["windows"] for event in spans if event["name"] == "DALI")
        assert counted == whole["n_windows"]

    text = (out / "profile.html").read_text()
    page = Checker()
    page.feed(text)
    assert page.loads == []
    assert not re.search(r"url\((?!#)|@import|<script|<img|<iframe", text)
    assert profile["verdict"] in text
    for name in ("profile.json", "trace.json", "profile.html"):
        assert str(tmp_path) not in (out / name).read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seconds=0"], "--seconds 0; wanted more than 0 and at most 600"),
        (["--seconds=-3"], "--seconds -3; wanted more than 0 and at most 600"),
        (["finetune.epoch=3"], "nearest known key: 'finetune.epochs'"),
        (["folder=elsewhere"], "elsewhere/shards has no index: sharding did not finish"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(small_run, tmp_path, more, said):
    done = anyecg("profile", small_run / "config.toml", *more, f"--out={tmp_path / 'out'}", cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_under_a_launcher_bad_input_is_one_line_too(small_run, tmp_path):
    done = on_ranks(2, "profile", small_run / "config.toml", f"folder={tmp_path / 'absent'}", f"--out={tmp_path}")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("anyecg profile: ")]
    assert len(lines) == 1
    assert "has no index" in lines[0]
