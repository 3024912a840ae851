"""The demo as it ships: its result, and that it needs no network."""

import csv
import re
import shutil
import subprocess
import sys

import pytest

from ..conftest import DEMO, anyecg, write_small_config


def test_the_demo_tells_atrial_fibrillation_apart(tmp_path):
    out = tmp_path / "demo"
    done = anyecg("demo", "--out", out)
    assert done.returncode == 0, done.stderr
    with (out / "results.csv").open(newline="") as file:
        rows = {(row["target"], row["level"]): row for row in csv.DictReader(file)}
    found = rows["atrial_fibrillation", "draw"]
    assert float(found["auroc"]) > 0.90
    assert float(found["auroc_low"]) < float(found["auroc"]) < float(found["auroc_high"])
    assert int(found["n_patients"]) > 150
    line = next(line for line in done.stdout.splitlines() if line.startswith("atrial_fibrillation") and "draw" in line)
    assert f"{float(found['auroc']):.3f}" in line
    assert f"{float(found['auroc_low']):.3f}–{float(found['auroc_high']):.3f}" in line
    assert done.stdout.rstrip().endswith(str(out / "report.html"))


def test_running_twice_with_one_seed_gives_the_same_weights_and_table(small_run, tmp_path):
    done = anyecg("run", write_small_config(tmp_path))
    assert done.returncode == 0, done.stderr
    for name in ("model/model.safetensors", "results.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (small_run / name).read_bytes()


def namespace():
    """Return the command that runs another with only the loopback interface, or None where that is not allowed."""
    inner = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    for command in (["unshare", "--net"], ["unshare", "--user", "--map-root-user", "--net"]):
        if shutil.which("unshare") and shutil.which("ip"):
            done = subprocess.run([*command, *inner, "true"], capture_output=True, check=False)
            if done.returncode == 0:
                return [*command, *inner]
    return None


NO_NAMESPACE = pytest.mark.skipif(
    namespace() is None, reason="needs unshare, ip, and leave to make a network namespace"
)
# With a filter in the kernel other calls run at full speed.
STRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto", "-o")
QUICK = ("finetune.epochs=1", "evaluate.n_replicates=50")


def demo_without_network(out, *before):
    """Run the demo on a quarter of its recordings, behind ``before``, with only the loopback interface."""
    write_small_config(out.parent, n_records=150)
    command = [*namespace(), *before, sys.executable, "-m", "anyecg.app.cli", "demo", "--out", str(out), *QUICK]
    command.append(f"cohort.labels={out.parent / 'labels.csv'}")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    assert (out / "report.html").exists()


@NO_NAMESPACE
@pytest.mark.skipif(shutil.which("strace") is not None, reason="the next test runs the same under strace")
def test_the_demo_passes_with_only_loopback_up(tmp_path):
    demo_without_network(tmp_path / "demo")


@NO_NAMESPACE
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to see attempts to connect")
def test_the_demo_passes_with_only_loopback_up_and_tries_nothing_else(tmp_path):
    demo_without_network(tmp_path / "demo", *STRACE, str(tmp_path / "trace"))
    text = (tmp_path / "trace").read_text()
    addresses = set(re.findall(r'inet_addr\("([^"]+)"\)', text)) | set(re.findall(r'AF_INET6, "([^"]+)"', text))
    outside = {name for name in addresses if not name.removeprefix("::ffff:").startswith("127.") and name != "::1"}
    assert outside == set()


def test_the_recordings_are_attributed():
    text = (DEMO / "README.md").read_text()
    for word in ("PhysioNet/CinC Challenge 2017", "Open Data Commons Attribution License v1.0", "Clifford"):
        assert word in text
