"""The feed from the publisher to the reader: numbered, logged, completed, never twice."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from feed_worker import Worker, event
from hypothesis import given
from hypothesis import strategies as st
from sample_messages import gap_message, health, levels_message, scores_header, worker_status

from ast_stream.errors import UsageError
from ast_stream.feed import FeedMessage, Missed, Subscriber, query_endpoint_beside
from ast_stream.machine_clock import Moment
from ast_stream.messages.event import Position
from ast_stream.messages.query import MAX_PAGE_MESSAGES, ReplayPage
from ast_stream.transport import reader as transport_reader
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.publisher import FeedPublisher
from ast_stream.transport.reader import FeedOrder
from ast_stream.transport.requester import Requester

LONG_S = 60.0  # only a failing test waits as long


class Wire:
    """A PUB socket that keeps what is sent."""

    def __init__(self, *, accepts: bool = True) -> None:
        self.sent: list[FeedMessage] = []
        self.accepts = accepts

    def send(self, frames: list[bytes]) -> bool:
        self.sent.append(FeedMessage.decode(frames))
        return self.accepts

    def has_reader(self, topic: bytes) -> bool:
        return True

    def readers(self, topic: bytes) -> list[Requester]:
        return []


def seqs(messages: list[FeedMessage]) -> list[int]:
    return [message.body["seq"] for message in messages]


def test_seq_has_no_holes_over_all_topics() -> None:
    wire = Wire()
    publisher = FeedPublisher(wire, None, "b1", lambda: Moment(0, 0))
    publisher.publish(worker_status())
    publisher.publish(event(1))
    publisher.publish(scores_header(), np.zeros(3, np.float16))
    publisher.publish(gap_message(5))
    publisher.publish(health())
    assert seqs(wire.sent) == [1, 2, 3, 4, 5]
    assert {message.body["boot"] for message in wire.sent} == {"b1"}
    assert {message.body["published"] for message in wire.sent} == {"1970-01-01T00:00:00.000000Z"}
    assert publisher.messages == {"status": 1, "event": 1, "scores": 1, "gap": 1, "health": 1}


def test_durable_messages_name_the_one_before_and_health_names_the_last() -> None:
    wire = Wire()
    publisher = FeedPublisher(wire, None, "b1", lambda: Moment(0, 0))
    publisher.publish(health())
    publisher.publish(event(1))
    publisher.publish(worker_status())
    publisher.publish(gap_message())
    bodies = [message.body for message in wire.sent]
    assert bodies[0]["durable_seq"] == 0
    assert bodies[1]["previous"] == 0
    assert bodies[2]["durable_seq"] == 2
    assert bodies[3]["previous"] == 2
    assert publisher.durable_position == ("b1", 4)


def test_durable_message_is_in_the_log_before_anyone_can_receive_it(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    held: list[int] = []

    class InspectingWire(Wire):
        def send(self, frames: list[bytes]) -> bool:
            page = log.replay(None)
            held.append(len(getattr(page, "messages", ())) - 1)  # without the boot's start
            return super().send(frames)

    publisher = FeedPublisher(InspectingWire(), log, "b1", lambda: Moment(0, 0))
    publisher.publish(event(1))
    publisher.publish(event(2))
    assert held == [1, 2]


def test_what_follows_an_event_is_sent_once_the_log_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, wire = EventLog(tmp_path), Wire()
    n_sent: list[int] = []  # at each sync
    monkeypatch.setattr(log, "sync", lambda: n_sent.append(len(wire.sent)))
    publisher = FeedPublisher(wire, log, "b1", lambda: Moment(0, 0), synced_first="each event")
    publisher.publish(scores_header(), np.zeros(3, np.float16))
    assert len(wire.sent) == 1  # nothing durable is before it
    publisher.publish(event(1))
    publisher.publish(event(2))
    publisher.publish(scores_header(), np.zeros(3, np.float16))
    assert len(wire.sent) == 1
    publisher.flush()
    publisher.flush()
    assert seqs(wire.sent) == [1, 2, 3, 4]
    assert n_sent == [0, 1]  # for the start of the boot, and for the two together


def test_a_begin_is_sent_once_the_log_is_synced_where_the_rest_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could leave an event with subscribers that nobody ends."""
    log, wire = EventLog(tmp_path), Wire()
    publisher = FeedPublisher(wire, log, "b1", lambda: Moment(0, 0), synced_first="begins")
    n_sent: list[int] = []  # at each sync
    monkeypatch.setattr(log, "sync", lambda: n_sent.append(len(wire.sent)))
    publisher.publish(event(1, "update"))
    publisher.publish(event(1, "end"))
    publisher.publish(gap_message(7))
    publisher.flush()
    assert (len(wire.sent), n_sent) == (3, [])
    publisher.publish(event(2))
    publisher.publish(event(2, "update"))
    assert len(wire.sent) == 3
    publisher.flush()
    assert (seqs(wire.sent), n_sent) == ([1, 2, 3, 4, 5], [3])


