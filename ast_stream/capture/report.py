"""The status line and the metrics of a capture process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np

from ast_stream.capture.sources.base import SourceState
from ast_stream.capture.stream import StreamCapture
from ast_stream.messages.pool import Placement
from ast_stream.runtime.metrics import Family, figure
from ast_stream.units import FULL_SCALE, SAMPLE_RATE, amplitude_to_dbfs

_LEVEL_SAMPLES = SAMPLE_RATE // 2
_MAX_NAMED = 3  # streams in one line


def status_of(stream: StreamCapture) -> str:
    """Return how one stream is, in words."""
    status, intake = stream.run.intake.status(), stream.run.intake
    if status.state == "missing":
        return f"waiting for {stream.name}: {status.detail}"
    if stream.link is not None and (trouble := stream.link.status()) is not None:
        return f"{stream.name}: {trouble}"
    if status.state == "ended":
        return f"{stream.name} has ended, the worker reads the rest"
    level = level_dbfs(stream)
    text = f"capturing {stream.name}" + ("" if level is None else f", {level:.0f} dBFS")
    if status.state == "degraded":
        text += f", {status.detail}"
    return text + (f", lost {intake.n_losses} times" if intake.n_losses else "")


def status_of_all(streams: Sequence[StreamCapture], others: Sequence[str] = ()) -> str:
    """Return how the streams of a process are, in words.

    Args:
        others: what is to be said of streams that are not captured, such as those that ended.
    """
    if len(streams) == 1 and not others:
        return status_of(streams[0])
    missing = [stream for stream in streams if stream.run.intake.status().state == "missing"]
    text = f"capturing {len(streams) - len(missing)} of {len(streams)} streams"
    said = [*map(status_of, missing), *others]
    if len(said) > _MAX_NAMED:
        said = [*said[:_MAX_NAMED], f"and {len(said) - _MAX_NAMED} more"]
    return "; ".join([text, *said])


def families(streams: Sequence[StreamCapture]) -> list[Family]:
    """Return the figures of all streams."""

    def own(name: str, help: str, value: Callable[[StreamCapture], float | None]) -> Family:
        values = {(stream.name,): value(stream) for stream in streams}
        return figure(f"ast_stream_capture_{name}", help, values, ("stream",))

    def held(stream: StreamCapture) -> float:
        return stream.run.ring.next - stream.run.ring.acked

    states = {
        (stream.name, known): float(known == state)
        for stream, state in [(stream, stream.run.intake.status().state) for stream in streams]
        for known in get_args(SourceState)
    }
    return [
        figure(
            "ast_stream_capture_state",
            "1 for the state that the source is in",
            states,
            ("stream", "state"),
        ),
        own(
            "data_age_seconds",
            "Since the source gave its last block",
            lambda stream: stream.run.intake.data_age_s,
        ),
        own("level_dbfs", "Level of the last half second", level_dbfs),
        own(
            "samples_total",
            "Samples since the source began, lost ones too",
            lambda stream: stream.run.ring.next,
        ),
        own("unacknowledged_samples", "Samples the worker has yet to acknowledge", held),
        own(
            "losses_total",
            "Times that the source was lost",
            lambda stream: stream.run.intake.n_losses,
        ),
        own(
            "restarts_total",
            "Times that the source hung or failed, and the stream began again",
            lambda stream: stream.n_restarts,
        ),
        own(
            "overflows_total",
            "Times that the device lost samples",
            lambda stream: stream.run.intake.n_overflows,
        ),
        own(
            "clipped_samples_total",
            "Samples beyond full scale",
            lambda stream: stream.run.intake.n_clipped,
        ),
        own(
            "blocks_sent_total",
            "Blocks handed to the worker",
            lambda stream: stream.run.server.n_sent,
        ),
        own(
            "block_bytes_total",
            "Bytes of the blocks handed to the worker, with their headers",
            lambda stream: stream.run.server.n_bytes,
        ),
        own(
            "blocks_refused_total",
            "Blocks left in the ring",
            lambda stream: stream.run.server.n_refused,
        ),
        own(
            "worker_changes_total",
            "Times that the stream went to another worker of the pool",
            lambda stream: 0 if stream.link is None else stream.link.figures.moves,
        ),
        own(
            "worker_takeovers_total",
            "Of these changes, those because the worker before was gone",
            lambda stream: 0 if stream.link is None else stream.link.figures.takeovers,
        ),
        figure(
            "ast_stream_capture_worker",
            "1 for the worker of the pool that has the stream; none while there is none",
            {
                (stream.name, placement.worker): 1
                for stream in streams
                if (placement := _placement(stream)) is not None and placement.worker is not None
            },
            ("stream", "worker"),
        ),
        own(
            "worker_age_seconds",
            "Since that worker took the stream",
            lambda stream: None if stream.link is None else stream.link.worker_age_s,
        ),
        own(
            "handover_seconds",
            "From the last acknowledgement of one worker to the first of the next, at the last "
            "change",
            lambda stream: None if stream.link is None else stream.link.figures.handover_s,
        ),
        own(
            "hellos_total",
            "Hellos to workers on other boxes",
            lambda stream: 0 if stream.link is None else stream.link.figures.hellos,
        ),
        own(
            "record_bytes_total",
            "Bytes of journal records that workers of the pool gave",
            lambda stream: 0 if stream.link is None else stream.link.figures.record_bytes,
        ),
        own(
            "malformed_requests_total",
            "Requests refused",
            lambda stream: stream.run.server.n_malformed,
        ),
    ]


def _placement(stream: StreamCapture) -> Placement | None:
    return None if stream.link is None else stream.link.placement()


def level_dbfs(stream: StreamCapture) -> float | None:
    """Return the level of the last half second, None where nothing comes."""
    ring = stream.run.ring
    stop = ring.next
    pcm = ring.read(max(0, stop - _LEVEL_SAMPLES), stop, _LEVEL_SAMPLES).pcm
    if len(pcm) == 0 or stream.run.intake.status().state not in ("listening", "degraded"):
        return None
    samples = pcm.astype(np.float32) / FULL_SCALE
    return amplitude_to_dbfs(float(np.sqrt(np.mean(samples * samples))))
