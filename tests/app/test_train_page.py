"""Training from the page in a real browser, on real recordings."""

import csv
import os
import re
import shutil
import subprocess
import sys

import psutil
import pytest
from playwright.sync_api import expect

from ..conftest import DEMO

ONE, NEW = "one", "from-the-page"
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Return a CSV of the labels of 40 recordings."""
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    with (DEMO / "labels.csv").open() as file:
        path.write_text("".join(file.readlines()[:41]))
    return path


@pytest.fixture(scope="module")
def address(small_run, tmp_path_factory):
    """Return the address of a server with two finished runs."""
    runs = tmp_path_factory.mktemp("runs")
    for name in (ONE, "two"):
        shutil.copytree(small_run, runs / name)
    os.utime(runs / ONE / "config.toml", (0, 0))
    command = [sys.executable, "-m", "anyecg.app.cli", "serve", "--no-browser", "--folder", str(DEMO / "records")]
    environment = {**os.environ, "TMPDIR": str(tmp_path_factory.mktemp("tmp"))}
    with subprocess.Popen(
        [*command, "--runs", str(runs)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield re.search(r"http://\S+", process.stdout.readline())[0]
        for child in psutil.Process(process.pid).children():
            child.terminate()
        process.terminate()
    assert process.returncode == 0


@pytest.fixture
def show(browser, address):
    """Return a function that opens the page at its trainings; at the end the console must be empty."""
    contexts, said = [], []

    def open_page(*, width=1400, **options):
        context = browser.new_context(viewport={"width": width, "height": 950}, **options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(address)
        tab.wait_for_selector("#ecg[data-drawn$=whole]")
        tab.keyboard.press("t")
        tab.locator("#run-name").wait_for()
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert [text for text in said if "status of 422" not in text] == []


def config_of(tab):
    return tab.locator("#t-config")


def choose(tab, name):
    tab.locator("#runs button", has_text=name).click()
    tab.locator("#run-name", has_text=name).wait_for()


def fill_in(tab, labels):
    """Name the data, look at it, and wait for the config."""
    tab.locator("#t-labels").fill(str(labels))
    tab.locator("#t-look").click()
    tab.locator("#t-found table").nth(1).wait_for()
    expect(config_of(tab)).to_have_value(re.compile(r"\[finetune\]"))


def test_the_data_is_counted_and_the_config_follows_the_choices(show, labels):
    tab = show()
    fill_in(tab, labels)
    assert tab.locator("#t-path").input_value() == str(DEMO / "records")
    facts = tab.locator("#t-found dl").inner_text()
    assert re.search(r"records kept\s+40\b", facts)
    assert re.search(r"patients in two splits\s+0\b", facts)
    with labels.open(newline="") as file:
        n_noise = sum(row["noise"] == "1" for row in csv.DictReader(file))
    row = tab.locator("#t-found tr", has_text="noise").locator("td").all_inner_texts()
    assert sum(int(cell.split()[0]) for cell in row[1:4] if cell != "none labelled") == n_noise
    tab.locator("#t-lead").fill("V9")
    tab.locator("#t-look").click()
    tab.locator("#t-found .bad", has_text="40 of the first 40 recordings lack a lead of V9").wait_for()
    tab.locator("#t-lead").fill("")
    tab.locator("#t-start").select_option(ONE)
    expect(tab.locator("#t-rate")).to_have_value("0.0003")
    tab.locator("#t-train").select_option("scratch")
    expect(tab.locator("#t-rate")).to_have_value("0.003")
    tab.locator("#t-model").select_option("s4d")
    expect(config_of(tab)).to_have_value(re.compile('model = "s4d"'))
    # What was written by hand is not written over.
    config_of(tab).fill(config_of(tab).input_value() + "# mine\n")
    tab.locator("#t-epochs").fill("3")
    tab.locator("#t-epochs").press("Tab")
    tab.wait_for_timeout(300)
    assert "# mine" in config_of(tab).input_value()
    # What was chosen after that is not in it, and neither runs unsaid.
    expect(tab.locator("#t-edited.bad")).to_contain_text("they are not in it")
    before = tab.locator("#runs tbody tr").count()
    tab.locator("#t-name").fill("unsure")
    tab.locator("#t-go").click()
    tab.locator("#said.bad", has_text="Start once more runs the text as it stands").wait_for()
    assert tab.locator("#runs tbody tr").count() == before
    tab.locator("#t-make").click()
    expect(tab.locator("#t-edited")).to_be_hidden()
    expect(config_of(tab)).to_have_value(re.compile("epochs = 3\n"))
    assert "# mine" not in config_of(tab).input_value()


def test_what_is_wrong_with_data_or_config_is_said_and_nothing_starts(show, labels):
    tab = show()
    before = tab.locator("#runs tbody tr").count()
    tab.locator("#t-labels").fill("/none.csv")
    tab.locator("#t-look").click()
    tab.locator("#said.bad", has_text="/none.csv: no such file").wait_for()
    fill_in(tab, labels)
    config_of(tab).fill("folder = '.'\n[finetune]\nepoch = 3\n")
    tab.locator("#t-name").fill("wrong")
    tab.locator("#t-go").click()
    tab.locator("#said.bad", has_text="nearest known key: 'finetune.epochs'").wait_for()
    assert tab.locator("#runs tbody tr").count() == before


def test_a_finished_run_shows_curves_results_config_report_and_gives_its_model(show, small_run):
    tab = show()
    choose(tab, ONE)
    tab.locator("#run-state", has_text="done").wait_for()
    assert tab.locator("#stages .done").count() == 6
    with (small_run / "results.csv").open(newline="") as file:
        rows = {row["target"]: row for row in csv.DictReader(file) if row["level"] == "draw"}
    for cells in (row.locator("td").all_inner_texts() for row in tab.locator("#run-results tbody tr").all()):
        assert cells[1] == f"{rows[cells[0]]['n']} ({rows[cells[0]]['n_positive']})"
        if rows[cells[0]]["auroc"]:
            assert abs(float(cells[2].split()[0]) - float(rows[cells[0]]["auroc"])) < 0.001
    tab.locator("#score-said", has_text="Epoch 2").wait_for()
    tab.locator("summary", has_text="Config of this run").click()
    assert "n_replicates = 200" in tab.locator("#run-config").inner_text()
    with tab.context.expect_page() as opened:
        tab.locator("#report").click()
    opened.value.locator("h1", has_text="AnyECG-Lab report").wait_for()
    # Apart from the page: neither its token nor its storage.
    assert opened.value.evaluate("origin") == "null"
    with tab.expect_download(timeout=60_000) as found:
        tab.locator("#run-safetensors").click()
    assert found.value.suggested_filename == f"{ONE}.safetensors"


def test_two_runs_are_laid_side_by_side(show):
    tab = show()
    for name in (ONE, "two"):
        tab.get_by_label(f"Compare {name}").check()
    tab.locator("#compare").click()
    tab.locator("#compared table").wait_for(timeout=60_000)
    assert tab.locator("#compared th").all_inner_texts()[1:] == [ONE, "two", f"two − {ONE}"]
    assert "patient" in tab.locator("#compared p").inner_text()


def test_a_training_of_another_models_head_starts_by_the_keyboard_alone_and_ends_with_results(show, labels):
    tab = show()
    fill_in(tab, labels)
    tab.locator("#t-start").focus()
    tab.keyboard.type(ONE)
    expect(tab.locator("#t-train")).to_have_value("all")
    tab.keyboard.press("Tab")
    tab.keyboard.type("head")
    tab.locator("#t-epochs").focus()
    tab.keyboard.press("Control+a")
    tab.keyboard.type("1")
    tab.keyboard.press("Tab")
    expect(config_of(tab)).to_have_value(re.compile('epochs = 1\n(.*\n)*train = "head"'))
    tab.locator("#t-name").focus()
    tab.keyboard.type(NEW)
    tab.keyboard.press("Enter")
    tab.locator("#run-name", has_text=NEW).wait_for()
    # The next config is made anew.
    expect(tab.locator("#t-edited")).to_be_hidden()
    tab.locator("#run-state", has_text="running: finetune").wait_for(timeout=120_000)
    tab.locator("#run-state", has_text=re.compile("^done$")).wait_for(timeout=240_000)
    tab.locator("#score-said", has_text="Epoch 1").wait_for()
    tab.locator("#run-results tbody tr").nth(2).wait_for()
    tab.locator("#run-tuned", has_text="had learned from them is not known").wait_for()
    assert tab.locator("#said").inner_text() == ""
    expect(tab.locator("#t-start option", has_text=NEW)).to_have_count(1)
    tab.locator("#runs button").first.focus()
    tab.keyboard.press("t")
    expect(tab.locator("#model option", has_text=NEW)).to_have_count(1)


@pytest.mark.parametrize("width", [1400, 390])
def test_the_trainings_are_never_wider_than_the_screen_and_every_control_has_a_name(show, labels, width):
    tab = show(width=width)
    fill_in(tab, labels)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    unnamed = tab.evaluate(
        """[...document.querySelectorAll("#training :is(button, select, input, textarea):not([hidden])")].filter(e =>
        !e.labels?.length && !e.textContent.trim() && !e.ariaLabel).map(e => e.outerHTML)"""
    )
    assert unnamed == []


def test_keys_of_the_ecg_do_nothing_while_trainings_are_in_sight(show):
    tab = show()
    tab.locator("#runs button").first.focus()
    for key in ("n", "s", "c", "0", "ArrowRight"):
        tab.keyboard.press(key)
    tab.wait_for_timeout(200)
    assert tab.locator("#looking").is_hidden()
    tab.keyboard.press("t")
    tab.locator("#looking").wait_for()
    assert tab.locator("#measured").inner_text() == ""
