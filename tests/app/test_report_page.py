"""The report in a real browser."""

import pytest

from .made_results import made_comparison, made_tables
from .test_report import NAMES, PAPER, made_page

MAIN = "#results .group:not(.away) > .scroll table"
# Of each row of the main table that is in sight: the texts of its cells.
SHOWN = f"""[...document.querySelectorAll("{MAIN} tbody tr")].filter(row => row.getClientRects().length)
    .map(row => [...row.cells].map(cell => cell.textContent.trim()))"""
GROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the file of a report with 30 made-up targets."""
    path = tmp_path_factory.mktemp("made") / "report.html"
    tables = made_tables(NAMES, paper=PAPER, horizons=(60, 30), levels=("draw", "visit"), internal=True)
    path.write_text(made_page(tables, made_comparison(NAMES)))
    return path


@pytest.fixture
def show(browser):
    """Return a function that opens a file in a tab; at the end the console must be empty and nothing else asked for."""
    contexts, said, requests = [], [], []

    def open_file(path, *, width=1400, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(path.as_uri())
        requests.remove(path.as_uri())
        return tab

    yield open_file
    for context in contexts:
        context.close()
    assert (said, requests) == ([], [])


def numbers(tab, column):
    """Return the first number of a column of the main table, in the order on the screen; None where there is none."""
    texts = [cells[column].split()[0].replace(",", "") for cells in tab.evaluate(SHOWN)]
    return [None if text == "–" else float(text) for text in texts]


def names(tab):
    """Return the targets in sight, in the order on the screen."""
    return [cells[0].removesuffix(" few positive") for cells in tab.evaluate(SHOWN)]


def heading(tab, text):
    """Return the sort button of a column of the main table, and its heading."""
    head = tab.locator(f"{MAIN} thead th", has_text=text).first
    return head.get_by_role("button"), head


def test_a_click_sorts_and_another_turns_the_order(made, show):
    tab = show(made)
    before = names(tab)
    button, head = heading(tab, "Positive patients")
    button.click()
    column = head.evaluate("cell => cell.cellIndex")
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers(tab, column) == sorted(numbers(tab, column), reverse=True)
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers(tab, column) == sorted(numbers(tab, column))
    assert sorted(names(tab)) == sorted(before)
    assert names(tab) != before


def test_missing_numbers_stay_last_in_both_orders(made, show):
    tab = show(made)
    button, _ = heading(tab, "AUROC")
    for descending in (True, False):
        button.click()
        *found, last = numbers(tab, 1)
        assert last is None
        assert found == sorted(found, reverse=descending)


def test_the_keyboard_alone_finds_sorts_and_changes_the_horizon(made, show):
    tab = show(made)
    for _ in range(40):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.name") == "target":
            break
    tab.keyboard.type("target 2")
    found = [f"TARGET {number} high" for number in (12, *range(20, 30))]
    assert sorted(names(tab)) == found
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#results .group:not(.away) > summary").inner_text() == "draw level, 30 min"
    button, head = heading(tab, "Target")
    for _ in range(40):
        tab.keyboard.press("Tab")
        if button.evaluate("button => button === document.activeElement"):
            break
    tab.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert names(tab) == found
    tab.keyboard.press("Space")
    assert names(tab) == found[::-1]


def test_the_search_takes_any_text_and_counts_what_it_finds(made, show):
    tab = show(made)
    search = tab.get_by_role("searchbox")
    for text, found in (('"total" <', NAMES[:1]), ("high a&b", NAMES[1:2]), ("nothing of it", []), ("", NAMES)):
        search.fill(text)
        assert sorted(names(tab)) == sorted(found)
        assert tab.locator(".tools output").inner_text() == f"{len(found)} of 30"


def test_bands_filter_and_are_counted_for_the_horizon_and_level_in_sight(made, show):
    tab = show(made)
    for level in ("draw", "visit"):
        tab.get_by_role("radio", name=level).check()
        tab.get_by_role("radio", name="≥ 0.65").check()
        n = int(tab.locator("[data-count=high]").inner_text())
        found = numbers(tab, 1)
        assert len(found) == n > 0
        assert min(found) >= 0.65
        tab.get_by_role("radio", name="all").check()
    assert tab.locator("#results .group:not(.away) > summary").inner_text() == "visit level, 60 min"
    assert tab.locator("#baselines .group:not(.away) > summary").inner_text() == "visit level, 60 min"


def test_print_shows_every_row_whatever_was_filtered_or_folded(made, show):
    tab = show(made)
    tab.get_by_role("searchbox").fill("nothing of it")
    tab.emulate_media(media="print")
    hidden = tab.evaluate(
        "[...document.querySelectorAll('tr')].filter(row => !row.getBoundingClientRect().height).length"
    )
    assert hidden == 0
    assert tab.locator(".tools").is_hidden()


def test_without_javascript_every_table_is_there_to_unfold(made, show):
    tab = show(made, java_script_enabled=False)
    assert tab.locator("#results .group").count() == 4
    assert tab.locator(".tools").is_hidden()
    assert tab.locator("#results table tbody tr").count() == 2 * 4 * len(NAMES)
    second = tab.locator("#results .group").nth(1)
    assert second.locator("table").first.is_hidden()
    second.locator("summary").first.click()
    assert second.locator("table").first.is_visible()


@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_is_never_wider_than_the_screen(made, show, width):
    tab = show(made, width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") == width


def test_a_dark_scheme_has_a_dark_ground_and_light_text(made, show):
    light, dark = (show(made, color_scheme=scheme) for scheme in ("light", "dark"))
    assert light.evaluate(GROUND) == "rgb(244, 246, 248)"
    assert dark.evaluate(GROUND) == "rgb(14, 19, 26)"
    assert dark.evaluate("getComputedStyle(document.body).color") == "rgb(228, 234, 241)"


def test_the_report_of_a_real_run_opens_without_a_word(small_run, show):
    tab = show(small_run / "report.html")
    assert tab.locator("h1").inner_text() == "AnyECG-Lab report"
    assert tab.locator(f"{MAIN} tbody tr").count() == 3
