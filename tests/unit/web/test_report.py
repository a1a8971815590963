"""What the page shows to Prometheus."""

from __future__ import annotations

from ast_stream.web.live import LiveHub
from ast_stream.web.report import families


def test_what_slow_browsers_lack_is_counted() -> None:
    hub = LiveHub({})
    hub.counters.update({"dropped_pictures": 3, "slow_event_streams_ended": 1, "refused": 2})
    shown = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families(hub)
        for sample in family.samples
    }
    assert shown["ast_stream_web_dropped_total", "pictures"] == 3
    assert shown["ast_stream_web_dropped_total", "events"] == 0
    assert shown["ast_stream_web_slow_browsers_total",] == 1
    assert shown["ast_stream_web_refused_total",] == 2
    assert shown["ast_stream_web_connections", "events"] == 0
