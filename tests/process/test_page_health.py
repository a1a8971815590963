"""The page Health beside a real alerts process: what it shows, and what may be done on it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from alert_process import RULE, AlertProcess, alert_process, begin, hook
from http_receiver import HttpReceiver, http_receiver
from page_process import Answer, Browser, Page, add_users, page_of
from pipeline import wait_for
from ports import free_ports

from ast_stream.errors import WireError
from ast_stream.privacy.audit import Act, decode_act

BAD_REQUEST = 400  # a receiver that says so will not take it later


@dataclass
class Box:
    alerts: AlertProcess
    receiver: HttpReceiver
    page: Page

    def acts(self) -> list[Act]:
        """Return what is recorded of administration."""
        found = []
        for path in sorted((self.alerts.folder / "state/audit/web").glob("audit-*.jsonl")):
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    found.append(decode_act(line))
                except WireError:  # an access
                    continue
        return found


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    """Alerts whose webhook refuses all, and a page with two users."""
    port = free_ports()
    with ExitStack() as cleanup:
        receiver = cleanup.enter_context(http_receiver())
        alerts = cleanup.enter_context(alert_process(hook(receiver), [RULE]))
        web = {"listen": f"127.0.0.1:{port}", "without_login": []}
        settings = json.loads(alerts.config.read_text()) | {"web": web}
        alerts.config.write_text(json.dumps(settings))
        users = alerts.folder / "state/web/users.json"
        add_users(users, {"anna": ["view", "administrate"], "bob": ["view"]})
        page = cleanup.enter_context(page_of(alerts.config, port))
        begin(alerts, receiver)
        receiver.by_content[b""] = BAD_REQUEST
        yield Box(alerts, receiver, page)


def ask(browser: Browser, act: str, **fields: str) -> Answer:
    """Do what a form of the page does, and return the page that it leads to."""
    token = browser.token("/health")
    answer = browser.post(f"/health/{act}", {"csrf_token": token, **fields})
    if answer.status != 303:
        return answer
    return browser.get(str(answer.one("Location")))


def given_up(page: Answer) -> list[str]:
    """Return the numbers of the deliveries that can be retried."""
    forms = re.findall(r'action="/health/retry".*?</form>', page.text, re.DOTALL)
    return [number for form in forms for number in re.findall(r'"number" value="(\d+)"', form)]


@pytest.mark.slow
def test_a_delivery_that_was_given_up_is_shown_and_retried(box: Box) -> None:
    browser = box.page.browser("anna")
    box.alerts.publish(1, "begin", "end")
    wait_for(lambda: bool(given_up(browser.get("/health"))), "a delivery that is given up")
    numbers = given_up(browser.get("/health"))
    box.receiver.by_content.clear()
    n_got = len(box.receiver.got)
    answer = ask(browser, "retry", number=numbers[-1])
    assert "1 delivery tried again." in answer.text
    wait_for(lambda: len(box.receiver.got) > n_got, "the delivery")
    assert box.acts()[-1].account == "anna"
    assert box.acts()[-1].act == f"retry deliveries {numbers[-1]}"
    answer = ask(browser, "retry", number=numbers[-1])
    assert "refused: expected deliveries that are dead" in answer.text
    assert "notice bad" in answer.text


def test_an_alert_that_fires_is_acknowledged(box: Box) -> None:
    browser = box.page.browser("anna")
    box.alerts.publish(2, "begin", stream="yard")
    wait_for(lambda: "Acknowledge" in browser.get("/health").text, "an alert that fires")
    alert = re.search(r'name="alert" value="(\w+)"', browser.get("/health").text)
    assert alert is not None
    answer = ask(browser, "acknowledge", alert=alert[1])
    assert "Acknowledged; " in answer.text
    assert "firing, acknowledged" in answer.text
    assert box.acts()[-1].act == f"acknowledge alert {alert[1]}"
    box.alerts.publish(2, "end", stream="yard")


def test_a_rule_is_snoozed_and_no_longer(box: Box) -> None:
    browser = box.page.browser("anna")
    answer = ask(browser, "snooze", rule="dog", **{"for": "2h"})
    assert "Rule dog is snoozed until " in answer.text
    assert "End the snooze" in answer.text
    answer = ask(browser, "snooze", rule="dog", **{"for": "0s"})
    assert "Rule dog is snoozed no longer." in answer.text
    assert "End the snooze" not in answer.text
    acts = [act.act for act in box.acts()][-2:]
    assert acts == ["snooze rule dog for 7200 s", "snooze rule dog for 0 s"]


@pytest.mark.parametrize(
    ("act", "fields", "status", "sentence"),
    [
        ("retry", {}, 400, "Expected numbers of deliveries, or all=1"),
        ("retry", {"number": "1", "all": "1"}, 400, "Expected numbers of deliveries, or all=1"),
        ("drop", {"number": "-1"}, 400, "number: expected those of deliveries"),
        ("drop", {"number": "9" * 50}, 400, "number: expected those of deliveries"),
        ("drop", {"number": "999999"}, 200, "expected deliveries that are pending, got 999999"),
        ("acknowledge", {}, 400, "alert: expected the id of one, got none"),
        ("acknowledge", {"alert": "no-such"}, 200, "expected the id of one alert"),
        (
            "snooze",
            {"rule": "dgo", "for": "1h"},
            200,
            "got &#39;dgo&#39;; did you mean &#39;dog&#39;",
        ),
        ("snooze", {"rule": "dog", "for": "later"}, 400, "for: "),
        ("explode", {}, 400, "Expected one of acknowledge, snooze, retry, drop"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(
    box: Box, act: str, fields: dict[str, str], status: int, sentence: str
) -> None:
    answer = ask(box.page.browser("anna"), act, **fields)
    assert answer.status == status
    assert sentence in answer.text
    assert "notice bad" in answer.text


def test_who_may_only_view_is_offered_nothing_and_can_do_nothing(box: Box) -> None:
    browser = box.page.browser("bob")
    page = browser.get("/health")
    assert page.status == 200
    assert 'action="/health/' not in page.text
    n_acts = len(box.acts())
    answer = ask(browser, "snooze", rule="dog", **{"for": "2h"})
    assert answer.status == 403
    assert "lacks the right" in answer.text
    assert "End the snooze" not in box.page.browser("anna").get("/health").text
    assert len(box.acts()) == n_acts


def test_a_link_of_others_puts_no_words_on_the_page(box: Box) -> None:
    text = "your+password+has+expired"
    for link in (f"/health?said={text}", f"/health?said={text}&mark={'0' * 64}"):
        assert "expired" not in box.page.browser("bob").get(link).text


def test_processes_that_do_not_answer_are_named(box: Box) -> None:
    text = box.page.browser("bob").get("/health").text
    assert "the capture process of porch does not answer" in text
    assert "Everything is healthy" not in text
