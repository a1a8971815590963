"""A microphone box and a worker box that meet over a network which can be cut, with Opus or PCM.

    PYTHONPATH=tests/process:tests/support python -m opus_boxes --seconds 120 --kills 3 --cut 20

As a command: a recording in real time, kills of the worker and one cut at moments of a seed, then
the events against those of an undisturbed run, and the bytes at the sockets.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cuttable_network import CuttableNetwork
from opus_blocks import coded_samples
from pipeline import Body, Pipeline, events_of, pipeline, wait_for
from ports import free_ports
from reactive_model import save_reactive, tones_and_noise

from ast_stream.audio.opus import joined
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.query import Snapshot, SnapshotQuery
from ast_stream.transport.query import QueryClient
from ast_stream.transport.sockets import Sockets

BIT_RATE = 32_000
OPUS: Body = {"codec": "opus", "bit_rate": BIT_RATE}
PATIENCE_S = 60.0
Events = list[tuple[Any, ...]]


class OpusBoxes:
    """Both boxes, started by hand; the stream is `porch`."""

    def __init__(self, worker: Pipeline, microphone: Pipeline, network: CuttableNetwork) -> None:
        self.worker = worker
        self.microphone = microphone
        self.network = network

    def start_worker(self) -> None:
        """Start the worker and wait until it is ready, however often it was before."""
        boots = self.worker.log("worker").count("ready:")
        self.worker.start_worker()
        wait_for(lambda: self.worker.log("worker").count("ready:") > boots, "worker ready")

    def start_capture(self) -> None:
        """Start the capture process."""
        self.microphone.start("capture", "capture")

    def wait_for_events(self, n_events: int) -> None:
        """Wait until so many events are in the worker's log."""
        logs = self.worker.folder / "state" / "events"

        def has_come() -> bool:
            parts = [path.read_bytes() for path in logs.glob("*.jsonl")]
            return sum(part.count(b'"topic":"event/') for part in parts) >= n_events

        wait_for(has_come, f"{n_events} events")

    def counters(self) -> dict[str, int]:
        """Return what the worker has counted since it started."""
        sockets = Sockets()
        try:
            client = QueryClient(sockets, f"ipc://{self.worker.folder}/run/query.sock")
            frames = client.ask(SnapshotQuery(), 30.0)
            assert frames is not None
            return dict(Snapshot.decode(frames).status.counters)
        finally:
            sockets.close()

    def wait_for_the_end(self, patience_s: float) -> None:
        """Wait until the worker has had everything."""
        ended = "the source has ended"
        wait_for(lambda: ended in self.worker.log("worker"), "the end", patience_s)

    def finish(self) -> tuple[Events, list[Body]]:
        """Stop the worker; return its events, and gaps."""
        assert self.worker.stop("worker") == 0
        published = self.worker.published()
        gaps = [body for topic, body in published if topic.startswith("gap/")]
        return events_of(published, "porch"), gaps


@contextmanager
def opus_boxes(
    checkpoint: Path, pcm: Pcm16, wire: Body, source: Body | None = None
) -> Iterator[OpusBoxes]:
    """Yield two boxes; nothing runs yet, and all is gone afterwards."""
    port = free_ports(4)
    away = {"audio": f"tcp://127.0.0.1:{port}", "rings": f"tcp://127.0.0.1:{port + 1}"}
    here = {"audio": f"tcp://127.0.0.1:{port + 2}", "rings": f"tcp://127.0.0.1:{port + 3}"}
    network = CuttableNetwork({port: port + 2, port + 1: port + 3})
    unused = {"unused": {"type": "file", "path": "unused.wav"}}
    porch: Body = {"type": "file"} | (source or {})
    try:
        with (
            pipeline(checkpoint, unused, transport=here) as worker,
            pipeline(checkpoint, {"porch": porch}, transport=away, wire=wire) as microphone,
        ):
            microphone.write_audio(pcm)
            yield OpusBoxes(worker, microphone, network)
    finally:
        network.close()


def undisturbed_events(checkpoint: Path, pcm: Pcm16, wire: Body) -> Events:
    """Return the events of what the codec leaves of the sound, on one box, sent as PCM."""
    left = pcm if wire["codec"] == "pcm" else joined(coded_samples(pcm, wire["bit_rate"]))
    with pipeline(checkpoint, {"porch": {"type": "file", "pace": "fast"}}) as run:
        run.write_audio(left)
        run.start_worker()
        run.start_capture("porch")
        assert run.wait("capture-porch") == 0, run.log("capture-porch")
        assert run.stop("worker") == 0
        return events_of(run.published(), "porch")


def main() -> int:
    """Run from the command line; exit code 0 only if nothing differs and nothing is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--kills", type=int, default=3, help="of the worker, by SIGKILL")
    parser.add_argument("--cut", type=float, default=20.0, help="seconds without network; 0: none")
    parser.add_argument("--codec", choices=("pcm", "opus"), default="opus")
    parser.add_argument("--bit-rate", type=int, default=BIT_RATE)
    parser.add_argument("--block", type=float, default=0.1, help="block_s of wire")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    wire = {"codec": options.codec, "bit_rate": options.bit_rate, "block_s": options.block}
    pcm, rng = tones_and_noise(options.seconds), random.Random(options.seed)
    acts = [*["kill"] * options.kills, *(["cut"] if options.cut else [])]
    rng.shuffle(acts)
    pause = threading.Event().wait
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_reactive(Path(folder))
        expected = undisturbed_events(checkpoint, pcm, wire)
        with opus_boxes(checkpoint, pcm, wire) as boxes:
            boxes.start_worker()
            boxes.start_capture()
            for act in acts:
                pause(rng.uniform(0.5, 0.5 * options.seconds / len(acts)))
                if act == "kill":
                    boxes.worker.kill("worker")
                    boxes.start_worker()
                else:
                    boxes.network.cut()
                    pause(options.cut)
                    boxes.network.mend()
            boxes.wait_for_the_end(options.seconds + PATIENCE_S)
            counted = boxes.counters()
            n_bytes = boxes.network.bytes_sent
            found, gaps = boxes.finish()
    report = {
        "wire": wire,
        "acts": acts,
        "events": len(found),
        "as_undisturbed": found == expected,
        "gaps": len(gaps),
        "bytes_both_ways": n_bytes,
        "kbit_s": round(8 * n_bytes / options.seconds / 1000, 1),
        "mb_a_day": round(n_bytes / options.seconds * 86_400 / 1e6),
        "since_last_start": {key: n for key, n in counted.items() if key.startswith("opus_")},
    }
    print(json.dumps(report, indent=1))
    return 0 if found == expected and not gaps else 1


if __name__ == "__main__":
    sys.exit(main())
