"""Reviewed events, with their clips."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ast_stream.errors import StartupError
from ast_stream.history.database import History
from ast_stream.history.records import ClipRecord, EventRecord, VerdictRecord
from ast_stream.settings import storage
from ast_stream.settings.schema import Settings
from ast_stream.units import NS_PER_SECOND


@dataclass(frozen=True)
class ReviewedEvent:
    """An event, what was said of it last, and the beginning of its sound.

    Attributes:
        clip: the first part of its recording; None: none was kept.
    """

    event: EventRecord
    verdict: VerdictRecord
    clip: ClipRecord | None

    @property
    def is_right(self) -> bool | None:
        """Whether the event was of its class; None where nobody knows."""
        if self.verdict.verdict == "unsure":
            return None
        return self.verdict.verdict == "right"

    @property
    def day(self) -> str:
        """The day, UTC, on which it began, as YYYY-MM-DD."""
        return datetime.fromtimestamp(self.event.onset_ns / NS_PER_SECOND, UTC).date().isoformat()


def reviewed_events(history: History) -> list[ReviewedEvent]:
    """Return all events with a verdict that are still known, oldest first."""
    newest = {verdict.event_id: verdict for verdict in history.verdicts()}
    found = []
    for event_id, verdict in newest.items():
        event = history.event(event_id)
        if event is not None:
            clips = history.clips(event_id)
            found.append(ReviewedEvent(event, verdict, clips[0] if clips else None))
    return sorted(found, key=lambda reviewed: reviewed.event.key)


def history_path(settings: Settings) -> Path:
    """Return the database of a configuration.

    Raises:
        StartupError: the configuration keeps no history.
    """
    if settings.recorder is None:
        raise StartupError(
            "review: expected a configuration that keeps clips and a history, got one without a "
            "section 'recorder'"
        )
    return storage.history_database(settings).path
