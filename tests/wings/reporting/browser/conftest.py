"""One headless Chromium for all pages; without it or Playwright the tests are skipped. `make test-browser`."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make test-browser")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        # The sandbox of Chromium does not start for root, as in containers; the pages are ours.
        found = started.chromium.launch(executable_path=chromium, chromium_sandbox=False)
        yield found
        found.close()
