"""One sound at several microphones, as the alerts process makes one alert of it."""

from __future__ import annotations

import signal
from functools import partial
from typing import Any

import pytest
from alert_process import BOTH, RULE, AlertProcess, alert_process, begin, hook, kinds_of
from http_receiver import HttpReceiver, http_receiver
from pipeline import wait_for

MERGED = RULE | {
    "match": {"class": "Bark", "stream": {"id": ["garden", "yard"]}},
    "same_sound": {"within": "2s", "heard_by": 2},
}
MERGED_NAME = "merged"


def alerts_of(receiver: HttpReceiver, rule: str) -> list[dict[str, Any]]:
    """Return the alerts of a rule in the order of their first delivery."""
    found = {got.id: got.body["data"]["alert"] for got in receiver.got}
    return [alert for alert in found.values() if alert["rule"] == rule]


def is_over(receiver: HttpReceiver, n: int) -> bool:
    return kinds_of(receiver, n) >= BOTH


def pass_time(one: AlertProcess, seconds: float) -> None:
    """Let stream time go on, by events that no rule matches."""
    for _ in range(round(2 * seconds)):
        one.publish(900, "update", name="siren")


@pytest.mark.parametrize("n_kills", [1, 3])
def test_a_sound_that_is_not_decided_survives_kills(n_kills: int) -> None:
    rules = [RULE, MERGED | {"alert": MERGED_NAME}]
    with http_receiver() as receiver, alert_process(hook(receiver), rules) as one:
        begin(one, receiver)
        one.publish(1, "begin", stream="garden")
        one.publish(2, "begin", stream="yard")
        for number in range(n_kills):
            # the plain rule says that what came before is evaluated and saved
            one.publish(10 + number, "begin", "end", stream=f"probe-{number}", name="bark")
            wait_for(partial(is_over, receiver, 10 + number), "the plain rule")
            one.stop(signal.SIGKILL)
            one.start()
        pass_time(one, 12)
        wait_for(lambda: bool(alerts_of(receiver, MERGED_NAME)), "the merged alert")
        one.publish(1, "end", stream="garden")
        one.publish(2, "end", stream="yard")
        pass_time(one, 4)
        wait_for(lambda: kinds_of(receiver, 1, MERGED_NAME) >= BOTH, "its end")
        first, last = alerts_of(receiver, MERGED_NAME)
        assert first["id"] == last["id"]
        assert first["events"] == ["e1", "e2"]
        assert first["streams"] == ["garden", "yard"]
        assert first["best"] == "e1"
