"""The page Tune on a history that a recorder would write: what another threshold would report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from page_process import Page, page_of
from ports import free_ports
from tuned_box import write_tuned_box


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    port = free_ports()
    config = write_tuned_box(tmp_path_factory.mktemp("tune"), f"127.0.0.1:{port}")
    with page_of(config, port) as running:
        yield running


def plain(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split()).replace(" ,", ",")


def test_the_page_begins_with_the_classes(page: Page) -> None:
    answer = page.browser().get("/tune")
    assert answer.status == 200
    assert '<option value="Bark">' in answer.text
    assert "Choose a class" in answer.text


def test_scores_events_and_verdicts_as_configured(page: Page) -> None:
    text = page.browser().get("/tune?class=bark&days=1").text
    assert text.count('<svg viewBox="0 0 1000 100"') == 1
    (path,) = re.findall(r'class="peaks" d="([^"]+)"', text)
    levels = {float(level) for level in re.findall(r"V([\d.]+)H", path)}
    assert any(abs(level - 1) < 0.2 for level in levels)  # 0.99, of 100 from the top
    assert "2 events as tried, 2 as configured: 0 gained, 0 lost." in plain(text)
    assert "Called right 2 reported" in plain(text)
    assert "Called wrong 0 reported, 1 no longer" in plain(text)
    assert "any_dog 2 2" in plain(text)
    assert "siren" not in plain(text)  # a rule that the class has no part in
    assert 'id="yaml"' not in text


def test_another_threshold_gains_and_loses_events_and_alerts(page: Page) -> None:
    browser = page.browser()
    low = browser.get("/tune/trial?class=Bark&days=1&threshold=0.1").text
    assert "3 events as tried, 2 as configured: 1 gained, 0 lost." in plain(low)
    assert "Called wrong 1 reported, 0 no longer" in plain(low)
    assert "any_dog 2 3" in plain(low)
    assert "detection: classes: &#34;Bark&#34;: onset_threshold: 0.1" in plain(low)
    high = browser.get("/tune/trial?class=Bark&days=1&threshold=0.97").text
    assert "1 event as tried, 2 as configured: 0 gained, 1 lost." in plain(high)
    assert "Called right 1 reported, 1 missed" in plain(high)
    assert "any_dog 2 1" in plain(high)
    marks = re.findall(r'<li data-kind="(\w+)" data-stream="(\w+)" data-x="([\d.]+)"', high)
    assert [(kind, stream) for kind, stream, _ in marks] == [("kept", "porch"), ("lost", "porch")]
    assert 900 < float(marks[0][2]) < float(marks[1][2]) < 1000  # of the last hour of a day


def test_other_settings_are_tried_with_it(page: Page) -> None:
    query = "class=Bark&days=1&threshold=0.5&min_duration_s=30&hold_s="
    text = page.browser().get(f"/tune/trial?{query}").text
    assert "0 events as tried, 2 as configured" in plain(text)
    assert "onset_threshold: 0.5 min_duration_s: 30.0" in plain(text)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("class=Barkk", "Expected a class of the model, got &#39;Barkk&#39;; did you mean"),
        ("class=Bark&days=400", "days: expected one of 1, 2, 3, 7, 14, got"),
        ("class=Bark&threshold=high", "threshold: expected a number, got &#39;high&#39;"),
        ("class=Bark&threshold=7", "onset_threshold: Input should be less than or equal to 1"),
        ("class=Bark&threshold=nan", "onset_threshold: "),
        ("class=Bark&confirm_s=4000", "expected at most 10.24 s at a hop of 0.16 s, got 4000"),
        ("class=Bark&hold_s=" + "9" * 30, "hold_s: expected a number"),
    ],
)
def test_what_cannot_be_tried_is_refused_in_a_sentence(
    page: Page, query: str, sentence: str
) -> None:
    for path in ("/tune", "/tune/trial"):
        answer = page.browser().get(f"{path}?{query}")
        assert answer.status == 400
        assert sentence in answer.text


def test_the_configuration_is_left_as_it_is(page: Page) -> None:
    before = page.config.read_bytes()
    page.browser().get("/tune/trial?class=Bark&threshold=0.9")
    assert page.config.read_bytes() == before


def test_the_timeline_marks_what_the_rules_of_now_would_have_fired(page: Page) -> None:
    today = datetime.now(UTC).date()  # the events are of the last hour
    days = [
        page.browser().get(f"/timeline?day={day}&rules=now").text
        for day in (today - timedelta(days=1), today)
    ]
    marks = [mark for text in days for mark in re.findall(r"<li>.*?any_dog \(.*?</li>", text)]
    assert len(marks) == 3
    assert all(re.search(r'href="/events/\w+"', mark) for mark in marks)
    assert "would have fired</span>" not in page.browser().get("/timeline").text


@pytest.mark.slow
def test_without_a_history_the_page_says_what_to_do(tmp_path: Path) -> None:
    port = free_ports()
    config = write_tuned_box(tmp_path, f"127.0.0.1:{port}", has_history=False)
    with page_of(config, port) as running:
        answer = running.browser().get("/tune")
        assert answer.status == 200
        assert "The recorder has not run yet" in answer.text
