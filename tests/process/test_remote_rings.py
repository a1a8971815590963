"""A worker reads the rings of another box: neither a kill nor a cut network loses anything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cuttable_network import CuttableNetwork
from pipeline import Pipeline, events_of, pipeline, wait_for
from ports import free_ports
from reactive_model import tones_and_noise

from ast_stream.messages.audio import Pcm16

FAST = {"type": "file", "pace": "fast"}
STREAMS = ["porch", "yard"]


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(60.0)


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, pcm: Pcm16) -> list[tuple[object, ...]]:
    """What a worker finds that meets the capture process on one box."""
    with pipeline(checkpoint, {"porch": dict(FAST)}) as run:
        run.write_audio(pcm)
        run.start_worker()
        run.start_capture("porch")
        assert run.wait("capture-porch") == 0, run.log("capture-porch")
        run.stop("worker")
        return events_of(run.published(), "porch")


class Boxes:
    """The worker's, whose configuration has no stream of the other one, and the microphones'."""

    def __init__(self, worker: Pipeline, microphones: Pipeline, network: CuttableNetwork) -> None:
        self.worker = worker
        self.microphones = microphones
        self.network = network

    def start(self) -> None:
        self.start_worker()
        self.microphones.start("capture", "capture")

    def start_worker(self) -> None:
        boots = self.worker.log("worker").count("ready:")
        self.worker.start_worker()
        wait_for(lambda: self.worker.log("worker").count("ready:") > boots, "worker ready")

    def n_events(self) -> int:
        logs = (self.worker.folder / "state" / "events").glob("*.jsonl")
        return sum(path.read_bytes().count(b'"topic":"event/') for path in logs)

    def wait_for_events(self, n_events: int) -> None:
        wait_for(lambda: self.n_events() >= n_events, f"{n_events} events")

    def finish(self) -> dict[str, list[tuple[object, ...]]]:
        assert self.microphones.wait("capture") == 0, self.microphones.log("capture")
        self.worker.stop("worker")
        published = self.worker.published()
        assert not [body for topic, body in published if topic.startswith("gap/")]
        ids = [
            (body["id"], body["type"], body["at_sample"])
            for topic, body in published
            if topic.startswith("event/")
        ]
        assert len(set(ids)) == len(ids)
        return {name: events_of(published, name) for name in STREAMS}


@pytest.fixture
def boxes(checkpoint: Path, pcm: Pcm16) -> Iterator[Boxes]:
    port = free_ports(4)
    away = {"audio": f"tcp://127.0.0.1:{port}", "rings": f"tcp://127.0.0.1:{port + 1}"}
    here = {"audio": f"tcp://127.0.0.1:{port + 2}", "rings": f"tcp://127.0.0.1:{port + 3}"}
    network = CuttableNetwork({port: port + 2, port + 1: port + 3})
    own = {"unused": {"type": "file", "path": "unused.wav"}}
    sources = {name: dict(FAST) for name in STREAMS}
    try:
        with (
            pipeline(checkpoint, own, transport=here) as worker,
            pipeline(checkpoint, sources, transport=away) as microphones,
        ):
            microphones.write_audio(pcm)
            yield Boxes(worker, microphones, network)
    finally:
        network.close()


def test_streams_of_another_box_give_the_same_events(
    boxes: Boxes, undisturbed: list[tuple[object, ...]]
) -> None:
    boxes.start()
    same(boxes, undisturbed)


def test_a_killed_worker_reads_the_rings_of_other_boxes(
    boxes: Boxes, undisturbed: list[tuple[object, ...]]
) -> None:
    boxes.start()
    for n_events in (4, 30):
        boxes.wait_for_events(n_events)
        boxes.worker.kill("worker")
        boxes.start_worker()
    same(boxes, undisturbed)


@pytest.mark.parametrize("is_noticed", [True, False])
def test_a_cut_network_loses_nothing_that_the_ring_holds(
    boxes: Boxes, undisturbed: list[tuple[object, ...]], is_noticed: bool
) -> None:
    boxes.start()
    boxes.wait_for_events(4)
    boxes.network.cut(is_noticed=is_noticed)
    threading.Event().wait(6.5)  # longer than it takes to end the events of a lost stream
    boxes.network.mend()
    same(boxes, undisturbed)


def same(boxes: Boxes, undisturbed: list[tuple[object, ...]]) -> None:
    """Check that the streams have the events of an undisturbed one, and name the first other."""
    for name, events in boxes.finish().items():
        for event, wanted in zip(events, undisturbed, strict=False):
            assert event == wanted, f"{name}: {boxes.worker.log('worker')[-3000:]}"
        assert len(events) == len(undisturbed)
