"""Tune, Health and the login in a real browser: dragged, refreshed, and free of serious faults."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from chromium import chromium, serious_faults
from page_process import PASSWORD, add_users, page_of
from playwright.sync_api import Page, expect
from ports import free_ports
from tuned_box import write_tuned_box

LIMIT_MS = 30_000


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A tab, logged in to the page of a box; what its pages complain of is a failure."""
    port = free_ports()
    folder = tmp_path_factory.mktemp("tuned")
    config = write_tuned_box(folder, f"127.0.0.1:{port}", without_login=[])
    add_users(folder / "state/web/users.json", {"anna": ["view", "administrate"]})
    complaints: list[str] = []
    with chromium() as browser, page_of(config, port):
        opened = browser.new_context(base_url=f"http://127.0.0.1:{port}").new_page()
        opened.set_default_timeout(LIMIT_MS)
        expect.set_options(
            timeout=LIMIT_MS
        )  # the page renews itself every 5 s, which is its default
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on(
            "console",
            lambda said: complaints.append(said.text) if said.type == "error" else None,
        )
        opened.goto("/tune?class=Bark")
        expect(opened).to_have_url(re.compile(r"/login\?next="))
        assert serious_faults(opened) == []
        opened.get_by_label("Name").fill("anna")
        opened.get_by_label("Password").fill(PASSWORD)
        opened.keyboard.press("Enter")
        expect(opened).to_have_url(re.compile(r"/tune\?class=Bark$"))
        yield opened
    assert complaints == []


def test_a_threshold_is_dragged_in_the_lane_and_tried_at_once(tab: Page) -> None:
    tab.goto("/tune?class=Bark")
    outcome = tab.locator("#outcome")
    expect(outcome).to_contain_text("2 events as tried, 2 as configured")
    expect(tab.locator(".marks .kept")).to_have_count(2)
    lane = tab.locator(".tune-lane svg")
    box = lane.bounding_box()
    assert box is not None
    x = box["x"] + box["width"] / 2
    tab.mouse.move(x, box["y"] + box["height"] * 0.5)
    tab.mouse.down()
    tab.mouse.move(x, box["y"] + box["height"] * 0.9, steps=5)
    tab.mouse.up()
    expect(tab.locator("#threshold-value")).to_have_text("0.1")
    expect(outcome).to_contain_text("3 events as tried, 2 as configured: 1 gained")
    expect(tab.locator(".marks .gained")).to_have_count(1)
    expect(tab.locator("#yaml")).to_contain_text("onset_threshold: 0.1")
    expect(tab).to_have_url(re.compile(r"threshold=0\.1"))
    tab.reload()  # the address holds what was tried
    expect(outcome).to_contain_text("3 events as tried")


def test_a_threshold_is_moved_by_keys(tab: Page) -> None:
    tab.goto("/tune?class=Bark&threshold=0.96")
    tab.get_by_label(re.compile("Threshold")).focus()
    tab.keyboard.press("End")
    expect(tab.locator("#threshold-value")).to_have_text("1")
    expect(tab.locator("#outcome")).to_contain_text("0 events as tried")
    expect(tab.locator("#outcome")).to_contain_text("2 missed")


@pytest.mark.slow
def test_health_is_renewed_by_itself(tab: Page) -> None:
    tab.goto("/health")
    first = tab.locator("#health-now p.soft").inner_text()
    expect(tab.locator("#health-now p.soft")).not_to_have_text(first)


@pytest.mark.parametrize("path", ["/tune?class=Bark&threshold=0.1", "/health"])
@pytest.mark.parametrize("width", [1440, 390])
def test_pages_have_no_serious_fault_and_fit_a_phone(tab: Page, path: str, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(path)
    assert serious_faults(tab) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
