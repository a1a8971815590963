"""`for` against an oracle: the union of sounds, its pauses, and the moment it was long enough."""

from __future__ import annotations

import itertools
import random

import pytest
from rule_bodies import at, engine_of, event, health, news, restarted, rules_from, sound

from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.units import NS_PER_SECOND

Sounds = list[tuple[int, int]]  # onset and offset in seconds

CLASSES = ("Bark", "Siren", "Alarm", "Knock")
LATE_S, SMEAR_S = 1, 3


def runs_of(sounds: Sounds, tolerate: int) -> list[list[tuple[int, int]]]:
    """Return the union of sounds as disjoint spans, those of one run together."""
    runs: list[list[tuple[int, int]]] = []
    for onset, offset in sorted(sounds):
        if runs and onset - runs[-1][-1][1] <= tolerate:
            first, last = runs[-1][-1]
            if onset <= last:
                runs[-1][-1] = (first, max(last, offset))
            else:
                runs[-1].append((onset, offset))
        else:
            runs.append([(onset, offset)])
    return runs


def firings(sounds: Sounds, needed: int, tolerate: int) -> list[int]:
    """Return when each run that is long enough has sounded for `needed` seconds."""
    found = []
    for run in runs_of(sounds, tolerate):
        left = needed
        for onset, offset in run:
            if offset - onset >= left:
                found.append(onset + left)
                break
            left -= offset - onset
    return found


def random_sounds(random_: random.Random) -> Sounds:
    onsets = [random_.randint(0, 120) for _ in range(random_.randint(1, 14))]
    return [(onset, onset + random_.randint(1, 25)) for onset in onsets]


@pytest.mark.slow
@pytest.mark.parametrize("timing", [(0, 0), (LATE_S, SMEAR_S)])
@pytest.mark.parametrize("restarts", [False, True])
def test_duration_of_overlapping_sounds_of_a_group_is_that_of_their_union(
    timing: tuple[int, int], restarts: bool
) -> None:
    late, smear = timing
    lateness = DetectionTiming(late * NS_PER_SECOND, smear * NS_PER_SECOND)
    random_ = random.Random(7)
    for _ in range(150):
        sounds, needed, tolerate = (
            random_sounds(random_),
            random_.randint(2, 40),
            random_.choice([0, 0, 1, 4]),
        )
        rules = rules_from(
            f"alert: long, match: {{}}, for: {needed}s, tolerate: {tolerate}s, group_by: []"
        )
        engine = engine_of(rules, lateness)
        bodies = []
        for n, (onset, offset) in enumerate(sounds):
            name = CLASSES[n % len(CLASSES)]
            begin = event("begin", f"e{n}", name, onset + late, onset, stream=f"mic-{n % 3}")
            end_at = max(onset + late, offset + smear)
            end = event("end", f"e{n}", name, end_at, onset, offset, stream=f"mic-{n % 3}")
            bodies += [begin, end]
        found = []
        for body in sorted(bodies, key=lambda body: str(body["captured"])):
            found += engine.on_message("event/", body)
            if restarts:
                engine = restarted(engine, rules, timing=lateness)
        found += engine.advance(at(300))
        fired = [seconds for seconds, _, state in news(found) if state == "firing"]
        expected = [seconds + smear for seconds in firings(sounds, needed, tolerate)]
        assert fired == expected, (sounds, needed, tolerate)
        assert len(news(found)) == 2 * len(expected), "each alert ends"


def test_sound_that_begins_while_another_is_open_does_not_delay_the_alert() -> None:
    rules = rules_from("alert: long, match: {}, for: 10s, group_by: []")
    engine = engine_of(rules, DetectionTiming.of(2.56, 0.5))
    engine.on_message("event/", event("begin", "a", "Bark", 1.5, 0))
    engine.on_message("event/", event("begin", "b", "Siren", 9.5, 8))
    found = engine.advance(at(20))
    smear_s = DetectionTiming.of(2.56, 0.5).smear_ns / NS_PER_SECOND
    assert news(found) == [(10 + smear_s, "long", "firing")]


def test_alert_names_only_the_sounds_of_its_own_run() -> None:
    """That two sounds were apart is known only when the first has ended, late."""
    rules = rules_from("alert: long, match: {}, for: 4s, group_by: []")
    engine = engine_of(rules, DetectionTiming(0, 3 * NS_PER_SECOND))
    bodies = [
        event("begin", "a", "Bark", 0, 0),
        event("begin", "b", "Siren", 4, 4),
        event("end", "a", "Bark", 5, 0, 2),
        event("end", "b", "Siren", 13, 4, 10),
    ]
    found = [transition for body in bodies for transition in engine.on_message("event/", body)]
    (fired,) = [
        transition
        for transition in found + engine.advance(at(60))
        if transition.to_state == "firing"
    ]
    assert (fired.alert.events, fired.alert.started_ns) == (("b",), at(4))


def test_thousands_of_short_sounds_within_a_long_one_keep_the_memory_small() -> None:
    rules = rules_from("alert: long, match: {}, for: 2h, tolerate: 5s, group_by: []")
    engine = engine_of(rules)
    engine.on_message("event/", event("begin", "long", "Siren", 0, 0))
    for n in range(1, 2000):
        for body in sound(f"e{n}", "Bark", n / 4, n / 4 + 0.1):
            engine.on_message("event/", body)
    (instance,) = engine.export()["instances"]
    assert len(instance["trigger_state"].get("spans", [])) <= 1
    assert engine.on_message("event/", event("end", "long", "Siren", 600, 0, 600)) == []
    (instance,) = engine.export()["instances"]
    assert instance["trigger_state"]["active_ns"] == 600 * NS_PER_SECOND


def test_no_sound_lasts_while_nothing_is_heard_of_its_stream() -> None:
    named = ("hall", "yard")
    engine = engine_of(
        rules_from(
            *(f"alert: {name}, match: {{stream: {{id: {name}}}}}, for: 20s" for name in named)
        )
    )
    bodies = [
        event("begin", "b", "Bark", 1, 0),
        event("begin", "c", "Bark", 1, 0, stream="yard"),
        event("update", "b", "Bark", 4, 0),
        health(11, "missing", silence_s=6.5),
    ]
    found = [engine.on_message("health/" if "state" in body else "event/", body) for body in bodies]
    assert news([*itertools.chain(*found), *engine.advance(at(40))]) == [(20, "yard", "firing")]
    # the capture process goes on, nothing was lost, and it sounds still
    update = event("update", "b", "Bark", 41, 0)
    assert news(engine.on_message("event/", update)) == [(41, "hall", "firing")]
