"""A microphone box and a worker box that meet over tcp with keys, as their users set them up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked_command import run_command
from pipeline import PATIENCE_S, Body, Pipeline, pipeline, wait_for
from ports import free_ports
from reactive_model import tones_and_noise

from ast_stream.feed import ClientKeys, FeedMessage, Subscriber
from ast_stream.messages.query import AudioQuery, SnapshotQuery
from ast_stream.transport.query import QueryClient
from ast_stream.transport.sockets import Sockets


def command(*args: object) -> str:
    """Run a command that ends by itself, and return what it prints."""
    done = run_command(*map(str, args))
    assert done.returncode == 0, done.stderr
    return done.stdout


class Boxes:
    """The worker's, the microphone's, and the keys of both and of a reader."""

    def __init__(self, folder: Path, worker: Pipeline, microphone: Pipeline) -> None:
        self.keys = folder
        self.worker = worker
        self.microphone = microphone

    def authorise(self, name: str, *rights: str) -> None:
        command(
            *("keys", "authorise", self.keys / f"{name}.key", *rights),
            *("--allow-list", self.keys / "allowed.json"),
        )

    def client(self, name: str) -> ClientKeys:
        return ClientKeys.load(self.keys / f"{name}.key_secret", self.keys / "worker.key")


@pytest.fixture
def boxes(tmp_path: Path, checkpoint: Path) -> Iterator[Boxes]:
    for name in ("worker", "microphone", "reader"):
        command("keys", "create", name, "--dir", tmp_path)
    port = free_ports(3)
    endpoints = {
        name: f"tcp://127.0.0.1:{port + n}" for n, name in enumerate(("audio", "feed", "query"))
    }
    server = {
        "server_secret": str(tmp_path / "worker.key_secret"),
        "client_secret": str(tmp_path / "reader.key_secret"),
        "allow_list": str(tmp_path / "allowed.json"),
    }
    client = {
        "server_key": str(tmp_path / "worker.key"),
        "client_secret": str(tmp_path / "microphone.key_secret"),
    }

    def source() -> dict[str, Body]:
        return {"porch": {"type": "file", "pace": "realtime", "loop": True}}

    with (
        pipeline(checkpoint, source(), transport=endpoints | {"curve": server}) as worker,
        pipeline(checkpoint, source(), transport=endpoints | {"curve": client}) as microphone,
    ):
        microphone.write_audio(tones_and_noise(8.0))
        yield Boxes(tmp_path, worker, microphone)


def heard(feed: Subscriber, topic: str, **wanted: object) -> Body:
    """Return the body of the next message of a topic with such fields."""
    found: list[Body] = []

    def has_come() -> bool:
        item = feed.receive(0.1)
        if isinstance(item, FeedMessage) and item.topic.startswith(topic):
            found.extend([item.body] if wanted.items() <= item.body.items() else [])
        return bool(found)

    wait_for(has_come, f"{topic} with {wanted}")
    return found[0]


@pytest.mark.slow
def test_boxes_meet_with_keys_and_each_has_only_its_rights(boxes: Boxes) -> None:
    boxes.authorise("reader", "feed")
    boxes.worker.start_worker()
    boxes.microphone.start_capture("porch")
    endpoints = json.loads(boxes.worker.config.read_text())["transport"]
    wait_for(lambda: "ready:" in boxes.worker.log("worker"), "the worker")
    refused = "refuses the connection: this key is not allowed there"
    wait_for(lambda: refused in boxes.microphone.log("capture-porch"), "the refusal of the box")
    assert "is not in" in boxes.worker.log("worker")
    topics = ("event/", "health/", "scores/")
    with Subscriber(
        endpoints["feed"],
        topics=topics,
        query=endpoints["query"],
        keys=boxes.client("reader"),
    ) as feed:
        heard(feed, "health/porch/", state="missing")
        boxes.authorise("microphone", "push:yard")
        wait_for(lambda: "may not send it" in boxes.worker.log("worker"), "audio of another's")
        boxes.authorise("microphone", "push:porch")
        begin = heard(feed, "event/", type="begin")
        assert begin["stream"] == "porch"
        out = command(
            *("subscribe", "--endpoint", endpoints["feed"], "--query", endpoints["query"]),
            *("--client-key", boxes.keys / "reader.key_secret"),
            *("--server-key", boxes.keys / "worker.key", "--count", "1", "--replay"),
        )
        assert json.loads(out)["id"] == begin["id"]
        command("keys", "revoke", "microphone", "--allow-list", boxes.keys / "allowed.json")
        heard(feed, "health/porch/", state="missing")
        boxes.authorise("microphone", "push:porch")
        heard(feed, "health/porch/", state="listening")
    sockets = Sockets(boxes.client("reader"))
    query = QueryClient(sockets, endpoints["query"])
    audio = AudioQuery(stream="porch", start=0, stop=1600)  # type: ignore[call-arg]
    assert b"lacks the right 'audio'" in (query.ask(audio, PATIENCE_S) or [b""])[0]
    boxes.authorise("reader", "audio")
    wait_for(
        lambda: b"lacks the right 'feed'" in (query.ask(SnapshotQuery(), 1.0) or [b""])[0],
        "the change of rights",
    )
    answer = query.ask(audio, PATIENCE_S)
    assert answer is not None
    assert len(answer) == 2, answer
    sockets.close()
    assert boxes.microphone.stop("capture-porch") == 0
    assert boxes.worker.stop("worker") == 0
