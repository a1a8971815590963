"""What feed bodies say that rules ask for; what is no such body is told apart, never raised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ast_stream.units import NS_PER_SECOND, parse_time, samples_to_ns

STEP_NS = 2 * NS_PER_SECOND  # less is jitter, and changes no alert that anybody would miss
BACK_NS = 12 * NS_PER_SECOND  # the last windows of a recording reach so far beyond its end


@dataclass(frozen=True)
class Told:
    """What an event body says that rules ask for.

    Attributes:
        score, peak: of the window that the body is about, and the highest so far.
        onset_ns, offset_ns, at_ns: on one clock, that of `captured`, also if it stepped meanwhile.
        at_sample, published_ns: None in bodies that are written by hand.
    """

    id: str
    type: str
    stream: str
    labels: dict[str, str]
    slug: str
    label: str
    score: float
    peak: float
    onset_ns: int
    offset_ns: int | None
    at_ns: int
    onset: str
    epoch: str
    at_sample: int | None
    published_ns: int | None


def is_step(step_ns: int) -> bool:
    """Tell whether wall time and samples are so far apart that the clock was set."""
    return step_ns > STEP_NS or step_ns < -BACK_NS


def labels_of(body: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of the stream that a body is about."""
    labels = body.get("labels") or {}
    return {text_of(name): text_of(value) for name, value in labels.items()}


def text_of(value: Any) -> str:
    """Return a value as text that can be written down: JSON can have halves of characters."""
    return str(value).encode(errors="replace").decode()


def read_event(body: Mapping[str, Any]) -> Told | None:
    """Return what an event body says, None if it is not one."""
    try:
        at_ns, published = parse_time(body["captured"]), body.get("published")
        offset_ns = None if body.get("offset") is None else _sound_ns(body, "offset", at_ns)
        return Told(
            id=text_of(body["id"]),
            type=body["type"],
            stream=text_of(body["stream"]),
            labels=labels_of(body),
            slug=text_of(body["class"]),
            label=text_of(body["label"]),
            score=float(body.get("score", body["peak"])),
            peak=float(body["peak"]),
            onset_ns=_sound_ns(body, "onset", at_ns),
            offset_ns=offset_ns,
            at_ns=at_ns,
            onset=body["onset"],
            epoch=str(body.get("epoch")),
            at_sample=body.get("at_sample"),
            published_ns=None if published is None else parse_time(published),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _sound_ns(body: Mapping[str, Any], name: str, at_ns: int) -> int:
    """Return the time of onset or offset on the clock of `captured`."""
    time_ns = parse_time(body[name])
    at_sample, sample = body.get("at_sample"), body.get(f"{name}_sample")
    if at_sample is None or sample is None:
        return time_ns
    by_samples_ns = at_ns - samples_to_ns(at_sample - sample)
    return by_samples_ns if is_step(by_samples_ns - time_ns) else time_ns
