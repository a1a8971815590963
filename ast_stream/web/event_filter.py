"""The filter of the event list, as encoded in the URL of a page."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import date
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from ast_stream.errors import UsageError
from ast_stream.history.records import EventQuery, Key
from ast_stream.web.moments import day_range, parse_day

PAGE_EVENTS = 50
VERDICT_CHOICES = {"": "all", "none": "not reviewed", "any": "reviewed"}
_MAX_CHARACTERS = 200
_SEPARATOR = "~"


@dataclass(frozen=True)
class EventFilter:
    """A filter of events; empty fields do not restrict.

    Attributes:
        stream: name.
        class_: slug.
        day: `2026-11-20`, in the time zone of this machine.
        verdict: `none` or `any`.
        clip: `1`: only events with a clip.
    """

    stream: str = ""
    class_: str = ""
    day: str = ""
    verdict: str = ""
    clip: str = ""

    @classmethod
    def of(cls, parameters: QueryParams) -> EventFilter:
        """Return the filter in the query parameters of a URL.

        Raises:
            UsageError: a value is invalid.
        """
        names = {field.name: field.name.rstrip("_") for field in fields(cls)}
        found = cls(**{field: parameters.get(name, "") for field, name in names.items()})
        for field, name in names.items():
            if len(value := getattr(found, field)) > _MAX_CHARACTERS:
                raise UsageError(f"{name}: expected a short text, got {len(value)} characters")
        if found.verdict not in VERDICT_CHOICES:
            raise UsageError(f"verdict: expected none or any, got {found.verdict!r}")
        if found.clip not in ("", "1"):
            raise UsageError(f"clip: expected 1, got {found.clip!r}")
        return found

    def query(
        self, *, after: Key | None = None, limit: int = PAGE_EVENTS, newest_first: bool = True
    ) -> EventQuery:
        """Return the query of a page of events.

        Raises:
            UsageError: the day is invalid.
        """
        since_ns = until_ns = None
        if self.day:
            since_ns, until_ns = day_range(parse_day(self.day, date(1970, 1, 1)))
        return EventQuery(
            streams=(self.stream,) if self.stream else (),
            classes=(self.class_,) if self.class_ else (),
            since_ns=since_ns,
            until_ns=until_ns,
            has_clip=True if self.clip else None,
            has_verdict={"none": False, "any": True}.get(self.verdict),
            newest_first=newest_first,
            after=after,
            limit=limit,
        )

    def address(self, path: str, **more: str) -> str:
        """Return the URL of a page with this filter."""
        own = {field.name.rstrip("_"): str(getattr(self, field.name)) for field in fields(self)}
        asked = {name: value for name, value in (own | more).items() if value}
        return f"{path}?{urlencode(asked)}" if asked else path


def parse_key(text: str | None) -> Key | None:
    """Return the key of the event after which a page begins; None: at the first event.

    Raises:
        UsageError: the text is not a key.
    """
    if not text:
        return None
    onset_ns, _, id = text.partition(_SEPARATOR)
    if not onset_ns.removeprefix("-").isdecimal() or len(onset_ns) > 20 or not id:
        raise UsageError(f"after: expected the place of an event, got {text[:_MAX_CHARACTERS]!r}")
    return int(onset_ns), id


def format_key(key: Key) -> str:
    """Return the key of an event as text."""
    return f"{key[0]}{_SEPARATOR}{key[1]}"