def test_refused_messages_are_counted() -> None:
    publisher = FeedPublisher(Wire(accepts=False), None, "b1", lambda: Moment(0, 0))
    publisher.publish(health())
    assert publisher.drops == 1


def read_all(
    order: FeedOrder, live: list[FeedMessage], log: EventLog
) -> list[FeedMessage | Missed]:
    """Read as the reader does, with a query endpoint that always answers."""
    items: list[FeedMessage | Missed] = []
    for message in live:
        while not order.follows(message):
            page = log.replay(order.position, limit=3)
            assert isinstance(page, ReplayPage)
            for replayed in page.messages:
                items += order.replayed(replayed)
            if not page.more:
                items += order.caught_up(message)
        accepted = order.accept(message)
        items += [] if accepted is None else [accepted]
    return items


BOOTS = st.lists(
    st.lists(st.tuples(st.sampled_from(["event", "gap", "status"]), st.booleans()), max_size=15),
    min_size=1,
    max_size=4,
)


@given(boots=BOOTS, logs=st.lists(st.booleans(), min_size=60, max_size=60))
def test_reader_gets_every_durable_message_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    boots: list[list[tuple[str, bool]]],
    logs: list[bool],
) -> None:
    """Some live messages are lost, some are missing in the log, some boots say nothing."""
    log = EventLog(tmp_path_factory.mktemp("events"))
    wire = Wire()
    arrived: list[FeedMessage] = []
    published: list[Position] = []
    keeps = iter(logs)

    class ForgetfulLog:
        write_errors = 0

        def begin(self, boot: str) -> None:
            log.begin(boot)

        def append(self, message: FeedMessage) -> None:
            if next(keeps):
                log.append(message)

        def retry(self) -> None:
            pass

    for number, plan in enumerate(boots):
        publisher = FeedPublisher(wire, ForgetfulLog(), f"b{number}", lambda: Moment(0, 0))  # type: ignore[arg-type]
        for kind, arrives in [*plan, ("status", True)]:
            if kind == "status":
                publisher.publish(worker_status())
            else:
                n = len(published)
                publisher.publish(event(n) if kind == "event" else gap_message(n))
                published.append(wire.sent[-1].position)
            if arrives:
                arrived.append(wire.sent[-1])
    order = FeedOrder(("b0", 0))
    items = read_all(order, arrived, log)
    log.close()
    given_out = [
        item.position for item in items if isinstance(item, FeedMessage) and item.is_durable
    ]
    assert given_out == sorted(set(given_out))
    lost = set(published) - set(given_out)
    holes = [item for item in items if isinstance(item, Missed)]
    reported = {
        position
        for position in published
        for hole in holes
        if hole.after is not None and hole.after < position <= hole.upto
    }
    # what the log lost at the end of a boot is known to nobody once that publisher is gone
    assert reported <= lost
    assert {position for position in lost - reported} <= {
        position for position in lost if position[0] != f"b{len(boots) - 1}"
    }
    assert all(any(hole.after < position <= hole.upto for position in lost) for hole in holes)  # type: ignore[operator]


def test_repeats_of_an_earlier_boot_are_left_out() -> None:
    wire = Wire()
    order = FeedOrder(("b1", 0))
    for boot in ("b1", "b2"):
        publisher = FeedPublisher(wire, None, boot, lambda: Moment(0, 0))
        publisher.publish(event(1))
        publisher.publish(gap_message(7))
        publisher.publish(event(1, "end"))
    first, second = wire.sent[:3], wire.sent[3:]
    assert [order.accept(message) for message in first] == first
    assert order.caught_up(second[0]) == []
    assert [order.accept(message) for message in second] == [None, None, None]
    late = first[0]
    assert order.follows(late)
    assert order.accept(late) is None
    assert order.duplicates == 4


def first_status(boot: str, n_events: int = 0) -> FeedMessage:
    """Return the status of a publisher that has published so many events."""
    wire = Wire()
    publisher = FeedPublisher(wire, None, boot, lambda: Moment(0, 0))
    for n in range(n_events):
        publisher.publish(event(n))
    publisher.publish(worker_status())
    return wire.sent[-1]


