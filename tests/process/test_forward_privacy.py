"""What leaves a box through its outputs: what was heard, and nothing that could be listened to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forward_box import STREAMS, forward_box, nats_output, wait_until
from kafka_cluster import Cluster
from mqtt_broker import MOSQUITTO, Listener, listener, mqtt_broker
from nats_server import nats_server, needs_nats, status_of, stored
from sample_messages import health, levels_message, scores_header, spectrogram_header

from ast_stream.feed import Subscriber
from ast_stream.forward import feed_source, health_source
from ast_stream.forward.health_source import HealthMinutes
from ast_stream.forward.health_spool import HealthSpool
from ast_stream.units import NS_PER_SECOND

MAX_TEXT = 300  # no room for sound as text
MAX_LIST = 32
OF_THE_TIME = {"health", "coverage"}  # sent when a minute is over, perhaps in this one
LISTENED = ("laeq", "third_octaves", "frames", "pcm", "audio", "scores", "spectrogram", "clip")


def check_body(body: Any) -> None:
    """Fail where a body could hold sound, or what the feed has beside events."""
    for key, value in leaves(body):
        assert key not in LISTENED, f"{key} in {body}"
        assert not isinstance(value, str) or len(value) <= MAX_TEXT, body


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all values of a JSON document, each with its key."""
    match value:
        case dict():
            for name, inner in value.items():
                yield from leaves(inner, name)
        case list():
            assert len(value) <= MAX_LIST, value
            for inner in value:
                yield from leaves(inner, key)
        case _:
            yield key, value


@needs_nats
@pytest.mark.slow
@pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto (apt)")
def test_nothing_but_what_was_heard_leaves_by_any_output(tmp_path: Path) -> None:
    cluster = Cluster(1)
    with (
        nats_server(tmp_path) as server,
        mqtt_broker(tmp_path) as broker,
        listener(broker.port) as watcher,
    ):
        place = {"host": "127.0.0.1", "port": broker.port}
        outputs = [
            nats_output(server.url) | {"kinds": ["event", "gap", "coverage", "health"]},
            {"name": "broker", "type": "mqtt", **place},
            {"name": "log", "type": "kafka", "brokers": cluster.brokers},
        ]
        with forward_box(outputs, privacy="sensor") as box:
            box.start()
            wait_until(lambda: "ready: forwards" in box.log, "the forwarder")
            for _ in range(20):
                box.publish(2)
                with box.worker.lock:
                    publish_what_stays(box.worker.publisher)
                box.worker.publish(health(level_dbfs=-40.0))  # type: ignore[arg-type]
            n_messages = len(box.expected())
            names = ("centre", "broker", "log")
            wait_until(lambda: all(map(is_behind(box), names)), f"all outputs: {box.log[-2000:]}")
            wait_until(lambda: status_of(server.url, "home.attic") is not None, "the status")
            kinds = {"event", "gap", "status", "mark"}
            # what the broker has confirmed is still on its way to those who read there
            wait_until(lambda: kinds_of(watcher) >= kinds, "all kinds of messages at the broker")
            assert box.stop() == 0
        found = stored(server.url)
        by_kind = Counter(one.subject.split(".")[3] for one in found)
        assert by_kind.keys() <= {"event", "gap", *OF_THE_TIME}
        assert by_kind["event"] + by_kind["gap"] == n_messages
        for one in found:
            check_body(one.body)
        check_body(status_of(server.url, "home.attic"))
        assert kinds_of(watcher) <= kinds | OF_THE_TIME
        for topic, payload, _ in watcher.got:
            if "/mark/" not in topic:
                check_body(json.loads(payload))
            assert len(payload) < 2000 or topic.endswith("status")
    for kind in ("event", "gap"):
        for message in cluster.messages(f"ast_stream.{kind}", by_kind[kind]):
            check_body(json.loads(message.value() or b""))


def kinds_of(watcher: Listener) -> set[str]:
    return {topic.split("/")[3] for topic, _, _ in list(watcher.got)}


def test_feeds_are_subscribed_for_events_gaps_and_health_alone() -> None:
    assert feed_source.TOPICS == ("event/", "gap/")
    assert health_source.TOPICS == ("health/", "status/worker/")


def test_summary_of_a_minute_has_the_level_of_the_stream_and_no_more(tmp_path: Path) -> None:
    now_ns = [60 * NS_PER_SECOND]
    with forward_box([nats_output("nats://127.0.0.1:1")]) as box:
        spool = HealthSpool(tmp_path / "spool")
        minutes = HealthMinutes(spool, lambda: now_ns[0])
        every = f"ipc://{box.folder}/feed.sock"
        with Subscriber(every, topics=["health/", "levels/", "status/"]) as feed:

            def is_heard() -> bool:
                with box.worker.lock:
                    publish_what_stays(box.worker.publisher)
                box.worker.publish(health(level_dbfs=-40.0))  # type: ignore[arg-type]
                item = feed.receive(0.1)
                if item is not None:
                    minutes.add(item, None)
                return bool(minutes._streams)

            wait_until(is_heard, "health")
        now_ns[0] += 60 * NS_PER_SECOND
        minutes.tick()
        (summary,) = spool.after(0, 10)
        check_body(summary.data)
        (stream,) = summary.data["streams"].values()
        assert stream["level_dbfs"] == {"mean": -40.0, "max": -40.0}
        spool.close()


def publish_what_stays(publisher: Any) -> None:
    """Publish what the feed of a box has beside events: levels, scores, a spectrogram."""
    publisher.publish(levels_message(stream=STREAMS[0]))
    publisher.publish(scores_header(), np.zeros(60, np.float16))
    publisher.publish(spectrogram_header(), spectrogram=np.zeros((2, 128), np.uint8))


def is_behind(box: Any) -> Any:
    """Return what says whether an output has confirmed all of the log."""

    def check(output: str) -> bool:
        position = box.position(output)
        marks = position.get("marks", {}).get("kept", [])
        sources = position.get("sources", {}) | (marks[-1][1] if marks else {})
        return bool(sources.get("feed") == list(box.logged()[-1].position))

    return check
