"""A real browser for the tests that are marked `browser`."""

import contextlib
import os
import shutil

import pytest


@contextlib.contextmanager
def chromium():
    """A running Chromium. Without one the test is skipped, but it fails in CI and under ``scripts/test.sh --all``."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("the Python package playwright")
    system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        found = system or playwright.chromium.executable_path
        if not os.path.exists(found):
            missing("Chromium")
        browser = playwright.chromium.launch(executable_path=found, args=sandbox)
        yield browser
        browser.close()


def missing(name):
    """Skip the test, or fail it where all marked tests must run."""
    if os.environ.get("CI") == "true" or os.environ.get("UNSKEW_TEST_ALL"):
        pytest.fail(f"{name} is missing: install it")
    pytest.skip(f"{name} is missing")
