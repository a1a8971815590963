"""The page in a real browser, beside real processes that hear a recording.

One browser and one set of processes serve all tests.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from chromium import chromium, serious_faults
from page_box import STREAM, Box, page_box
from playwright.sync_api import Browser, Page, expect

from ast_stream.history.records import EventQuery, EventRecord
from ast_stream.units import NS_PER_SECOND

LIMIT_MS = 30_000
pytestmark = pytest.mark.slow
PIXELS = "canvas => canvas.toDataURL()"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def box(checkpoint: Path, browser: Browser) -> Iterator[Box]:
    """Give the processes of one configuration, with sound."""
    with page_box(checkpoint) as running:
        yield running


@pytest.fixture
def page(browser: Browser, box: Box) -> Iterator[Page]:
    """Give an empty tab; what its pages complain of is a failure, and so is a request elsewhere."""
    context = browser.new_context(base_url=box.origin, accept_downloads=True)
    opened = context.new_page()
    complaints: list[str] = []
    elsewhere: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "console",
        lambda line: complaints.append(line.text) if line.type == "error" else None,
    )
    opened.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((box.origin, "blob:", "data:"))
            else elsewhere.append(request.url)
        ),
    )
    yield opened
    context.close()
    assert elsewhere == []
    assert complaints == []


@pytest.fixture(autouse=True)
def patience(page: Page) -> None:
    page.set_default_timeout(LIMIT_MS)
    expect.set_options(timeout=LIMIT_MS)


def ended_events(box: Box, count: int = 1) -> list[EventRecord]:
    """Return so many events with a clip, newest first, as soon as there are.

    All before them have theirs as well: none comes between them while a test goes through them.
    """
    with box.history() as history:

        def settled() -> list[EventRecord]:
            oldest_first = history.events(EventQuery(limit=1000, newest_first=False))
            return list(takewhile(lambda event: event.has_clip, oldest_first))

        box.wait_for(lambda: len(settled()) >= count, "clips")
        return settled()[: -count - 1 : -1]


def test_what_is_heard_now_is_shown_as_it_happens(page: Page, box: Box) -> None:
    page.goto("/")
    expect(page.locator("#connection")).to_have_text("live")
    stream = page.locator(f'[data-stream="{STREAM}"]')
    expect(stream.locator('[data-field="state"]')).to_have_text("listening")
    expect(stream.locator('[data-field="level"]')).to_have_text(re.compile(r"^-\d+ dBFS$"))
    expect(stream.locator('[data-field="laeq"]')).to_have_text(re.compile(r"^-\d+\.\d dBFS\(A\)$"))
    picture = stream.locator("canvas")
    expect(picture).to_have_attribute("data-columns", re.compile(r"^\d{3,}$"))
    expect(picture).to_have_attribute("data-boxes", re.compile("[1-9]"))
    before = picture.evaluate(PIXELS), int(picture.get_attribute("data-columns") or 0)
    box.wait_for(
        lambda: int(picture.get_attribute("data-columns") or 0) > before[1] + 50,
        "more of the spectrogram",
        page.wait_for_timeout,
    )
    assert picture.evaluate(PIXELS) != before[0]
    expect(stream.locator(".top .score").first).to_have_text(re.compile(r"\d\.\d\d"))
    page.wait_for_selector("#happened li[data-shown-ms]")


def test_the_clip_of_an_event_plays_and_its_download_is_the_source_to_the_sample(
    page: Page, box: Box, tmp_path: Path
) -> None:
    event = ended_events(box)[0]
    page.goto(f"/events/{event.id}")
    expect(page.locator("#wave")).to_have_attribute("data-ready", "true")
    page.keyboard.press("Space")
    player = page.locator("#clip")
    box.wait_for(
        lambda: player.evaluate("clip => clip.currentTime") > 0.2, "the clip", page.wait_for_timeout
    )
    with page.expect_download() as downloading:
        page.click("text=Download FLAC")
    downloading.value.save_as(tmp_path / "clip.flac")
    samples, rate = soundfile.read(tmp_path / "clip.flac", dtype="int16")
    with box.history() as history:
        clip = history.clips(event.id)[0]
    assert (rate, len(samples)) == (16_000, clip.stop_sample - clip.start_sample)
    np.testing.assert_array_equal(samples, box.sound[clip.start_sample : clip.stop_sample])
    part = page.request.get(f"/clips/{event.id}/0", headers={"Range": "bytes=4-99"})
    assert part.status == 206
    assert part.body() == (tmp_path / "clip.flac").read_bytes()[4:100]


def test_an_event_is_reviewed_with_the_keyboard_alone(page: Page, box: Box) -> None:
    events = ended_events(box, 4)
    page.goto("/events?clip=1")
    page.keyboard.press("j")
    expect(page.locator("#rows a").first).to_be_focused()
    page.goto(f"/events/{events[0].id}?clip=1")
    page.keyboard.press("r")
    page.wait_for_url(f"**/events/{events[1].id}?clip=1")
    page.keyboard.press("w")
    page.wait_for_url(f"**/events/{events[2].id}?clip=1")
    page.keyboard.press("a")
    page.keyboard.type("Gunshot, gunfire")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/events/{events[3].id}?clip=1")
    page.keyboard.press("p")
    page.wait_for_url(f"**/events/{events[2].id}?clip=1")
    expect(page.locator("#verdicts-heading ~ ul li").first).to_contain_text(
        "another class: Gunshot, gunfire"
    )
    page.keyboard.press("n")
    page.wait_for_url(f"**/events/{events[3].id}?clip=1")
    page.keyboard.press("u")
    with box.history() as history:
        box.wait_for(lambda: len(history.verdicts()) == 4, "verdicts")
        said = {one.event_id: (one.verdict, one.label) for one in history.verdicts()}
    assert [said[event.id] for event in events] == [
        ("right", None),
        ("wrong", None),
        ("other", "Gunshot, gunfire"),
        ("unsure", None),
    ]


def test_a_verdict_without_the_token_of_a_page_is_refused(page: Page, box: Box) -> None:
    event = ended_events(box)[0]
    answer = page.request.post(
        f"/events/{event.id}/verdict",
        form={"verdict": "right"},
        headers={"Origin": box.origin},
    )
    assert answer.status == 403


@pytest.mark.parametrize("width", [1440, 390])
def test_no_page_has_a_serious_fault_of_accessibility_or_is_too_wide(
    browser: Browser, box: Box, width: int
) -> None:
    event = ended_events(box)[0]
    context = browser.new_context(
        base_url=box.origin,
        viewport={"width": width, "height": 900},
        color_scheme="dark" if width == 390 else "light",
        bypass_csp=True,  # axe sets styles
    )
    page = context.new_page()
    for path in ("/", "/timeline", "/events", f"/events/{event.id}"):
        page.goto(path)
        assert serious_faults(page) == [], path
        too_wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not page.evaluate(too_wide), path
    context.close()


def test_the_timeline_leads_to_the_events_of_a_class_and_a_day(page: Page, box: Box) -> None:
    ended_events(box)
    page.goto("/timeline")
    expect(page.locator(".coverage rect.listened").first).to_be_attached()
    page.locator(".heat td a").first.click()
    page.wait_for_url("**/events?class=*")
    expect(page.locator("#rows tr").first).to_be_visible()
    refused = page.request.get("/timeline?day=yesterday", headers={"Accept": "text/html"})
    assert refused.status == 400
    assert "expected one such as" in refused.text()


def test_a_killed_worker_leaves_no_hole_and_no_double(page: Page, box: Box) -> None:
    page.goto("/")
    expect(page.locator("#connection")).to_have_text("live")
    shown = page.locator("#happened li[data-shown-ms]")
    expect(shown.first).to_be_attached()
    since_ns = time.time_ns() - 2 * NS_PER_SECOND
    box.running.kill("worker")
    box.running.start_worker()
    count = shown.count()
    box.wait_for(lambda: shown.count() >= count + 2, "events after the kill", page.wait_for_timeout)
    with box.history() as history:
        kept = {one.id for one in history.all_events(EventQuery(since_ns=since_ns))}
    assert kept
    box.wait_for(lambda: kept <= set(lines_of(page)), "all of them", page.wait_for_timeout)
    lines = lines_of(page)
    assert len(set(lines)) == len(lines)


def lines_of(page: Page) -> list[str]:
    """Return the ids of the events on the page, as often as they are there."""
    ids: list[str] = page.locator("#happened").evaluate(
        "list => [...list.querySelectorAll('li.event')].map((line) => line.dataset.event)"
    )
    return ids
