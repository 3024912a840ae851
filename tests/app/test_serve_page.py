"""The page in a real browser, on real recordings: the flows of a new user, by mouse and by keyboard alone."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from anyecg.kernels.beats import r_peaks
from anyecg.loaders.lead_names import STANDARD_LEADS
from anyecg.loaders.records import open_record
from anyecg.train.export import export_model
from anyecg.train.predict_files import predict_files

from ..conftest import DEMO, SHARED
from ..train.models import make_model

TWELVE = SHARED / "formats/wfdb/s0010_re.dat"
NAMES = ("i", "ii", "iii", "avr", "avl", "avf", "v1", "v2", "v3", "v4", "v5", "v6")
SCRIPT = "<img src=x onerror=document.title='run'>"
WHOLE = "#ecg[data-drawn$=whole]"
# Pixels of a second at 25 mm/s.
PER_SECOND = 25 * 96 / 25.4


def write_record(folder, name, mv_TL, names, fs):
    """Write a recording in format 16 with 200 counts a mV."""
    count_TL = np.round(mv_TL * 200).astype("<i2")
    count_TL.tofile(folder / f"{name}.dat")
    lines = [f"{name} {len(names)} {fs} {len(mv_TL)}"]
    lines += [f"{name}.dat 16 200 16 0 {count_TL[0, i]} 0 0 {lead}" for i, lead in enumerate(names)]
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of a 12-lead recording, two of the demo, and a long one with a spike of a single sample."""
    folder = tmp_path_factory.mktemp("records")
    for name in ("A00015", "A00022"):
        for end in (".hea", ".mat"):
            shutil.copy(DEMO / "records" / f"{name}{end}", folder)
    lead = open_record(DEMO / "records" / "A00015").read()
    if TWELVE.is_file():
        write_record(folder, "twelve", np.fromfile(TWELVE, "<i2").reshape(-1, 12) / 2000, NAMES, 1000)
    else:
        write_record(folder, "twelve", np.stack([lead[:3000]] * 12, axis=1), NAMES, 300)
    long_T = np.tile(lead[: 10 * 300], 360)
    long_T[777_777] = 8.0
    write_record(folder, "hour", long_T[:, None], ["II"], 300)
    write_record(folder, "morning", np.tile(long_T, 6)[:, None], ["II"], 300)
    write_record(folder, "script", lead[:3000, None], [SCRIPT], 300)
    write_record(folder, "noise", np.random.default_rng(1).standard_normal((3000, 1)), ["II"], 300)
    with_gap_T = lead[:6000].copy()
    write_record(folder, "torn", with_gap_T[:, None], ["II"], 300)
    count_T = np.fromfile(folder / "torn.dat", "<i2")
    count_T[800:2200] = -32768
    count_T.tofile(folder / "torn.dat")
    return folder


