from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alert_samples import action_settings, firing, resolved, state_file

from ast_stream.alerts.instances import Transition
from ast_stream.alerts.outbox import Outbox
from ast_stream.alerts.store import Store
from ast_stream.forward.alert_source import AlertSource
from ast_stream.forward.source import Cursor, Item
from ast_stream.runtime.database import set_aside_database
from ast_stream.settings.fleet import BoxIdentity

ATTIC = BoxIdentity("home", "attic")


class Alerts:
    """An alert database, as the alerts process writes it."""

    def __init__(self, folder: Path) -> None:
        self.file = state_file(folder)
        self.store = Store(self.file)
        self._outbox = Outbox(self.store, {"phone": action_settings(max=1000)}, time.time_ns)

    def write(self, *transitions: Transition) -> None:
        with self.store.transaction() as db:
            self._outbox.enqueue(db, transitions)

    def delete(self, below: int) -> None:
        with self.store.transaction() as db:
            db.execute("DELETE FROM deliveries WHERE seq < ?", (below,))

    @property
    def last(self) -> int:
        with self.store.transaction() as db:
            (found,) = db.execute("SELECT max(seq) FROM deliveries").fetchone()
        return int(found)


@pytest.fixture
def alerts(tmp_path: Path) -> Iterator[Alerts]:
    opened = Alerts(tmp_path)
    yield opened
    opened.store.close()


def read(alerts: Alerts, cursor: Cursor = None) -> list[tuple[str, Cursor]]:
    source = AlertSource(alerts.file, cursor, ATTIC)
    try:
        items = [*source.read(10, 0), *source.read(10, 0)]
    finally:
        source.close()
    return [(one.outgoing.kind, one.cursor) for one in items if one.outgoing is not None]


def test_alerts_are_read_once_each_from_a_position(alerts: Alerts) -> None:
    alerts.write(firing("a1", "phone"), firing("a2", "phone"))
    found = read(alerts)
    assert [kind for kind, _ in found] == ["alert", "alert"]
    assert read(alerts, found[-1][1]) == []
    alerts.write(resolved("a1", "phone"))
    assert len(read(alerts, found[-1][1])) == 1
    assert len(read(alerts, found[0][1])) == 2


def test_ids_tell_the_states_of_an_alert_apart(alerts: Alerts) -> None:
    alerts.write(firing("a1"), resolved("a1"), firing("a2"))
    source = AlertSource(alerts.file, None, ATTIC)
    messages = [item.outgoing for item in source.read(10, 0) if item.outgoing is not None]
    assert len({message.id for message in messages}) == 3
    assert messages[0].parts[:3] == ("home", "attic", "alert")
    assert source.count(None) == 3
    source.close()


def test_rows_that_were_deleted_before_they_were_read_are_said_to_be_lost(alerts: Alerts) -> None:
    alerts.write(firing("a1", "phone"))
    (_, cursor) = read(alerts)[-1]
    alerts.write(firing("a2", "phone"), firing("a3", "phone"))
    alerts.delete(alerts.last)
    assert [kind for kind, _ in read(alerts, cursor)][:1] == ["lost"]


def test_deleted_rows_that_were_seen_are_not(alerts: Alerts) -> None:
    alerts.write(firing("a1", "phone"))
    (_, cursor) = read(alerts)[-1]
    alerts.write(resolved("a1", "phone"))
    alerts.delete(alerts.last - 1)  # what the cursor has passed, deliveries of the phone too
    assert [kind for kind, _ in read(alerts, cursor)] == ["alert"]


def test_a_database_that_is_not_there_yet_has_nothing(tmp_path: Path) -> None:
    source = AlertSource(tmp_path / "none.sqlite", None, ATTIC)
    assert list(source.read(10, 0)) == []
    assert source.count(None) is None
    source.close()


@pytest.mark.parametrize("is_running", [True, False])
def test_a_database_that_was_begun_anew_is_read_from_its_start(
    tmp_path: Path, *, is_running: bool
) -> None:
    before = Alerts(tmp_path)
    before.write(firing("a1", "phone"), firing("a2", "phone"))
    source = AlertSource(before.file, None, ATTIC)
    cursor = source.read(10, 0)[-1].cursor
    before.store.close()
    set_aside_database(before.file)
    anew = Alerts(tmp_path)
    anew.write(*(firing(f"b{number}", "phone") for number in range(4)))
    if not is_running:
        source.close()
        source = AlertSource(anew.file, cursor, ATTIC)
    found: list[Item] = []
    end_s = time.monotonic() + 60.0
    while len(found) < 5 and time.monotonic() < end_s:
        found += source.read(10, 0)
    source.close()
    anew.store.close()
    kinds = [one.outgoing.kind for one in found if one.outgoing is not None]
    assert kinds == ["lost", *["alert"] * 4]
    again = AlertSource(anew.file, found[0].cursor, ATTIC)
    assert [one.outgoing for one in again.read(10, 0)] == [one.outgoing for one in found[1:]]
    again.close()
