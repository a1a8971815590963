"""Deliveries of rule tests, counted in a real outbox."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from ast_stream.alerts.model import Transition
from ast_stream.alerts.outbox import FEED, Outbox, Route
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.alerts.store import Store


class OutboxLedger:
    """Writes transitions as the alerts process does; every action takes firing and resolved.

    Args:
        stack: closes the database.
    """

    def __init__(self, rules: RuleSet, stack: ExitStack) -> None:
        folder = stack.enter_context(TemporaryDirectory(prefix="ast-stream-rules-"))
        self._store = Store(Path(folder) / "alerts.sqlite")
        stack.callback(self._store.close)
        self._now_ns = 0
        names = {name for rule in rules.rules for name in rule.actions or ()}
        route = Route(frozenset({"firing", "resolved"}))
        self._outbox = Outbox(self._store, dict.fromkeys(sorted(names), route), self._time_ns)

    def take(self, transitions: list[Transition]) -> None:
        """Write the deliveries of what one message or timer brought about."""
        if transitions:
            self._now_ns = transitions[-1].at_ns
            with self._store.transaction() as db:
                self._outbox.enqueue(db, transitions)

    def rows(self) -> int:
        """Return how many deliveries were written, those on the feed not counted."""
        with self._store.reading() as db:
            query = "SELECT count(*) FROM deliveries WHERE action <> ?"
            return int(db.execute(query, (FEED,)).fetchone()[0])

    def _time_ns(self) -> int:
        return self._now_ns