@pytest.fixture(scope="module")
def address(folder, tmp_path_factory):
    """Return the address of a server that shows the folder."""
    command = [sys.executable, "-m", "anyecg.app.cli", "serve", "--no-browser", "--folder", str(folder)]
    environment = {**os.environ, "TMPDIR": str(tmp_path_factory.mktemp("tmp"))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield re.search(r"http://\S+", process.stdout.readline())[0]
        process.terminate()
    assert process.returncode == 0


@pytest.fixture
def show(browser, address):
    """Return a function that opens the page; at the end the console must be empty, and all requests the server's."""
    contexts, said, requests = [], [], []

    def open_page(*, width=1400, url=address, **options):
        context = browser.new_context(viewport={"width": width, "height": 950}, **options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(url)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    server = address.split("#")[0]
    token = address.split("#")[1]
    # What the server refuses is on the page, and a line of the browser's own on the console.
    assert [text for text in said if not re.search("status of 4(00|22)", text)] == []
    assert {url for url in requests if not url.startswith(server)} == set()
    assert not [url for url in requests if token in url and url != address]


def choose(tab, name):
    """Open a recording by a click; wait until all of it that is in sight is drawn."""
    tab.locator("#records button", has_text=name).click()
    tab.locator("#name", has_text=name).wait_for()
    tab.wait_for_selector(WHOLE)


def pixels(tab):
    """Return the colours of the ECG on the screen, uint8 (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(tab.locator("#ecg").screenshot())).convert("RGB"))


def test_the_first_recording_is_drawn_at_once_and_the_token_leaves_the_address(show, address):
    tab = show()
    tab.wait_for_selector(WHOLE)
    assert tab.url == address.split("#")[0]
    assert tab.locator(".notice").inner_text() == "Research use only. Not a medical device."
    has_trace = (pixels(tab).max(axis=2) < 100).any(axis=0)
    assert has_trace.mean() > 0.9
    tab.reload()
    tab.wait_for_selector(WHOLE)


def test_without_the_token_the_page_holds_no_recording(browser, address):
    tab = browser.new_context().new_page()
    tab.goto(address.split("#")[0])
    tab.locator("#said.bad", has_text="no token").wait_for()
    assert tab.locator("#records li").count() == 0
    tab.context.close()


def test_twelve_leads_stand_in_the_usual_layout_and_others_do_not_offer_it(show):
    tab = show()
    choose(tab, "twelve")
    assert tab.locator("#layout").input_value() == "paper"
    assert "25 mm/s, 10 mm/mV" in tab.locator("#where").inner_text()
    assert tab.locator("#lead option").all_inner_texts() == list(STANDARD_LEADS)
    choose(tab, "A00015")
    assert tab.locator("#layout").input_value() == "single"
    assert tab.locator("#layout option[value=paper]").is_disabled()


def test_heart_rate_and_beats_are_those_of_the_kernels(show, folder):
    tab = show()
    choose(tab, "A00015")
    # Until the numbers of this stretch have come, words stand there.
    tab.locator("#heart dd", has_text=re.compile(r"^\d")).nth(1).wait_for()
    record = open_record(folder / "A00015")
    stop = float(re.search(r"to 0:00:([\d.]+)", tab.locator("#where").inner_text())[1])
    beats = r_peaks(record.read(0, int(stop * record.fs)), record.fs)
    rate = int(tab.locator("#heart dd").first.inner_text().split()[0])
    assert abs(rate - 60 * record.fs / np.median(np.diff(beats))) < 2
    assert abs(int(tab.locator("#heart dd").nth(1).inner_text()) - len(beats)) <= 1
    tab.locator("#median-said", has_text="beats in sight, 300 ms").wait_for()


def test_calipers_measure_time_voltage_and_rate_between_two_beats(show, folder):
    tab = show()
    choose(tab, "A00015")
    tab.locator("#heart dd").nth(2).wait_for()
    tab.locator("#ecg").focus()
    tab.keyboard.press("b")
    tab.locator("#measured", has_text="bpm").wait_for()
    ms, bpm = map(int, re.search(r"(\d+) ms,.* (\d+) bpm", tab.locator("#measured").inner_text()).groups())
    record = open_record(folder / "A00015")
    beats = r_peaks(record.read(), record.fs)
    assert np.min(np.abs(np.diff(beats) / record.fs * 1000 - ms)) < 2
    assert abs(60_000 / ms - bpm) <= 1
    tab.keyboard.press("x")
    for _ in range(10):
        tab.keyboard.press(".")
    tab.wait_for_timeout(100)
    assert int(re.search(r"(\d+) ms", tab.locator("#measured").inner_text())[1]) < ms
    tab.keyboard.press("c")
    tab.locator("#measured", has_text=re.compile("^$")).wait_for()


def legs(tab):
    """Return the columns of the ECG in which the legs of calipers stand, by their violet."""
    red, green, blue = np.moveaxis(pixels(tab).astype(int), 2, 0)
    is_leg = (blue - green > 30) & (red - green > 15)
    columns = np.flatnonzero(is_leg.sum(axis=0) > 20)
    return [int(run[0]) for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)]


def test_both_legs_of_calipers_are_seen_in_every_lead_of_the_usual_layout(show):
    tab = show()
    choose(tab, "twelve")
    tab.locator("#heart dd").nth(2).wait_for()
    tab.locator("#ecg").focus()
    for lead, n_seen in (("V1", 2), ("III", 2), ("aVR", 2)):
        tab.locator("#lead").select_option(label=lead)
        tab.locator("#heart dd").nth(2).wait_for()
        if not tab.locator("#measured").inner_text():
            tab.keyboard.press("c")
        tab.wait_for_timeout(200)
        assert len(legs(tab)) == n_seen
        tab.keyboard.press("b")
        tab.wait_for_timeout(200)
        found = legs(tab)
        assert len(found) == 2
        strip = 2.5 * PER_SECOND
        assert found[0] // strip == found[1] // strip


def test_a_leg_that_is_dragged_stays_in_its_strip(show):
    tab = show()
    choose(tab, "twelve")
    tab.locator("#heart dd").nth(2).wait_for()
    tab.locator("#ecg").focus()
    tab.keyboard.press("c")
    tab.wait_for_timeout(200)
    box = tab.locator("#ecg").bounding_box()
    rhythm = box["y"] + box["height"] * 0.97
    one, other = (box["x"] + leg + 1 for leg in legs(tab)[-2:])
    tab.mouse.move(one, rhythm)
    tab.mouse.down()
    # Up into the rows of other leads, whose times are others.
    tab.mouse.move(one + 40, box["y"] + box["height"] * 0.1, steps=4)
    tab.mouse.up()
    tab.wait_for_timeout(200)
    wanted = (other - one - 40) / PER_SECOND * 1000
    assert abs(int(re.search(r"(\d+) ms", tab.locator("#measured").inner_text())[1]) - wanted) < 20


def test_no_interval_and_no_voltage_is_told_over_a_gap(show):
    tab = show()
    choose(tab, "torn")
    tab.locator("#heart dd").nth(2).wait_for()
    low, high = map(int, re.search(r"\((\d+) to (\d+)\)", tab.locator("#heart dd").nth(2).inner_text()).groups())
    # The gap is of 4.7 s.
    assert 300 < low <= high < 2000
    tab.locator("#ecg").focus()
    tab.keyboard.press("c")
    tab.locator("#measured", has_text="no signal at a leg").wait_for()


def test_noise_has_no_heart_rate(show):
    tab = show()
    choose(tab, "noise")
    tab.locator("#heart", has_text="too noisy to tell beats apart").wait_for()
    tab.locator("#quality", has_text="no beat stands out").wait_for()
    assert "/min" not in tab.locator("#heart").inner_text()


def test_a_spike_of_one_sample_in_an_hour_is_seen_in_the_picture_of_the_whole(show):
    tab = show()
    choose(tab, "hour")
    tab.locator("#fit").click()
    tab.locator("#gain").select_option("5")
    tab.locator("#where", has_text=re.compile("0:00:00.0 to 1:00:00.0 of 1:00:00.0.* 5 mm/mV")).wait_for()
    tab.wait_for_selector(WHOLE)
    tab.locator("#quality li").first.wait_for()
    tab.wait_for_timeout(300)
    # The upper fifth, beside the lead's name, is reached by nothing else.
    picture = 255.0 - pixels(tab)[..., 0]
    dark = picture[: len(picture) // 5, 100:].mean(axis=0)
    assert abs(int(np.argmax(dark)) + 100 - 777_777 / 1_080_000 * picture.shape[1]) < 3
    # The same picture once more, with everything there from the start: after a jump far beyond the end, too.
    tab.keyboard.press("End")
    tab.locator("#fit").click()
    tab.wait_for_timeout(300)
    inside = np.s_[8:-8, 8:-8]
    assert np.array_equal((255.0 - pixels(tab)[..., 0])[inside], picture[inside])


def test_the_marks_of_beats_leave_the_picture_when_it_shows_too_much_for_them(show):
    tab = show()
    choose(tab, "hour")
    tab.locator("#fit").click()
    tab.locator("#heart dd", has_text="zoom in").wait_for()
    tab.wait_for_selector(WHOLE)
    tab.locator("#quality li").first.wait_for()
    tab.wait_for_timeout(500)
    without = pixels(tab)
    tab.locator("#speed").select_option("25")
    tab.locator("#heart dd", has_text=re.compile(r"^\d")).nth(1).wait_for()
    tab.locator("#fit").click()
    tab.locator("#heart dd", has_text="zoom in").wait_for()
    tab.wait_for_selector(WHOLE)
    tab.wait_for_timeout(500)
    inside = np.s_[8:-8, 8:-8]
    assert np.array_equal(pixels(tab)[inside], without[inside])


def test_zoom_and_moves_keep_within_the_record(show):
    tab = show()
    choose(tab, "hour")
    tab.locator("#ecg").focus()
    for key, found in (("End", "to 1:00:00.0 of"), ("ArrowRight", "to 1:00:00.0 of"), ("Home", "0:00:00.0 to"),
                       ("ArrowLeft", "0:00:00.0 to")):  # fmt: skip
        tab.keyboard.press(key)
        tab.locator("#where", has_text=found).wait_for()
    tab.keyboard.press("Shift+ArrowRight")
    tab.wait_for_timeout(100)
    before = tab.locator("#where").inner_text()
    tab.keyboard.press("+")
    tab.keyboard.press("-")
    tab.wait_for_timeout(100)
    assert tab.locator("#where").inner_text() == before
    tab.wait_for_selector(WHOLE)


def test_quality_of_windows_is_listed_and_leads_to_its_place(show):
    tab = show()
    choose(tab, "hour")
    item = tab.locator("#quality li", has_text="over 4 mV").first
    item.wait_for()
    item.locator("button").click()
    tab.locator("#where", has_text="0:43:10.0 to").wait_for()


def test_files_and_their_recordings_are_opened_and_a_lone_one_is_explained(show, folder):
    tab = show()
    tab.wait_for_selector(WHOLE)
    before = tab.locator("#records li").count()
    tab.locator("#files").set_input_files([DEMO / "records" / f"A00024{end}" for end in (".hea", ".mat")])
    tab.locator("#said", has_text="1 recording opened").or_(tab.locator("#name", has_text="A00024")).first.wait_for()
    tab.locator("#name", has_text="A00024").wait_for()
    tab.wait_for_selector(WHOLE)
    assert tab.locator("#records li").count() == before + 1
    tab.locator("#files").set_input_files([DEMO / "records" / "A00051.mat"])
    tab.locator("#said.bad", has_text="No recording among these files").wait_for()
    # What the picture before asks for when it rests is not asked of a recording without leads.
    tab.evaluate("setInterval(() => dispatchEvent(new Event('resize')), 20)")
    tab.locator("#files").set_input_files([DEMO / "records" / "A00051.hea"])
    tab.locator("#said.bad", has_text="A00051.mat").wait_for()
    tab.wait_for_timeout(300)


def test_a_table_without_rate_and_unit_is_opened_with_what_the_user_types(show, tmp_path):
    tab = show(width=390)
    tab.wait_for_selector(WHOLE)
    mv_T = open_record(DEMO / "records" / "A00022").read()
    np.savetxt(tmp_path / "plain.csv", mv_T[:3000], fmt="%.4f")
    tab.locator("#files").set_input_files([tmp_path / "plain.csv"])
    tab.locator("#unsaid-why", has_text="plain.csv: says no sampling rate").wait_for()
    assert tab.locator("#look").is_hidden()
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    # What to type is said in words of the page.
    assert "--fs" not in tab.locator("#unsaid").inner_text()
    tab.locator("#unsaid-cancel").click()
    tab.locator("#look").wait_for()
    tab.locator("#records button", has_text="plain").click()
    tab.locator("#unsaid-why").wait_for()
    # By the keyboard alone: the field has the focus.
    tab.keyboard.type("300")
    tab.keyboard.press("Enter")
    tab.locator("#said.bad", has_text="says no unit").wait_for()
    tab.keyboard.press("Tab")
    tab.keyboard.type("mV")
    tab.keyboard.press("Tab")
    tab.keyboard.type("I")
    tab.keyboard.press("Enter")
    tab.locator("#where", has_text="lead I, 300 Hz").wait_for()
    tab.wait_for_selector(WHOLE)
    tab.locator("#resay").click()
    assert tab.locator("#unsaid-fs").input_value() == "300"
    tab.keyboard.press("Control+A")
    tab.keyboard.type("150")
    tab.keyboard.press("Enter")
    tab.locator("#where", has_text="of 0:00:20.0; lead I, 150 Hz").wait_for()


def test_a_folder_is_opened_with_all_its_recordings(show, tmp_path):
    tab = show()
    tab.wait_for_selector(WHOLE)
    before = tab.locator("#records li").count()
    (tmp_path / "visits/one").mkdir(parents=True)
    for name, folder in (("A00054", "visits"), ("A00056", "visits/one")):
        for end in (".hea", ".mat"):
            shutil.copy(DEMO / "records" / f"{name}{end}", tmp_path / folder)
    (tmp_path / "visits/.hidden").write_text("left out")
    tab.locator("#folder").set_input_files(tmp_path / "visits")
    tab.locator("#name", has_text="A00054").wait_for()
    assert tab.locator("#records li").count() == before + 2
    assert tab.locator("#records button", has_text="visits/one/A00056").count() == 1


def test_a_file_with_a_name_that_is_refused_keeps_the_others_not_out_and_is_named(show, tmp_path):
    tab = show()
    tab.wait_for_selector(WHOLE)
    (tmp_path / "set").mkdir()
    for end in (".hea", ".mat"):
        shutil.copy(DEMO / "records" / f"A00054{end}", tmp_path / "set")
    (tmp_path / "set" / "note 10:30.txt").write_text("a note")
    tab.locator("#folder").set_input_files(tmp_path / "set")
    tab.locator("#said", has_text="1 recording opened. Left out: set/note 10:30.txt: a file's name").wait_for()
    assert tab.locator("#name").inner_text().startswith("set/A00054")


def test_what_is_said_stays_in_sight_when_the_page_is_scrolled(show, tmp_path):
    tab = show(width=390)
    tab.wait_for_selector(WHOLE)
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7")
    tab.locator("#files").set_input_files([tmp_path / "report.pdf"])
    tab.locator("#said.bad", has_text="Left out: report.pdf: no recording of a known format").wait_for()
    tab.evaluate("scrollTo(0, document.body.scrollHeight)")
    tab.wait_for_timeout(100)
    assert tab.evaluate("scrollY") > 300
    box = tab.locator("#said").bounding_box()
    assert box["y"] + box["height"] == 950


def test_dropped_files_are_opened(show):
    tab = show()
    tab.wait_for_selector(WHOLE)
    data = {f"A00106{end}": list((DEMO / "records" / f"A00106{end}").read_bytes()) for end in (".hea", ".mat")}
    dropped = tab.evaluate_handle(
        """data => { const dropped = new DataTransfer(); for (const [name, bytes] of Object.entries(data))
        dropped.items.add(new File([new Uint8Array(bytes)], name)); return dropped; }""",
        data,
    )
    tab.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    tab.locator("#name", has_text="A00106").wait_for()
    tab.wait_for_selector(WHOLE)


def test_a_script_in_a_leads_name_is_text(show):
    tab = show()
    choose(tab, "script")
    tab.wait_for_timeout(300)
    assert tab.locator("#lead option").inner_text() == SCRIPT
    assert tab.title() == "AnyECG-Lab"
    assert tab.locator("img").count() == 0


def test_the_keyboard_alone_finds_opens_and_measures(show):
    tab = show()
    tab.wait_for_selector(WHOLE)
    tab.keyboard.press("/")
    tab.keyboard.type("twel")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.locator("#name", has_text="twelve").wait_for()
    tab.wait_for_selector(WHOLE)
    tab.keyboard.press("e")
    assert tab.evaluate("document.activeElement.id") == "ecg"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.keyboard.press("l")
    assert tab.locator("#layout").input_value() == "stack"
    tab.keyboard.press("ArrowDown")
    tab.locator("#where", has_text="lead III").wait_for()
    tab.keyboard.press("g")
    tab.locator("#where", has_text="20 mm/mV").wait_for()
    tab.keyboard.press("c")
    tab.locator("#measured", has_text="bpm").wait_for()
    tab.keyboard.press("?")
    assert tab.locator("#help").is_visible()
    tab.keyboard.press("Escape")
    assert tab.locator("#help").is_hidden()


def test_every_control_is_reached_by_tab_and_has_a_name(show):
    tab = show()
    choose(tab, "twelve")
    tab.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id"))
    wanted = {"help-button", "files-button", "folder-button", "filter", "layout", "lead", "speed", "gain", "zoom-in",
              "zoom-out", "fit", "calipers", "ecg"}  # fmt: skip
    assert wanted <= reached
    unnamed = tab.evaluate(
        """[...document.querySelectorAll("button, select, input:not([hidden])")].filter(e => !e.labels?.length &&
        !e.textContent.trim() && !e.ariaLabel && !e.placeholder).map(e => e.outerHTML)"""
    )
    assert unnamed == []


def test_the_shipped_model_scores_a_lead_and_says_what_the_score_rests_on(show):
    tab = show(width=390)
    choose(tab, "A00015")
    tab.locator("#ecg").focus()
    tab.keyboard.press("s")
    rows = tab.locator("#scores tbody tr")
    rows.nth(3).wait_for(timeout=60_000)
    scores = [float(row.split("\t")[1]) for row in rows.all_inner_texts()]
    assert abs(sum(scores) - 1) < 0.003
    assert rows.nth(1).get_attribute("aria-selected") == "true"
    assert "4 targets (N normal rhythm, A atrial fibrillation, " in tab.locator("#model-said").inner_text()
    assert "on recordings or draws held out from its training" in tab.locator("#model-said").inner_text()
    assert "0.978 [0.952, 0.990]\t1361 (132 positive)" in rows.nth(1).inner_text()
    assert tab.locator("#trend").is_visible()
    tab.keyboard.press("w")
    tab.locator("#why-said", has_text="occlusion").wait_for()
    rows.nth(0).locator("button").focus()
    tab.keyboard.press("Enter")
    tab.locator("#why-said", has_text=re.compile("^$")).wait_for(state="hidden")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390


def test_a_score_asked_for_early_comes_and_a_second_click_does_not_lose_it(show, address):
    tab = show()
    tab.route("**/api/models", lambda route: tab.wait_for_timeout(1000) or route.continue_())
    tab.goto("about:blank")
    tab.goto(address)
    choose(tab, "A00015")
    tab.locator("#ecg").focus()
    tab.keyboard.press("s")
    tab.locator("#records button", has_text="A00015").click()
    tab.locator("#scores tbody tr").nth(3).wait_for(timeout=60_000)


def test_a_model_goes_out_as_onnx_comes_in_again_and_a_foreign_file_is_refused(show, tmp_path):
    tab = show()
    tab.wait_for_selector(WHOLE)
    for button, name in (("#export-onnx", "rhythm.onnx"), ("#export-card", "rhythm (1).json")):
        with tab.expect_download(timeout=60_000) as found:
            tab.locator(button).click()
        found.value.save_as(tmp_path / name)
        tab.locator("#said", has_text=re.compile("^$")).wait_for(state="hidden")
    assert json.loads((tmp_path / "rhythm (1).json").read_text())["targets"] == ["N", "A", "O", "~"]
    (tmp_path / "foreign.onnx").write_bytes(b"no model")
    tab.locator("#model-file").set_input_files([tmp_path / "rhythm.onnx", tmp_path / "rhythm (1).json"])
    tab.locator("#model option", has_text="rhythm.onnx").wait_for(state="attached", timeout=60_000)
    tab.locator("#model-said", has_text="4 targets, exclusive").wait_for()
    # Which weights they are is what the file says of itself: no evaluation is taken for its own.
    assert "no CIs" in tab.locator("#model-said").inner_text()
    assert tab.locator("#export-onnx").is_disabled()
    tab.locator("#model-file").set_input_files(tmp_path / "foreign.onnx")
    tab.locator("#said.bad", has_text="foreign.onnx: not a model of ours").wait_for()
    (tmp_path / "card.json").write_text(json.dumps({"targets": [SCRIPT]}))
    tab.locator("#model-file").set_input_files([tmp_path / "rhythm.onnx", tmp_path / "card.json"])
    tab.locator("#said.bad", has_text="card.json: not the card").wait_for()


def test_a_model_of_several_leads_scores_the_whole_record_and_names_a_lead_that_is_missing(show, folder, tmp_path):
    model = make_model(tmp_path / "model", leads=("II", "V1", "aVL"))
    export_model(model, "safetensors", tmp_path / "three.safetensors")
    predict_files(model, folder / "twelve.hea", tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        wanted = next(row for row in csv.DictReader(file) if not row["start_s"])
    tab = show()
    choose(tab, "twelve")
    tab.locator("#model-file").set_input_files([tmp_path / "three.safetensors"])
    tab.locator("#model-said", has_text="takes leads II, V1, aVL at 500 Hz").wait_for(timeout=60_000)
    tab.locator("#score").click()
    rows = tab.locator("#scores tbody tr")
    rows.first.wait_for(timeout=60_000)
    for row in rows.all():
        target, score, *_ = row.locator("td").all_inner_texts()
        assert abs(float(score) - float(wanted[target])) < 0.0006
    choose(tab, "A00015")
    tab.locator("#score").click()
    tab.locator("#said.bad", has_text="leads 'II', 'V1', 'aVL' are missing; found ECG").wait_for()


def test_names_in_a_foreign_card_are_text(show, tmp_path):
    make_model(tmp_path / "model", head="exclusive", targets=[SCRIPT, "<b>fever</b>", "gout"])
    export_model(tmp_path / "model", "onnx", tmp_path / f"{SCRIPT.replace('/', '')}.onnx")
    tab = show()
    choose(tab, "A00015")
    tab.locator("#model-file").set_input_files([*tmp_path.glob("*.onnx"), *tmp_path.glob("*.json")])
    tab.locator("#model-said", has_text="3 targets").wait_for(timeout=60_000)
    tab.locator("#score").click()
    rows = tab.locator("#scores tbody tr")
    rows.nth(2).wait_for(timeout=60_000)
    assert [rows.nth(n).locator("button").inner_text() for n in (0, 1)] == [SCRIPT, "<b>fever</b>"]
    assert tab.title() == "AnyECG-Lab"
    assert tab.locator("#scores img, #scores b, #model img").count() == 0


def test_a_long_score_shows_how_far_it_is_and_escape_cancels_it(show):
    tab = show(width=390)
    choose(tab, "morning")
    tab.locator("#ecg").focus()
    tab.keyboard.press("s")
    tab.locator("#working-said", has_text=re.compile(r"\d %, 0:")).wait_for(timeout=60_000)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    tab.keyboard.press("Escape")
    tab.locator("#said", has_text="Cancelled.").wait_for()
    assert tab.locator("#working").is_hidden()
    assert tab.locator("#scores").is_hidden()
    # The model is free again, and a score that another recording takes the place of is not waited for.
    tab.keyboard.press("s")
    tab.locator("#working").wait_for()
    choose(tab, "A00015")
    tab.locator("#working").wait_for(state="hidden")
    tab.locator("#score").click()
    tab.locator("#scores tbody tr").nth(3).wait_for(timeout=60_000)


@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_is_never_wider_than_the_screen(show, width):
    tab = show(width=width)
    choose(tab, "twelve")
    assert tab.evaluate("document.documentElement.scrollWidth") == width


def test_a_dark_scheme_has_a_dark_ground_and_a_light_trace(show):
    tab = show(color_scheme="dark")
    tab.wait_for_selector(WHOLE)
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 19, 26)"
    assert pixels(tab).min(axis=2).max() > 200


def test_a_long_list_is_shown_in_parts_and_follows_what_is_found(show, tmp_path):
    tab = show()
    tab.wait_for_selector(WHOLE)
    (tmp_path / "many").mkdir()
    for number in range(230):
        write_record(tmp_path / "many", f"x{number:03d}", np.zeros((600, 1)), ["II"], 300)
    tab.locator("#folder").set_input_files(tmp_path / "many")
    tab.locator("#said", has_text="230 recordings opened").wait_for(timeout=60_000)
    n_all = int(tab.locator("#count").inner_text())
    more = tab.locator("#records button", has_text="more: show the next")
    # The one that was opened stands in the list, however far down.
    assert tab.locator("#records [aria-current]").inner_text() == "many/x000"
    tab.locator("#filter").fill("many/")
    assert tab.locator("#count").inner_text() == f"230 of {n_all}"
    assert tab.locator("#records [data-id]").count() == 200
    more.click()
    assert tab.locator("#records [data-id]").count() == 230
    assert more.count() == 0
    tab.locator("#filter").fill("many/x11")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.locator("#name", has_text="many/x110").wait_for()
    # The focus is where it was, and the next one is the next of those found.
    assert tab.evaluate("document.activeElement.textContent") == "many/x110"
    for name in ("many/x111", "many/x112"):
        tab.keyboard.press("n")
        tab.locator("#name", has_text=name).wait_for()
