from __future__ import annotations

from typing import Any

import pytest

from ast_stream.recorder.policy import Decision, Policies, Subject
from ast_stream.settings.recorder import ClipPolicy


def policies(*sections: dict[str, Any]) -> Policies:
    return Policies([ClipPolicy.model_validate(section) for section in sections])


def subject(
    class_: str = "bark",
    peak: float = 0.7,
    *,
    stream: str = "porch",
    is_over: bool = True,
    is_alerted: bool = False,
    is_best: bool = False,
) -> Subject:
    return Subject(class_, stream, peak, is_over, is_alerted, is_best)


def test_the_first_policy_that_fits_counts() -> None:
    chosen = policies(
        {"classes": ["Speech"], "when": "never"},
        {"classes": ["Dog bark", "Bark"], "streams": ["porch"], "pre_s": 1.0},
        {"when": "alert"},
    )
    assert chosen.decide(subject("speech")) == "drop"
    assert chosen.decide(subject("bark")) == "keep"
    assert chosen.decide(subject("bark", stream="yard")) == "wait"
    assert chosen.decide(subject("bark", stream="yard", is_alerted=True)) == "keep"
    policy = chosen.chosen(subject("bark"))
    assert policy is not None
    assert policy.pre_s == 1.0


def test_of_an_alert_the_best_alone_can_be_kept() -> None:
    chosen = policies({"when": "best"})
    assert chosen.decide(subject()) == "wait"
    assert chosen.decide(subject(is_alerted=True)) == "wait"
    assert chosen.decide(subject(is_alerted=True, is_best=True)) == "keep"


def test_without_a_policy_that_fits_nothing_is_kept() -> None:
    assert policies().decide(subject()) == "drop"
    assert policies({"classes": ["Siren"]}).decide(subject()) == "drop"
    assert policies({"min_score": 0.9}).decide(subject(peak=0.89)) == "drop"
    assert policies({"min_score": 0.9}).decide(subject(peak=0.9)) == "keep"


@pytest.mark.parametrize(
    ("peak", "while_open", "when_over"), [(0.5, "wait", "drop"), (0.95, "keep", "keep")]
)
def test_a_score_may_rise_while_the_event_lasts(
    peak: float, while_open: Decision, when_over: Decision
) -> None:
    chosen = policies({"min_score": 0.9})
    assert chosen.decide(subject(peak=peak, is_over=False)) == while_open
    assert chosen.decide(subject(peak=peak)) == when_over


def test_a_policy_that_a_higher_score_may_lead_to_leaves_it_open() -> None:
    chosen = policies({"min_score": 0.9, "when": "never"}, {"when": "event"})
    assert chosen.decide(subject(peak=0.5, is_over=False)) == "wait"
    assert chosen.decide(subject(peak=0.5)) == "keep"
    assert chosen.decide(subject(peak=0.9, is_over=False)) == "drop"
