"""Debian's Chromium, and what tests of pages ask of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

PATH = shutil.which("chromium") or shutil.which("chromium-browser")
_BAD = ("serious", "critical")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Give the browser; without it the calling test is skipped, in CI that is a failure.

    In fixtures of a module only: while it runs, no test of its process may use asyncio.
    """
    if PATH is None:
        missing = "needs the Debian package chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=PATH,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio"],
        )
        yield running
        running.close()


def serious_faults(page: Page) -> list[str]:
    """Return what of a page keeps people from using it."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes']}" for one in found if one["impact"] in _BAD]
