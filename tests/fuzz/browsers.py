"""Decoders of what browsers send to the page: places, wishes, addresses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fuzz.decoder import Broken, Decoder
from fuzz.mutation import Case
from starlette.datastructures import QueryParams

from ast_stream.web.event_filter import EventFilter, format_key, parse_key
from ast_stream.web.now_page import parse_wish
from ast_stream.web.recent_messages import format_place, parse_place


def decoders(scratch: Path) -> Iterator[Decoder]:
    """Yield the decoders."""
    del scratch
    places: list[Case] = [(b"0badc0de:812",), (b"a-1:0,b_2:9007199254740991",)]
    wishes: list[Case] = [(b'{"streams": ["porch", "attic"]}',), (b'{"streams": []}',)]
    addresses: list[Case] = [
        (b"stream=porch&class=bark&day=2026-11-20&verdict=none&clip=1",),
        (b"after=1700000000000000000~01JD&verdict=any",),
    ]
    yield Decoder("place of a browser", places, _place)
    yield Decoder("wish of a browser", wishes, _wish)
    yield Decoder("address of a page of events", addresses, _address)


def _place(case: Case) -> None:
    text = case[0].decode("latin-1")
    positions = parse_place(text)
    if positions and parse_place(format_place(positions)) != positions:
        raise Broken("a place does not come back", text)


def _wish(case: Case) -> None:
    parse_wish(case[0].decode(errors="replace"))


def _address(case: Case) -> None:
    parameters = QueryParams(case[0].decode("latin-1"))
    asked = EventFilter.of(parameters)
    asked.query()
    if EventFilter.of(QueryParams(asked.address("").removeprefix("?"))) != asked:
        raise Broken("a filter does not come back", str(asked))
    key = parse_key(parameters.get("after"))
    if key is not None and parse_key(format_key(key)) != key:
        raise Broken("a key does not come back", str(key))
