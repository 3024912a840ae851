"""Time the local page in a headless browser, and the shipped model on one ECG and on a day.

    python -m benchmarks.serve_page

Made of a demo recording: a 12-lead ECG of 10 s and one lead of 24 h, both at 500 Hz. Chromium must be on the PATH.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import numpy as np

from anyecg.kernels.resample import resample
from anyecg.loaders.records import open_record

DEMO = Path(__file__).parent.parent / "app" / "demo" / "records"
TWELVE = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
FS, REPEATS = 500, 5
# Opens a record by its button, or presses a key; gives the ms until everything in sight is drawn.
OPEN = """async name => { const canvas = document.getElementById("ecg");
    const button = [...document.querySelectorAll("#records button")].find(b => b.textContent === name);
    const before = canvas.dataset.drawn?.split(" ")[0], start = performance.now();
    button.click();
    return await new Promise(done => { const look = () => {
        const [id, state] = (canvas.dataset.drawn ?? "").split(" ");
        if (id && id !== before && state === "whole") done(performance.now() - start); else setTimeout(look, 1);
    }; look(); }); }"""
PRESS = """async key => { const canvas = document.getElementById("ecg"), start = performance.now();
    canvas.dataset.drawn = "";
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    return await new Promise(done => { const look = () => {
        if (canvas.dataset.drawn.endsWith("whole")) done(performance.now() - start); else setTimeout(look, 1);
    }; look(); }); }"""
# Presses a key before each of 90 frames; gives ms a frame.
FRAMES = """async keys => { const spent = [], canvas = document.getElementById("ecg");
    let last = await new Promise(requestAnimationFrame);
    for (let n = 0; n < 90; n++) {
        const key = keys[n % keys.length];
        canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
        const now = await new Promise(requestAnimationFrame);
        spent.push(now - last);
        last = now;
    } return spent; }"""


def write_record(folder, name, mv_TL, leads):
    """Write a recording in format 16."""
    count_TL = np.round(mv_TL * 200).astype("<i2")
    count_TL.tofile(folder / f"{name}.dat")
    lines = [f"{name} {len(leads)} {FS} {len(mv_TL)}"]
    lines += [f"{name}.dat 16 200 16 0 {count_TL[0, i]} 0 0 {lead}" for i, lead in enumerate(leads)]
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")


def make_records(folder):
    """Write the two recordings, and a short one to be open before them."""
    record = open_record(DEMO / "A00015")
    lead = resample(record.read(), fs_in=int(record.fs), fs_out=FS)[: 10 * FS]
    write_record(folder, "a_first", lead[:, None], ["I"])
    write_record(folder, "twelve", np.stack([lead] * 12, axis=1), TWELVE)
    write_record(folder, "day", np.tile(lead, 8640)[:, None], ["II"])


def in_browser(folder):
    """Time pictures and frames."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "anyecg.app.cli", "serve", "--no-browser", "--folder", str(folder)]
    for _ in range(REPEATS):
        # A server that is started anew has no picture of the day yet.
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as driver:
            address = re.search(r"http://\S+", server.stdout.readline())[0]
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            tab = browser.new_page(viewport={"width": 1400, "height": 950})
            tab.goto(address)
            tab.wait_for_selector("#ecg[data-drawn$=whole]")
            tab.wait_for_timeout(3000)
            yield "12 leads, from click to whole picture (ms)", tab.evaluate(OPEN, "twelve")
            tab.wait_for_timeout(500)
            yield "24 h at 500 Hz, from click to first picture (ms)", tab.evaluate(OPEN, "day")
            yield "24 h, at once from there to the picture of the whole day (ms)", tab.evaluate(PRESS, "0")
            tab.wait_for_timeout(10_000)
            tab.evaluate(PRESS, "Home")
            for what, keys in (("panning", ["ArrowRight"]), ("zooming", ["-"] * 22 + ["+"] * 22)):
                yield f"24 h, {what}, median frame (ms)", statistics.median(found := tab.evaluate(FRAMES, keys))
                yield f"24 h, {what}, 95th percentile of frames (ms)", float(np.percentile(found, 95))
            browser.close()
            server.terminate()


def with_model(folder):
    """Time the shipped model: in this process, on the cores that it may use."""
    from anyecg.train.predict_files import open_lead_scorer, score_record

    scorer = open_lead_scorer(files("anyecg.app") / "cinc2017" / "model")
    for name, repeats in (("a_first", 20), ("day", 1)):
        for number in range(repeats + 1):
            start = time.perf_counter()
            score_record(scorer, open_record(folder / name))
            if number or repeats == 1:
                yield (
                    f"shipped model, {name.removeprefix('a_first') or '10 s'} (ms)",
                    1000 * (time.perf_counter() - start),
                )
            if repeats == 1:
                break


def main():
    """Print the median and the range of each."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_records(folder)
        sources = (with_model,) if "--model" in sys.argv else (with_model, in_browser)
        for source in sources:
            for what, value in source(folder):
                found.setdefault(what, []).append(value)
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    for what, values in found.items():
        print(f"{what}: {statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f}, n = {len(values)})")


if __name__ == "__main__":
    main()
