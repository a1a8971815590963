"""The decision stage on given scores: confirmation, hysteresis, hold, limits, laws."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_stream.detect.decision import Decision, SlotNames
from ast_stream.detect.parameters import MAX_RISE_S, FrameSteps, ModelFacts, resolve_parameters
from ast_stream.detect.state import NEVER
from ast_stream.errors import UsageError
from ast_stream.messages.event import Event
from ast_stream.settings.detection import ClassSettings, DetectionDefaults, DetectionSettings
from ast_stream.units import seconds_to_samples

HOP_S, WINDOW_S, RISE_S = 0.25, 2.0, 0.5
HOP, WINDOW = 4_000, 32_000
LABELS = ["Bark", "Siren", "Background"]


def detection(**defaults: Any) -> DetectionSettings:
    chosen = {"onset_threshold": 0.5, "confirm_s": 0.25, "hold_s": 0.5} | defaults
    return DetectionSettings(defaults=DetectionDefaults(**chosen))


def build(
    what: DetectionSettings,
    n_slots: int = 1,
    off: Sequence[str] = (),
    frames: FrameSteps | None = None,
) -> Decision:
    names = SlotNames(8)
    for number in range(n_slots):
        names.add(f"mic-{number}", "ab" * 8)
    facts = ModelFacts(
        LABELS,
        WINDOW_S,
        [0.5] * 3,
        [RISE_S] * 3,
        [RISE_S] * 3,
        [0.1] * 3,
        [0.75] * 3,
        background=["Background"],
        off=off,
        frames=frames,
    )
    return Decision(resolve_parameters(what, facts, HOP_S), names)


def feed(
    decision: Decision, scores: npt.ArrayLike, *, slot: int = 0, first_hop: int = 40
) -> list[Event]:
    """Step one slot through scores of class 0 (hops,) or of all classes (hops, 3)."""
    rows = np.asarray(scores, np.float32)
    if rows.ndim == 1:
        rows = np.stack([rows, np.zeros_like(rows), np.zeros_like(rows)], axis=1)
    events = []
    for hop, row in enumerate(rows):
        end = np.array([(first_hop + hop) * HOP])
        events += decision.step(
            np.array([slot]),
            end,
            row[None],
            context_starts=np.array([0]),
            first_scored=np.array([HOP]),
            audio_ends=end,
        )
    return events


def kinds(events: list[Event]) -> list[str]:
    return [event.type for event in events]


def test_event_begins_lasts_and_ends_once() -> None:
    events = feed(build(detection()), [0.1, *[0.9] * 10, *[0.1] * 4])
    assert kinds(events) == ["begin", "update", "update", "end"]
    assert len({event.id for event in events}) == 1
    assert events[-1].reason == "quiet"
    assert events[-1].peak == pytest.approx(0.9)


def test_one_window_is_not_enough_when_two_of_three_must_agree() -> None:
    what = detection(confirm_s=0.75)
    assert feed(build(what), [0.9, 0.1, 0.1, 0.9, 0.1, 0.1]) == []
    begun = feed(build(what), [0.9, 0.1, 0.9])
    assert kinds(begun) == ["begin"]
    assert begun[0].at_sample == 42 * HOP


def test_onset_is_backdated_to_the_first_window_of_the_confirmation() -> None:
    what = detection(confirm_s=0.75)
    quick = feed(build(what), [0.9, 0.9])
    slow = feed(build(what), [0.9, 0.1, 0.9])
    assert quick[0].onset_sample == slow[0].onset_sample


def test_event_lasts_through_scores_between_the_two_thresholds() -> None:
    assert kinds(feed(build(detection()), [0.9, *[0.4] * 3])) == ["begin"]


def test_short_dip_within_hold_does_not_end_the_event() -> None:
    assert "end" not in kinds(feed(build(detection()), [0.9, 0.1, 0.1, 0.9, 0.9]))


def test_click_shorter_than_min_duration_makes_no_event() -> None:
    seen = (WINDOW - seconds_to_samples(RISE_S)) // HOP  # how long a click stays visible
    what = detection(min_duration_s=1.0)
    assert feed(build(what), [*[0.9] * seen, *[0.1] * 5]) == []
    long = feed(build(what), [*[0.9] * (seen + 6), *[0.1] * 5])
    assert kinds(long)[0] == "begin"
    assert kinds(long)[-1] == "end"
    assert (long[-1].duration_s or 0.0) >= 1.0


def test_endless_sound_is_cut_at_max_duration_and_reported_anew() -> None:
    events = feed(build(detection(max_duration_s=2.0)), [0.9] * 24)
    ends = [event for event in events if event.type == "end"]
    assert [event.reason for event in ends] == ["max_duration"] * len(ends)
    assert len(ends) >= 2
    assert all(event.duration_s == pytest.approx(2.0) for event in ends[:1])


def test_refractory_time_keeps_a_class_silent_after_its_event() -> None:
    scores = [0.9, 0.9, *[0.0] * 9, 0.9, 0.9, *[0.0] * 4]
    assert kinds(feed(build(detection()), scores)).count("begin") == 2
    assert kinds(feed(build(detection(refractory_s=10.0)), scores)).count("begin") == 1


def test_background_and_disabled_classes_never_make_events() -> None:
    what = DetectionSettings(
        defaults=DetectionDefaults(onset_threshold=0.5, confirm_s=0.25),
        classes={"siren": ClassSettings(enabled=False)},
    )
    assert feed(build(what), np.tile([0.0, 0.9, 0.9], (5, 1))) == []


@pytest.mark.parametrize(("enabled", "n_begun"), [(None, 0), (True, 1), (False, 0)])
def test_a_class_that_the_checkpoint_leaves_off_is_on_where_the_settings_say_so(
    enabled: bool | None, n_begun: int
) -> None:
    what = DetectionSettings(
        defaults=DetectionDefaults(onset_threshold=0.5, confirm_s=0.25),
        classes={"Bark": ClassSettings(enabled=enabled)},
    )
    assert kinds(feed(build(what, off=["Bark"]), [0.9] * 5)).count("begin") == n_begun


def test_class_settings_override_the_defaults_by_label_or_slug() -> None:
    what = DetectionSettings(
        defaults=DetectionDefaults(onset_threshold=0.5, confirm_s=0.25),
        classes={"Bark": ClassSettings(onset_threshold=0.95)},
    )
    assert feed(build(what), [0.9] * 5) == []


def test_unknown_class_is_refused_with_the_near_name() -> None:
    what = DetectionSettings(classes={"Brak": ClassSettings()})
    with pytest.raises(UsageError, match="'Brak'; did you mean 'Bark'"):
        build(what)


def test_confirmation_longer_than_64_hops_is_refused() -> None:
    with pytest.raises(UsageError, match=r"at most 16 s at a hop of 0\.25 s, got 20"):
        build(detection(confirm_s=20.0))


def test_confirmation_over_exactly_64_hops_works() -> None:
    decision = build(detection(confirm_s=16.0))
    assert feed(decision, [0.9] * 38) == []
    assert kinds(feed(decision, [0.9], first_hop=78)) == ["begin"]


def test_close_ends_every_open_event_with_the_reason() -> None:
    decision = build(detection())
    feed(decision, np.tile([0.9, 0.9, 0.0], (3, 1)))
    ended = decision.close(0, "gap", 43 * HOP, 43 * HOP)
    assert [(event.type, event.reason) for event in ended] == [("end", "gap")] * 2
    assert decision.close(0, "gap", 43 * HOP, 43 * HOP) == []


FRAMES = FrameSteps(frame_s=HOP_S, delay_s=0.0)


@pytest.mark.parametrize(
    ("scores", "first_hop"),
    [
        ([0.0, 0.1, 0.25, 0.3, 0.9, 0.9], 42),  # 0.4 of the threshold is enough to have begun
        ([0.3, 0.3, 0.1, 0.3, 0.9, 0.9], 43),  # what came before a dip is another sound
        ([0.0, 0.0, 0.0, 0.9, 0.9], 43),
    ],
)
def test_a_sound_that_frames_score_ever_higher_began_with_the_first_of_them(
    scores: list[float], first_hop: int
) -> None:
    events = feed(build(detection(confirm_s=0.5), frames=FRAMES), scores)
    assert events[0].onset_sample == (first_hop - 1) * HOP  # the start of that frame


def test_an_onset_lies_no_farther_back_than_sounds_take_to_be_recognised() -> None:
    events = feed(build(detection(), frames=FRAMES), [*[0.3] * 20, 0.9])
    assert events[0].onset_sample == 59 * HOP - seconds_to_samples(MAX_RISE_S)
    assert events[0].uncertainty_s >= MAX_RISE_S / 2


def test_windows_rise_while_a_sound_enters_them_so_that_only_their_rise_times_count() -> None:
    slow = feed(build(detection()), [0.3, 0.3, 0.9])
    quick = feed(build(detection()), [0.0, 0.0, 0.9])
    assert slow[0].onset_sample == quick[0].onset_sample


score_rows = st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.55, 0.9]), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(scores=score_rows, cut=st.integers(0, 60), frames=st.sampled_from([None, FRAMES]))
def test_exported_state_goes_on_exactly_where_it_was(
    scores: list[float], cut: int, frames: FrameSteps | None
) -> None:
    what = detection(confirm_s=0.75, refractory_s=0.5, min_duration_s=0.3, max_duration_s=3.0)
    whole = feed(build(what, frames=frames), scores)
    first, second = build(what, frames=frames), build(what, frames=frames)
    events = feed(first, scores[:cut])
    second.restore(0, first.export(0))
    events += feed(second, scores[cut:], first_hop=40 + cut)
    assert events == whole


@settings(max_examples=100, deadline=None, derandomize=True)
@given(scores=score_rows, frames=st.sampled_from([None, FRAMES]))
def test_events_of_a_class_alternate_and_do_not_overlap(
    scores: list[float], frames: FrameSteps | None
) -> None:
    decision = build(detection(hold_s=0.25), frames=frames)
    events = feed(decision, scores)
    end = (40 + len(scores) - 1) * HOP
    events += decision.close(0, "shutdown", end, end)
    edges = [event for event in events if event.type != "update"]
    assert kinds(edges) == ["begin", "end"] * (len(edges) // 2)
    last_offset = NEVER
    for begin, done in zip(edges[::2], edges[1::2], strict=True):
        assert begin.id == done.id
        assert done.offset_sample is not None
        assert last_offset <= begin.onset_sample <= done.offset_sample
        last_offset = done.offset_sample


@settings(max_examples=30, deadline=None, derandomize=True)
@given(rows=st.lists(score_rows, min_size=2, max_size=4))
def test_streams_decided_together_are_decided_as_alone(rows: list[list[float]]) -> None:
    n_hops = max(len(row) for row in rows)
    padded = np.array([row + [0.0] * (n_hops - len(row)) for row in rows], np.float32)
    together = build(detection(confirm_s=0.75), n_slots=len(rows))
    slots = np.arange(len(rows))
    events = []
    for hop in range(n_hops):
        scores = np.zeros((len(rows), 3), np.float32)
        scores[:, 0] = padded[:, hop]
        ends = np.full(len(rows), (40 + hop) * HOP)
        events += together.step(
            slots,
            ends,
            scores,
            context_starts=np.zeros(len(rows), np.int64),
            first_scored=np.full(len(rows), HOP),
            audio_ends=ends,
        )
    for slot in slots:
        alone = build(detection(confirm_s=0.75), n_slots=len(rows))
        expected = feed(alone, padded[slot], slot=int(slot))
        assert [event for event in events if event.stream == f"mic-{slot}"] == expected