def test_a_reader_without_a_position_has_lost_nothing_where_nothing_was_published() -> None:
    order = FeedOrder()
    assert order.give_up(first_status("b1"), "why") == []
    assert order.follows(first_status("b1"))


def test_a_reader_without_a_position_has_lost_what_was_published_and_cannot_be_had() -> None:
    assert FeedOrder().give_up(first_status("b1", 2), "why") == [Missed(None, ("b1", 2), "why")]


def test_a_reader_of_an_earlier_boot_may_have_lost_its_end() -> None:
    lost = FeedOrder(("b0", 4)).give_up(first_status("b1"), "why")
    assert lost == [Missed(("b0", 4), ("b1", 0), "why")]


@pytest.fixture
def folder(socket_dir: Path) -> Path:
    return socket_dir


@pytest.fixture
def workers(folder: Path) -> Iterator[list[Worker]]:
    """Workers started by the test; closed at its end."""
    found: list[Worker] = []
    yield found
    for worker in found:
        worker.close()


def subscriber(folder: Path, **options: Any) -> Subscriber:
    return Subscriber(f"ipc://{folder}/feed.sock", **options)


def wait_until_heard(reader: Subscriber) -> None:
    """Read until the publisher's status came; only the position moves."""
    end_s = time.monotonic() + LONG_S
    while reader.position is None and time.monotonic() < end_s:
        assert reader.receive(0.05) is None
    assert reader.position is not None


def ids(reader: Subscriber, n_events: int) -> list[str]:
    found = []
    for _ in range(n_events):
        item = reader.receive(LONG_S)
        assert isinstance(item, FeedMessage), item
        found.append(item.body["id"])
    return found


def test_subscriber_yields_the_events_of_the_classes_and_streams_wanted(
    folder: Path, workers: list[Worker]
) -> None:
    workers.append(Worker(folder, "b1"))
    with subscriber(folder, classes=["Bark"], streams=["porch"], idle_timeout_s=LONG_S) as reader:
        wait_until_heard(reader)
        workers[0].publish(
            event(1), event(2, label="Siren"), event(3, stream="yard"), event(4, "end")
        )
        bodies = iter(reader)
        assert [next(bodies)["id"], next(bodies)["id"]] == ["id1", "id4"]
        assert reader.position == workers[0].publisher.durable_position


def test_messages_that_did_not_arrive_are_replayed_in_order(
    folder: Path, workers: list[Worker]
) -> None:
    workers.append(Worker(folder, "b1"))
    with subscriber(folder) as reader:
        wait_until_heard(reader)
        workers[0].publish(event(1))
        workers[0].publish(event(2), event(3), arrives=False)
        workers[0].publish(event(4))
        workers[0].publish(event(5), arrives=False)
        assert ids(reader, 5) == ["id1", "id2", "id3", "id4", "id5"]
        assert reader.receive(0.05) is None


def test_a_restarted_publisher_repeats_nothing_and_loses_nothing(
    folder: Path, workers: list[Worker]
) -> None:
    workers.append(Worker(folder, "b1"))
    with subscriber(folder) as reader:
        wait_until_heard(reader)
        workers[0].publish(event(1))
        assert ids(reader, 1) == ["id1"]
        workers[0].publish(event(2), arrives=False)
        workers.pop().close()
        workers.append(Worker(folder, "b2"))
        workers[0].publish(event(2), event(3), arrives=False)
        assert ids(reader, 2) == ["id2", "id3"]
        assert reader.duplicates == 1


def test_a_subscriber_that_was_there_first_gets_everything(
    folder: Path, workers: list[Worker]
) -> None:
    with subscriber(folder) as reader:
        assert reader.receive(0.05) is None
        assert not reader.is_publisher_there
        workers.append(Worker(folder, "b1"))
        workers[0].publish(event(1), event(2), arrives=False)
        assert ids(reader, 2) == ["id1", "id2"]
        assert reader.is_publisher_there


