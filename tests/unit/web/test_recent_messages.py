"""Where a browser that was away goes on."""

from __future__ import annotations

from itertools import pairwise

import pytest
from sample_messages import event_message

from ast_stream.machine_clock import Moment
from ast_stream.messages.event import FeedMessage, Stamp
from ast_stream.web.recent_messages import RecentMessages, format_place, parse_place


def message(boot: str, seq: int, previous: int) -> FeedMessage:
    stamp = Stamp(boot, seq, Moment(0, 0), previous=previous)
    return FeedMessage.of(event_message(f"{boot}{seq}"), stamp)


def recent_of(*seqs: int, boot: str = "b1", max_messages: int = 100) -> RecentMessages:
    recent = RecentMessages(max_messages)
    for previous, seq in pairwise((0, *seqs)):
        recent.add("worker", message(boot, seq, previous))
    return recent


def seqs_after(recent: RecentMessages, place: str) -> list[int]:
    return [
        entry.message.position[1] for entry in recent.after(parse_place(place), ["worker"]).entries
    ]


@pytest.mark.parametrize(("place", "missed"), [("b1:3", [7, 9]), ("b1:9", []), ("b1:5", [7, 9])])
def test_what_came_after_the_place_is_missed(place: str, missed: list[int]) -> None:
    assert seqs_after(recent_of(2, 3, 7, 9), place) == missed


def test_a_place_of_the_boot_before_is_followed_by_the_rest_of_it_and_the_next_boot() -> None:
    recent = recent_of(2, 5)
    recent.add("worker", message("b2", 1, 0))
    assert seqs_after(recent, "b1:2") == [5, 1]


def test_what_was_forgotten_is_for_the_log() -> None:
    recent = recent_of(2, 3, 7, 9, max_messages=2)
    assert seqs_after(recent, "b1:3") == [7, 9]  # the place of the last one forgotten
    backlog = recent.after([("b1", 2)], ["worker"])
    assert (backlog.entries, backlog.unknown, backlog.feeds) == ([], [("b1", 2)], ["worker"])


def test_before_the_first_message_every_place_is_for_the_log() -> None:
    backlog = RecentMessages(5).after([("b1", 2)], ["worker"])
    assert (backlog.unknown, backlog.feeds) == ([("b1", 2)], ["worker"])


def test_each_publisher_has_a_place_of_its_own() -> None:
    recent = recent_of(4)
    recent.add("attic", message("x", 8, 0))
    assert recent.place == "x:8,b1:4"
    assert seqs_after(recent, "x:8,b1:4") == []
    assert seqs_after(recent, "x:0,b1:4") == [8]


def test_a_place_is_read_as_it_is_written() -> None:
    positions = [("boot-1", 0), ("b", 2**53)]
    assert parse_place(format_place(positions)) == positions


@pytest.mark.parametrize(
    "text", ["", "b", "b:", ":1", "b:1,", "b:-1", f"b:{2**53 + 1}", "b:1\n", "a" * 5000]
)
def test_what_is_no_place_has_no_positions(text: str) -> None:
    assert parse_place(text) == []
