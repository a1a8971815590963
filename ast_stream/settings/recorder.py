"""The `recorder:` section: which events get clips, and what the history keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from ast_stream.labels import did_you_mean
from ast_stream.settings.section import Misfit, Section

ALL: Literal["all"] = "all"
MAX_ROLL_S = 20.0  # with a part of `MAX_CLIP_S` less than the minute that a worker holds
MAX_CLIP_S = 120.0

ClipFormat = Literal["flac", "opus"]
Names = Annotated[list[Annotated[str, Field(max_length=256)]], Field(min_length=1)]
Roll = Annotated[float, Field(ge=0, le=MAX_ROLL_S)]


class ClipPolicy(Section):
    """Which events get a clip; the first policy that matches an event applies."""

    classes: Literal["all"] | Names = Field(
        default=ALL, description="all, or a list of labels or their slugs"
    )
    streams: Literal["all"] | Names = Field(default=ALL, description="all, or a list of names")
    min_score: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="matches events whose highest score is at least this",
    )
    when: Literal["event", "alert", "best", "never"] = Field(
        default="event",
        description="event: each event has a clip; alert: those named in an alert; best: as alert, "
        "but of a rule with `same_sound` only the best event; never: none",
    )
    pre_s: Roll = Field(default=3.0, description="seconds of the clip before the onset")
    post_s: Roll = Field(default=3.0, description="seconds of the clip after the offset")


class HistorySettings(Section):
    """What is stored besides events, gaps, alerts and clips."""

    scores: bool = Field(
        default=True, description="the scores of all classes, for trying other thresholds later"
    )


class RecorderSettings(Section):
    """The process that keeps clips of events, and the history."""

    clips: list[ClipPolicy] = Field(
        default=[ClipPolicy()], description="the first that matches an event applies; []: no clips"
    )
    format: ClipFormat = Field(
        default="flac", description="flac: the exact samples; opus: a twentieth of the size"
    )
    max_clip_s: float = Field(
        default=30.0,
        ge=5,
        le=MAX_CLIP_S,
        description="longer events are cut into parts; above 30 s, a restart of the recorder may "
        "lose the beginning of a part",
    )
    alert_wait_s: float = Field(
        default=600.0,
        ge=10,
        le=86_400,
        description="how long after its end an event may still be named by an alert",
    )
    history: HistorySettings = Field(
        default=HistorySettings(), description="what is stored besides the clips"
    )

    @property
    def keeps_sound(self) -> bool:
        """Whether any event may get a clip."""
        return any(policy.when != "never" for policy in self.clips)

    def misfits(self, streams: Sequence[str] | None) -> Iterator[Misfit]:
        """Yield names of unknown streams; None: the streams are not known here."""
        if streams is None:
            return
        for index, policy in enumerate(self.clips):
            for name in () if policy.streams == ALL else policy.streams:
                if name not in streams:
                    path = ("recorder", "clips", index, "streams")
                    yield path, f"no stream {name!r}{did_you_mean(name, streams)}"