class Tunnel:
    """Passes connections on; a frozen one stays open and passes nothing, as over a dead network."""

    def __init__(self, path: Path, target: Path) -> None:
        self._target = str(target)
        self._frozen = threading.Event()
        self._open: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        threading.Thread(target=self._run, daemon=True).start()

    def freeze(self) -> None:
        """Freeze the connections there are; later ones pass."""
        self._frozen.set()
        self._frozen = threading.Event()

    def close(self) -> None:
        self._frozen.set()
        for socket_ in [self._server, *self._open]:
            socket_.shutdown(socket.SHUT_RDWR)
            socket_.close()

    def _run(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._target)
            self._open += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(*pair, self._frozen), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket, frozen: threading.Event) -> None:
        try:
            while data := source.recv(65_536):
                if frozen.is_set():
                    return
                sink.sendall(data)
        except OSError:
            return


@pytest.mark.slow
def test_a_connection_that_died_silently_is_made_anew_and_nothing_is_missed(
    folder: Path, workers: list[Worker]
) -> None:
    workers.append(Worker(folder, "b1"))
    tunnel = Tunnel(folder / "tunnel.sock", folder / "feed.sock")
    query = f"ipc://{folder}/query.sock"
    try:
        with Subscriber(f"ipc://{folder}/tunnel.sock", query=query) as reader:
            wait_until_heard(reader)
            tunnel.freeze()
            workers[0].publish(event(1))
            assert ids(reader, 1) == ["id1"]
            workers[0].publish(event(2))
            assert ids(reader, 1) == ["id2"]
    finally:
        tunnel.close()


def test_a_subscriber_that_came_later_starts_with_now(folder: Path, workers: list[Worker]) -> None:
    workers.append(Worker(folder, "b1"))
    workers[0].publish(event(1))
    with subscriber(folder) as reader:
        wait_until_heard(reader)
        workers[0].publish(event(2))
        assert ids(reader, 1) == ["id2"]


def test_oldest_begins_with_what_the_log_holds(folder: Path, workers: list[Worker]) -> None:
    workers.append(Worker(folder, "b1"))
    workers[0].publish(event(1))
    workers.pop().close()
    workers.append(Worker(folder, "b2"))
    workers[0].publish(event(2))
    with subscriber(folder, after="oldest") as reader:
        assert ids(reader, 2) == ["id1", "id2"]


def test_a_kept_position_goes_on_where_the_last_run_stopped(
    folder: Path, workers: list[Worker]
) -> None:
    workers.append(Worker(folder, "b1"))
    with subscriber(folder) as reader:
        wait_until_heard(reader)
        workers[0].publish(event(1), event(2))
        assert ids(reader, 1) == ["id1"]
        kept = reader.position
    workers[0].publish(event(3))
    with subscriber(folder, after=kept) as reader:
        assert ids(reader, 2) == ["id2", "id3"]


@pytest.mark.slow
@pytest.mark.parametrize("answers", [True, False])
def test_a_hole_that_cannot_be_filled_is_reported(
    folder: Path, workers: list[Worker], answers: bool
) -> None:
    workers.append(Worker(folder, "b1", answers=answers, logs=False))
    with subscriber(folder, replay_patience_s=0.0) as reader:
        wait_until_heard(reader)
        workers[0].publish(event(1))
        workers[0].publish(event(2), arrives=False)
        workers[0].publish(event(3))
        items = [reader.receive(LONG_S) for _ in range(3)]
    first, hole, third = items
    assert isinstance(first, FeedMessage)
    assert isinstance(hole, Missed)
    assert isinstance(third, FeedMessage)
    assert hole.after == first.position
    assert hole.upto == ("b1", third.body["previous"])
    assert ("no event log" if answers else "does not answer") in hole.reason


@pytest.mark.slow
def test_a_publisher_that_is_killed_while_it_is_asked_is_waited_for(
    folder: Path, workers: list[Worker]
) -> None:
    workers.append(Worker(folder, "b1", answers=False))
    with subscriber(folder, replay_patience_s=1.5) as reader:
        wait_until_heard(reader)
        workers[0].publish(event(1))
        assert ids(reader, 1) == ["id1"]
        workers[0].publish(event(2), arrives=False)
        workers[0].publish(event(3))
        reader.receive(0.0)  # the hole is noticed
        workers[0].close()
        end_s = time.monotonic() + 4.0  # longer than patience with one that is there
        while time.monotonic() < end_s:
            assert reader.receive(0.2) is None
        workers[0] = Worker(folder, "b2")
        workers[0].publish(event(4))
        assert ids(reader, 3) == ["id2", "id3", "id4"]


