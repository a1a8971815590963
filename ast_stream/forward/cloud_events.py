"""CloudEvents 1.0 in structured JSON, with ids that depend on the content alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ast_stream.forward.output import OutgoingKind, OutgoingMessage, source_of
from ast_stream.labels import stable_id
from ast_stream.messages.codec import encode_json
from ast_stream.messages.event import FeedMessage
from ast_stream.settings.fleet import BoxIdentity
from ast_stream.units import format_time

SPEC_VERSION = "1.0"
TYPES = "org.ast-stream."


def cloud_event(
    identity: BoxIdentity,
    kind: OutgoingKind,
    data: Mapping[str, Any],
    *,
    id: str,
    time_ns: int | None,
    stream: str | None = None,
    name: str | None = None,
    detail: str | None = None,
    severity: str | None = None,
) -> OutgoingMessage:
    """Return a message whose body is a CloudEvent.

    Args:
        data: as on the feed of this box.
        time_ns: when it was published; None: not known.
        name: class or rule, the `subject` of the CloudEvent.
        detail: added to the `type` after the kind.
    """
    body = {
        "specversion": SPEC_VERSION,
        "id": id,
        "source": source_of(identity, stream),
        "type": f"{TYPES}{kind}" + ("" if detail is None else f".{detail}"),
        "subject": name,
        "time": None if time_ns is None else format_time(time_ns),
        "datacontenttype": "application/json",
        "data": dict(data),
    }
    encoded = encode_json({key: value for key, value in body.items() if value is not None})
    return OutgoingMessage(kind, identity.site, identity.box, stream, name, id, encoded, severity)


def of_feed(message: FeedMessage, identity: BoxIdentity) -> OutgoingMessage | None:
    """Return an event or gap of the feed; None for other messages, and those without an id."""
    about = message.identity
    if about is None or message.stream is None:
        return None
    detail: str | None = None
    if message.kind == "event":
        event, detail, at_sample = about
        id = f"{event}.{detail}" if detail != "update" else f"{event}.update.{at_sample}"
    else:
        _, stream, epoch, start = about
        id = f"{stable_id(stream, epoch, start)}.gap"
    kind: OutgoingKind = "event" if message.kind == "event" else "gap"
    return cloud_event(
        identity,
        kind,
        message.body,
        id=id,
        time_ns=message.published_ns,
        stream=message.stream,
        name=message.class_,
        detail=detail,
    )


def of_alert(message: FeedMessage, identity: BoxIdentity) -> OutgoingMessage:
    """Return an alert of the outbox."""
    body = message.body
    state = str(body.get("state"))
    return cloud_event(
        identity,
        "alert",
        body,
        id=_of_box(identity, str(body.get("id")), state),
        time_ns=message.published_ns,
        name=body.get("rule"),
        detail=state,
        severity=body.get("severity"),
    )


def of_interval(
    identity: BoxIdentity,
    stream: str,
    start_ns: int,
    stop_ns: int,
    data: Mapping[str, Any],
    *,
    is_long: bool = False,
) -> OutgoingMessage:
    """Return the coverage of a stream in an interval.

    Args:
        is_long: it spans several regular intervals, the first of which may also be sent alone, so
            the two need different ids.
    """
    moments = (str(start_ns), str(stop_ns)) if is_long else (str(start_ns),)
    id = _of_box(identity, stream, *moments, "coverage")
    return cloud_event(identity, "coverage", data, id=id, time_ns=stop_ns, stream=stream)


def of_health(
    identity: BoxIdentity, key: str, time_ns: int, data: Mapping[str, Any]
) -> OutgoingMessage:
    """Return a health summary.

    Args:
        key: unique to the summary.
    """
    id = _of_box(identity, key, "health")
    return cloud_event(identity, "health", data, id=id, time_ns=time_ns)


def lost(
    identity: BoxIdentity,
    source: str,
    *,
    after: Any,
    upto: Any,
    count: int | None,
    reason: str,
) -> OutgoingMessage:
    """Return a message saying that the box deleted messages before they were sent.

    Args:
        source: their source: a worker's feed, alerts, coverage or health.
        after, upto: positions in the source, as JSON values: the lost messages are those after
            `after`, up to and including `upto`.
        count: number of lost messages; None: not known.
        reason: a sentence.
    """
    data = {"from": source, "after": after, "upto": upto, "count": count, "reason": reason}
    id = _of_box(identity, source, encode_json({"upto": upto}).decode(), "lost")
    return cloud_event(identity, "lost", data, id=id, time_ns=None, name=source)


def _of_box(identity: BoxIdentity, *parts: str) -> str:
    """Return an id that no other box uses and that ends with the last part."""
    return f"{stable_id(identity.site, identity.box, *parts)}.{parts[-1]}"
