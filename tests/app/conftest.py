"""A real browser for the tests of pages."""

import shutil

import pytest

from ..conftest import lacking

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    """Return a running Chromium."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        lacking("no browser: neither chromium nor google-chrome is on the PATH; install Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield running
        running.close()
