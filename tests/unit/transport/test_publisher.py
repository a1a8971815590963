"""What a run publishes of what the one before it, which was killed, has published already."""

from pathlib import Path
from typing import Any

from sample_messages import EPOCH, STREAM

from ast_stream.machine_clock import read_clocks
from ast_stream.messages.event import EndReason, Event, EventType
from ast_stream.messages.query import ReplayPage
from ast_stream.sample_clock import SampleClock
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.publisher import DeduplicatingPublisher, FeedPublisher
from ast_stream.transport.requester import Requester


class _Unheard:
    def send(self, frames: list[bytes]) -> bool:
        return True

    def has_reader(self, topic: bytes) -> bool:
        return False

    def readers(self, topic: bytes) -> list[Requester]:
        return []


def _event(
    type: EventType, at_sample: int, reason: EndReason | None = None, onset: int = 8_000
) -> Event:
    offset = at_sample if type == "end" else None
    mean = 0.5 if type == "end" else None
    return Event(
        type, "id1", STREAM, EPOCH, 0, "Bark", 0.8, 0.9, mean, onset, offset, 0.1, at_sample, reason
    )  # fmt: skip


def _run(folder: Path, boot: str, events: list[Event], from_sample: int = 0) -> None:
    log = EventLog(folder)
    feed = FeedPublisher(_Unheard(), log, boot)
    publisher = DeduplicatingPublisher(feed, log, "sha256:tiny", read_clocks)
    publisher.begin_epoch(STREAM, EPOCH, from_sample)
    clock = SampleClock.from_start(0)
    for event in events:
        message = publisher.event_message(event, clock, {}, event.at_sample)
        publisher.publish_event(event, message)
    log.close()


def _bodies(folder: Path) -> list[dict[str, Any]]:
    log = EventLog(folder)
    page = log.replay(None)
    assert isinstance(page, ReplayPage)
    log.close()
    return [message.body for message in page.messages if message.kind == "event"]


def _published(folder: Path) -> list[tuple[str, int]]:
    return [(body["type"], body["at_sample"]) for body in _bodies(folder)]


def test_an_event_that_is_decided_at_another_sample_after_a_kill_begins_once(
    tmp_path: Path,
) -> None:
    _run(tmp_path, "a" * 16, [_event("begin", 24_000)])
    # the capture process was replaced: its last frames are decided without later windows
    again = [_event("begin", 16_000), _event("end", 16_000, "gap")]
    _run(tmp_path, "b" * 16, again, from_sample=16_000)
    assert _published(tmp_path) == [("begin", 24_000), ("end", 16_000)]


def test_an_event_ends_with_the_onset_with_which_it_was_published_before_a_kill(
    tmp_path: Path,
) -> None:
    _run(tmp_path, "a" * 16, [_event("begin", 24_000)])
    again = [
        _event("begin", 16_000, onset=12_000),
        _event("update", 32_000, onset=12_000),
        _event("end", 40_000, "quiet", onset=12_000),
    ]
    _run(tmp_path, "b" * 16, again, from_sample=16_000)
    bodies = _bodies(tmp_path)
    assert [body["type"] for body in bodies] == ["begin", "update", "end"]
    assert {(body["onset_sample"], body["onset"]) for body in bodies} == {
        (8_000, bodies[0]["onset"])
    }
    assert bodies[-1]["duration_s"] == 2.0


def test_messages_that_are_derived_again_after_a_kill_are_published_once(tmp_path: Path) -> None:
    _run(tmp_path, "a" * 16, [_event("begin", 16_000), _event("update", 24_000)])
    events = [_event("begin", 16_000), _event("update", 24_000), _event("end", 32_000, "quiet")]
    _run(tmp_path, "b" * 16, events)
    assert _published(tmp_path) == [("begin", 16_000), ("update", 24_000), ("end", 32_000)]
