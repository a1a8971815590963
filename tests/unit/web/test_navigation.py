"""The navigation: made of the pages, so that a new page is named in one place."""

from __future__ import annotations

from starlette.routing import Route

from ast_stream.web.app import PAGES, navigation
from ast_stream.web.rights import need_of


def test_each_page_has_an_entry_with_its_path_and_the_right_that_it_needs() -> None:
    entries = {entry.name: entry for entry in navigation()}
    assert list(entries) == ["Now", "Timeline", "Events", "Tune", "Health"]
    for name, routes in PAGES.items():
        page = routes[0]
        assert isinstance(page, Route)
        assert (entries[name].path, entries[name].needs) == (page.path, need_of(page.endpoint))
    assert [entry.path for entry in entries.values()][:3] == ["/", "/timeline", "/events"]
