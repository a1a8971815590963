"""What a real detector reports and what a trial makes of its scores are the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from detector_events import EPOCH
from history_samples import SECOND, published
from loud_frames import loud_frames, noise_bursts
from reactive_model import tones_and_noise
from sample_messages import T0_NS

from ast_stream.detect import Detector
from ast_stream.detect.parameters import DecisionParameters, model_facts, resolve_parameters
from ast_stream.errors import UsageError
from ast_stream.history.score_log import ScoreLog, ScoreReader
from ast_stream.history.trial import Heard, TrialResult, refuse_other_smoothing, try_out
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import EventMessage, FeedMessage, Gap, Scores, ScoresHeader
from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.sample_clock import SampleClock
from ast_stream.settings.detection import ClassSettings, DetectionDefaults, DetectionSettings

CLOCK = SampleClock.from_start(T0_NS)
ALWAYS = (T0_NS - 10 * SECOND, T0_NS + 10_000 * SECOND)
HALF_STEP = 2.0**-12  # of a float16 near 1: how far what the feed carries may be from the score
STREAM = "mic"
GAPS = [Gap(STREAM, EPOCH, 180_123, 40_000, "overflow"), Gap(STREAM, EPOCH, 330_000, 1_500, "x")]


@dataclass
class Live:
    """What a detector has published about a recording."""

    events: list[EventMessage]
    scores: list[FeedMessage]
    parameters: DecisionParameters
    n_samples: int
    tagger: Tagger


def heard_live(
    tagger: Tagger, pcm: Pcm16, detection: DetectionSettings, hop_s: float, *, is_over: bool = True
) -> Live:
    """Return what is published while a stream with gaps is heard to its end."""
    scores: list[FeedMessage] = []

    def on_scores(found: Scores) -> None:
        header = ScoresHeader(
            stream=found.stream, epoch=found.epoch, end_sample=found.end_sample,
            time_ns=CLOCK.time_ns(found.end_sample),
        )  # fmt: skip
        message = published(header, len(scores) + 1, scores=found.scores.astype(np.float16))
        scores.append(FeedMessage.decode(message.encode()))

    detector = Detector(tagger, detection, hop_s=hop_s, on_scores=on_scores)
    detector.open(STREAM, EPOCH)
    events = []
    at, gaps = 0, list(GAPS)
    while at < len(pcm):
        if gaps and at == gaps[0].start_sample:
            events += detector.gap(gaps[0])
            at = gaps.pop(0).stop_sample
        stop = min(at + 1600, len(pcm), gaps[0].start_sample if gaps else len(pcm))
        detector.push(STREAM, at, pcm[at:stop])
        events += detector.run()
        at = stop
    if is_over:
        events += detector.flush(STREAM)
    messages = [
        EventMessage.of(
            event, CLOCK, labels={"room": "hall"}, audio_end=len(pcm),
            scored=CLOCK.moment(event.at_sample), model="trial",
        )
        for event in events
    ]  # fmt: skip
    return Live(messages, scores, detector.parameters, len(pcm), tagger)


def logged(live: Live, folder: Path) -> ScoreReader:
    with ScoreLog(folder, 64 * 1024 * 1024) as log:
        log.set_model("sha256:tiny", live.parameters.labels)
        for message in live.scores:
            log.append(message)
    return ScoreReader(folder)


def heard(live: Live) -> Heard:
    return Heard(GAPS, {(STREAM, EPOCH): live.n_samples}, {STREAM: {"room": "hall"}})


def assert_same(found: TrialResult, live: Live) -> None:
    """Hold a trial against what was published: the same but for rounded scores."""
    exact = ("type", "id", "class_", "onset_ns", "offset_ns", "reason", "duration_reliable",
             "onset_sample", "offset_sample", "uncertainty_s", "labels", "epoch")  # fmt: skip
    assert [[getattr(m, name) for name in exact] for m in found.messages] == [
        [getattr(m, name) for name in exact] for m in live.events
    ]
    for one, other in zip(found.messages, live.events, strict=True):
        for name in ("score", "peak", "mean"):
            ours, theirs = getattr(one, name), getattr(other, name)
            assert (ours is None) == (theirs is None)
            # both are rounded to four digits on the feed
            assert ours is None or abs(ours - theirs) <= HALF_STEP + 1e-4


@pytest.fixture(scope="module")
def by_windows(checkpoint: Path) -> Live:
    tagger = load_tagger(str(checkpoint), device="cpu", precision="fp32", attention="math")
    detection = DetectionSettings(
        defaults=DetectionDefaults(onset_threshold=0.5, confirm_s=0.5, hold_s=0.3),
        classes={
            "Bark": ClassSettings(smoothing_s=0.4, min_duration_s=0.3),
            "Siren": ClassSettings(refractory_s=1.0, max_duration_s=2.0),
        },
    )
    return heard_live(tagger, tones_and_noise(26.0), detection, 0.25)


@pytest.fixture(scope="module")
def by_frames() -> Live:
    pcm, _ = noise_bursts(7)
    return heard_live(loud_frames(), pcm, DetectionSettings(), 0.5)


def test_trial_by_windows_is_what_was_published(by_windows: Live, tmp_path: Path) -> None:
    reader = logged(by_windows, tmp_path)
    found = try_out(reader, STREAM, *ALWAYS, by_windows.parameters, heard=heard(by_windows))
    assert len({message.id for message in by_windows.events}) >= 6
    assert {message.class_ for message in by_windows.events} == {"bark", "siren"}
    assert_same(found, by_windows)
    assert (found.holes, found.n_foreign) == ([], 0)
    assert found.n_windows == len(by_windows.scores)


def test_trial_by_frames_is_what_was_published(by_frames: Live, tmp_path: Path) -> None:
    reader = logged(by_frames, tmp_path)
    found = try_out(reader, STREAM, *ALWAYS, by_frames.parameters, heard=heard(by_frames))
    assert len({message.id for message in by_frames.events}) >= 6
    assert_same(found, by_frames)
    assert found.holes == []


def test_trial_of_other_settings_is_what_they_would_have_published(
    by_frames: Live, tmp_path: Path
) -> None:
    reader = logged(by_frames, tmp_path)
    pcm, _ = noise_bursts(7)
    other = DetectionSettings(
        classes={
            "Bark": ClassSettings(onset_threshold=0.9, hold_s=0.3),
            "Siren": ClassSettings(confirm_s=1.2, refractory_s=3.0),
        }
    )
    live = heard_live(by_frames.tagger, pcm, other, 0.5)
    assert len(live.events) != len(by_frames.events)
    assert_same(try_out(reader, STREAM, *ALWAYS, live.parameters, heard=heard(live)), live)


def test_trial_of_one_class_in_a_part_of_the_time_finds_these_events(
    by_windows: Live, tmp_path: Path
) -> None:
    reader = logged(by_windows, tmp_path)
    since, until = T0_NS + 5 * SECOND, T0_NS + 30 * SECOND
    found = try_out(
        reader, STREAM, since, until, by_windows.parameters,
        classes=["siren"], heard=heard(by_windows),
    )  # fmt: skip
    expected = [
        message
        for message in by_windows.events
        if message.class_ == "siren" and since <= message.onset_ns < until
    ]
    assert {message.id for message in expected} < {message.id for message in by_windows.events}
    assert [(m.id, m.type) for m in found.messages] == [(m.id, m.type) for m in expected]
    ends = [message for message in expected if message.type == "end"]
    assert [(event.id, event.offset_ns) for event in found.events] == [
        (end.id, end.offset_ns) for end in sorted(ends, key=lambda end: (end.onset_ns, end.id))
    ]


def test_event_that_has_not_ended_is_open(by_windows: Live, tmp_path: Path) -> None:
    begin = next(message for message in by_windows.events if message.type == "begin")
    kept = [m for m in by_windows.scores if m.body["end_sample"] <= (begin.at_sample or 0)]
    cut = Live(by_windows.events, kept, by_windows.parameters, 0, by_windows.tagger)
    found = try_out(logged(cut, tmp_path), STREAM, *ALWAYS, by_windows.parameters)
    assert [(event.id, event.is_open) for event in found.events] == [(begin.id, True)]


def test_time_without_scores_is_said_and_ends_what_was_open(
    by_windows: Live, tmp_path: Path
) -> None:
    begin = next(message for message in by_windows.events if message.type == "begin")
    at = begin.at_sample or 0
    kept = [
        message
        for message in by_windows.scores
        if not at < message.body["end_sample"] <= at + 48_000
    ]
    cut = Live(by_windows.events, kept, by_windows.parameters, 0, by_windows.tagger)
    found = try_out(
        logged(cut, tmp_path), STREAM, *ALWAYS, by_windows.parameters, heard=heard(by_windows)
    )
    (hole,) = found.holes
    assert hole == (CLOCK.time_ns(at), CLOCK.time_ns(at + 48_000 + 4_000))
    first = next(event for event in found.events if event.id == begin.id)
    assert (first.reason, first.offset_sample) == ("gap", at)


def test_scores_of_another_model_are_counted_and_not_judged(
    by_windows: Live, by_frames: Live, tmp_path: Path
) -> None:
    reader = logged(by_windows, tmp_path)
    found = try_out(reader, STREAM, *ALWAYS, by_frames.parameters)
    assert (found.messages, found.n_windows) == ([], 0)
    assert found.n_foreign == len(by_windows.scores)


def test_what_the_log_cannot_answer_is_refused(by_windows: Live, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a class of the model, got 'Barkk'"):
        try_out(ScoreReader(tmp_path), STREAM, *ALWAYS, by_windows.parameters, classes=["Barkk"])
    facts = by_windows.tagger
    smoother = DetectionSettings(classes={"Siren": ClassSettings(smoothing_s=3.0)})
    tried = resolve_parameters(
        smoother, model_facts(facts.labels, facts.window_s, facts.metadata), 0.25
    )
    with pytest.raises(UsageError, match="expected that of the configuration for Bark"):
        refuse_other_smoothing(by_windows.parameters, tried)
    refuse_other_smoothing(by_windows.parameters, by_windows.parameters)
