from __future__ import annotations

import json
from typing import Any

from sample_messages import event_message, gap_message

from ast_stream.forward.cloud_events import lost, of_feed, of_interval
from ast_stream.forward.output import OutgoingMessage
from ast_stream.machine_clock import Moment
from ast_stream.messages.event import EventMessage, FeedMessage, GapMessage, Stamp
from ast_stream.settings.fleet import BoxIdentity

ATTIC = BoxIdentity("home", "attic")


def published(content: EventMessage | GapMessage, boot: str = "b1", seq: int = 1) -> FeedMessage:
    return FeedMessage.of(content, Stamp(boot, seq, Moment(1_700_000_000_000_000_000, 5), 0))


def forwarded(content: EventMessage | GapMessage, boot: str = "b1") -> OutgoingMessage:
    found = of_feed(published(content, boot), ATTIC)
    assert found is not None
    return found


def body_of(message: OutgoingMessage) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(message.body)
    return body


def test_an_event_is_a_cloud_event_with_the_body_of_the_feed() -> None:
    message = forwarded(event_message("id7", "end"))
    assert message.parts == ("home", "attic", "event", "porch", "bark")
    body = body_of(message)
    data = body.pop("data")
    assert body == {
        "specversion": "1.0",
        "id": "id7.end",
        "source": "/home/attic/porch",
        "type": "org.ast-stream.event.end",
        "subject": "bark",
        "time": "2023-11-14T22:13:20.000000Z",
        "datacontenttype": "application/json",
    }
    assert data == published(event_message("id7", "end")).body
    assert message.source == body["source"]


def test_ids_are_the_same_when_a_worker_derives_a_message_again() -> None:
    for content in (event_message(), event_message(type="update"), gap_message(16_000)):
        assert forwarded(content, "b1").id == forwarded(content, "b2").id


def test_each_message_of_an_event_has_an_id_of_its_own() -> None:
    contents: list[EventMessage | GapMessage] = [
        event_message(type=type) for type in ("begin", "update", "end")
    ]
    contents.append(event_message(type="update", at_sample=17_000))
    gaps = [
        gap_message(0),
        gap_message(1),
        gap_message(0, stream="yard"),
        gap_message(0, epoch="b"),
    ]
    assert len({forwarded(one).id for one in (*contents, *gaps)}) == 8


def test_a_gap_goes_where_gaps_of_its_stream_go() -> None:
    message = forwarded(gap_message())
    assert message.parts == ("home", "attic", "gap", "porch")
    assert body_of(message)["type"] == "org.ast-stream.gap"


def test_what_boxes_say_of_themselves_has_ids_that_no_other_box_has() -> None:
    loft = BoxIdentity("home", "loft")
    intervals = [of_interval(box, "porch", 0, 300, {}) for box in (ATTIC, loft)]
    assert intervals[0].id != intervals[1].id
    losses = [
        lost(ATTIC, source, after=None, upto=upto, count=None, reason="full")
        for source in ("feed", "health")
        for upto in (["b1", 3], ["b1", 4])
    ]
    assert len({message.id for message in losses}) == 4
    assert losses[0].parts == ("home", "attic", "lost", "feed")


def test_names_from_elsewhere_cannot_leave_their_place_in_a_subject() -> None:
    message = OutgoingMessage("alert", "home", "attic", None, "dog.>/*#+ x", "1", b"{}", "high")
    assert message.parts == ("home", "attic", "alert", "high", "dog_______x")