@pytest.mark.parametrize("after", ["oldest", ("b0", 4)])
def test_a_publisher_that_has_published_nothing_is_asked_again_for_what_was_before(
    folder: Path, workers: list[Worker], after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not answer yet: that a new box is slow to start is no loss."""
    monkeypatch.setattr(transport_reader, "_ANSWER_TIMEOUT_S", 0.01)
    monkeypatch.setattr(transport_reader, "_ASK_AGAIN_S", 0.0)
    log = EventLog(folder / "events")
    earlier = FeedPublisher(Wire(), log, "b0")
    for n in range(5):
        earlier.publish(event(n))
    log.close()
    workers.append(Worker(folder, "b1", answers=False))
    with subscriber(
        folder, after=after, topics=["event/", "status/"], replay_patience_s=0.0
    ) as reader:
        for _ in range(3):
            message = reader.receive(LONG_S)
            assert isinstance(message, FeedMessage)
            assert message.kind == "status"
        assert reader.position == (None if after == "oldest" else after)


def test_what_an_earlier_boot_has_left_comes_once_the_publisher_answers(
    folder: Path, workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_reader, "_ANSWER_TIMEOUT_S", 0.01)
    monkeypatch.setattr(transport_reader, "_ASK_AGAIN_S", 0.0)
    log = EventLog(folder / "events")
    FeedPublisher(Wire(), log, "b0").publish(event(1))
    log.close()
    workers.append(Worker(folder, "b1", answers=False))
    with subscriber(
        folder, after="oldest", topics=["event/", "status/"], replay_patience_s=0.0
    ) as reader:
        assert isinstance(reader.receive(LONG_S), FeedMessage)
        workers.pop().close()
        monkeypatch.setattr(transport_reader, "_ANSWER_TIMEOUT_S", 1.0)
        workers.append(Worker(folder, "b2"))
        found: list[str] = []
        while not found:
            item = reader.receive(LONG_S)
            assert isinstance(item, FeedMessage), item
            found += [item.body["id"]] if item.kind == "event" else []
        assert found == ["id1"]


def test_a_hole_in_the_log_is_reported(folder: Path, workers: list[Worker]) -> None:
    workers.append(Worker(folder, "b1"))
    with subscriber(folder) as reader:
        wait_until_heard(reader)
        assert workers[0].log is not None
        with mock.patch.object(workers[0].log, "append"):
            workers[0].publish(event(1), arrives=False)
        hole = reader.receive(LONG_S)
        assert isinstance(hole, Missed)
        assert hole.upto == workers[0].publisher.durable_position
        workers[0].publish(event(2))
        assert ids(reader, 1) == ["id2"]


def test_a_long_absence_is_replayed_in_pages(folder: Path, workers: list[Worker]) -> None:
    workers.append(Worker(folder, "b1"))
    n_events = 2 * MAX_PAGE_MESSAGES + 10
    with subscriber(folder) as reader:
        wait_until_heard(reader)
        workers[0].publish(*(event(n) for n in range(n_events)), arrives=False)
        assert ids(reader, n_events) == [f"id{n}" for n in range(n_events)]


LIES: dict[str, Any] = {
    "nonsense": [b"{"],
    "too old for ever": [b'{"v":1,"error":"too_old","oldest":["b0",3]}'],
    "nothing and more": [b'{"v":1,"messages":[],"more":true}'],
    "the same and more": [
        b'{"v":1,"messages":[{"topic":"gap/a/","body":{"v":1,"boot":"b1","seq":0,"previous":0}}],'
        b'"more":true}'
    ],
}


@pytest.mark.parametrize("lie", LIES)
def test_a_query_endpoint_that_lies_does_not_stop_the_reader(
    folder: Path, workers: list[Worker], lie: str
) -> None:
    workers.append(Worker(folder, "b1"))
    assert workers[0].queries is not None
    with subscriber(folder) as reader:
        wait_until_heard(reader)
        workers[0].queries.answer = lambda *_: LIES[lie]  # type: ignore[method-assign]
        workers[0].publish(event(1), arrives=False)
        workers[0].publish(event(2))
        items = [reader.receive(LONG_S)]
        while isinstance(items[-1], Missed):
            items.append(reader.receive(LONG_S))
        assert len(items) > 1
        assert isinstance(items[-1], FeedMessage)
        assert items[-1].body["id"] == "id2"


def test_what_the_log_no_longer_holds_is_reported_and_the_rest_replayed(
    folder: Path, workers: list[Worker]
) -> None:
    workers.append(Worker(folder, "b1"))
    workers[0].publish(event(1))
    with subscriber(folder, after=("b0", 7)) as reader:
        assert reader.receive(LONG_S) == Missed(
            ("b0", 7), ("b1", 0), "the publisher's event log no longer has them"
        )
        assert ids(reader, 1) == ["id1"]


def test_iterating_hands_holes_to_the_callback_or_the_log(
    folder: Path, workers: list[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    workers.append(Worker(folder, "b1"))
    workers[0].publish(event(1))
    holes: list[Missed] = []
    for on_missed in (holes.append, None):
        with (
            subscriber(
                folder, after=("b0", 7), on_missed=on_missed, idle_timeout_s=LONG_S
            ) as reader,
            caplog.at_level(logging.WARNING),
        ):
            assert next(iter(reader))["id"] == "id1"
    assert [hole.after for hole in holes] == [("b0", 7)]
    assert len(caplog.records) == 1
    assert "boot b1" in caplog.text


def test_other_topics_come_with_their_scores(folder: Path, workers: list[Worker]) -> None:
    workers.append(Worker(folder, "b1"))
    with subscriber(folder, topics=["scores/", "status/"]) as reader:
        assert isinstance(reader.receive(LONG_S), FeedMessage)
        with workers[0].lock:
            scores = np.array([0.25, 1.0], np.float16)
            workers[0].publisher.publish(scores_header(), scores)
            workers[0].publisher.publish(event(1))
        kinds: list[str] = []
        found: list[list[float]] = []
        while not found:
            message = reader.receive(LONG_S)
            assert isinstance(message, FeedMessage)
            kinds.append(message.kind)
            found += [] if message.scores is None else [message.scores.tolist()]
        assert found == [[0.25, 1.0]]
        assert set(kinds) <= {"scores", "status"}


def test_a_topic_that_is_added_later_comes_from_then_on(
    folder: Path, workers: list[Worker]
) -> None:
    workers.append(Worker(folder, "b1"))
    with subscriber(folder, topics=["event/"]) as reader:
        while not reader.is_publisher_there:
            reader.receive(0.05)
        assert not workers[0].publisher.has_reader("levels/porch/")
        reader.add_topic("levels/")
        while not workers[0].publisher.has_reader("levels/porch/"):
            reader.receive(0.05)
        with workers[0].lock:
            workers[0].publisher.publish(levels_message())
        message = reader.receive(LONG_S)
        assert isinstance(message, FeedMessage)
        assert (message.kind, message.body["laeq"]) == ("levels", 55.0)
        reader.remove_topic("levels/")
        while workers[0].publisher.has_reader("levels/porch/"):
            reader.receive(0.05)


def test_malformed_messages_are_counted_and_left_out(folder: Path, workers: list[Worker]) -> None:
    workers.append(Worker(folder, "b1"))
    with subscriber(folder) as reader:
        wait_until_heard(reader)
        with workers[0].lock:
            workers[0].pub.send([b"event/bark/porch/", b"{"])
        workers[0].publish(event(1))
        assert ids(reader, 1) == ["id1"]
        assert reader.malformed == 1


def test_idle_timeout_ends_the_iteration(folder: Path, workers: list[Worker]) -> None:
    workers.append(Worker(folder, "b1"))
    with subscriber(folder, idle_timeout_s=0.05) as reader:
        assert list(reader) == []


def test_stop_from_another_thread_ends_the_iteration(folder: Path) -> None:
    with subscriber(folder) as reader:
        timer = threading.Timer(0.05, reader.stop)
        timer.start()
        assert list(reader) == []
        timer.join()


def test_endpoints_that_cannot_be_are_refused() -> None:
    for endpoint in ("feed.sock", "ipc://relative", "tcp://example.org:5555", "tcp://[::1]:0"):
        with pytest.raises(UsageError, match="endpoint"):
            Subscriber(endpoint)


def test_one_name_where_a_list_is_expected_is_refused_and_not_taken_for_its_letters() -> None:
    wrongs: list[dict[str, Any]] = [{"classes": "bark"}, {"streams": "porch"}, {"topics": "event/"}]
    for wrong in wrongs:
        with pytest.raises(UsageError, match=rf"{next(iter(wrong))}: expected a list"):
            Subscriber("ipc:///tmp/feed.sock", **wrong)


def test_query_endpoint_is_beside_the_feed() -> None:
    assert query_endpoint_beside("ipc:///run/x/feed.sock") == "ipc:///run/x/query.sock"
    assert query_endpoint_beside("ipc:///run/x/alerts.sock") is None
    assert query_endpoint_beside("tcp://127.0.0.1:5555") is None
