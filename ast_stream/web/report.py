"""Metrics of the web process, for Prometheus."""

from __future__ import annotations

from ast_stream.runtime.metrics import Family, figure
from ast_stream.web.live import LiveHub
from ast_stream.web.logins import Logins
from ast_stream.web.sessions import Sessions


def families(hub: LiveHub) -> list[Family]:
    """Return the metrics of the messages to browsers."""
    counters = hub.counters
    return [
        figure(
            "ast_stream_web_connections",
            "Connections of open pages; kind is events or pictures",
            {(kind,): float(count) for kind, count in hub.viewers.items()},
            ["kind"],
        ),
        figure(
            "ast_stream_web_messages_total",
            "Messages of the feeds that browsers were sent; kind is events or pictures",
            {
                ("events",): counters["event_messages"],
                ("pictures",): counters["pictures"],
            },
            ["kind"],
        ),
        figure(
            "ast_stream_web_dropped_total",
            "Messages for which a slow browser had no room; of events it is sent them again",
            {
                ("events",): counters["dropped_events"],
                ("pictures",): counters["dropped_pictures"],
            },
            ["kind"],
        ),
        figure(
            "ast_stream_web_slow_browsers_total",
            "Connections ended because a browser did not keep up with events",
            counters["slow_event_streams_ended"],
        ),
        figure(
            "ast_stream_web_refused_total",
            "Connections refused because there were too many",
            counters["refused"],
        ),
        figure(
            "ast_stream_web_lost_total",
            "Messages that the page itself had no room for",
            counters["dropped_by_page"],
        ),
    ]


def login_families(logins: Logins, sessions: Sessions) -> list[Family]:
    """Return the metrics of logins."""
    return [
        figure("ast_stream_web_sessions", "Logins that go on", float(len(sessions))),
        figure(
            "ast_stream_web_failed_logins_total",
            "Tries to log in with a wrong name or password",
            logins.failed,
        ),
        figure(
            "ast_stream_web_limited_logins_total",
            "Tries to log in that were not checked because there were too many",
            logins.limits.refused,
        ),
    ]
