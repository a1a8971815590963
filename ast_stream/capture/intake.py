"""From a source into the ring: open, read, resample, time-stamp, and retry for ever.

A source that fails is closed and opened again for ever; the time that passed meanwhile becomes a
hole in the sample index with its reason. Nothing here ends a stream but the end of a recording.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ast_stream.audio.pcm import ChannelSelector, Pcm, Resampler
from ast_stream.capture.opus_ring import OpusRing
from ast_stream.capture.ring import Ring
from ast_stream.capture.sources.base import (
    Source,
    SourceBlock,
    SourceError,
    SourceHungError,
    SourceStatus,
)
from ast_stream.capture.sources.file import FilePlayer
from ast_stream.capture.sources.microphone import Microphone
from ast_stream.capture.sources.network import NetworkStream
from ast_stream.capture.sources.scene import ScenePlayer
from ast_stream.capture.sources.stdin import StandardInput
from ast_stream.errors import AudioError, CaptureError
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import Pcm16
from ast_stream.runtime.backoff import Backoff
from ast_stream.settings import streams
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, ns_to_samples, samples_to_ns

logger = logging.getLogger(__name__)

READ_TIMEOUT_S = 0.2
SILENCE_LIMIT_S = 3.0  # a live source without a block for so long is missing
RETRY_S = (0.5, 3.0)  # first and longest pause between two attempts: to be back within 5 s
STEADY_S = 5.0  # a source that is lost sooner after its first sound is tried ever more rarely
_STARTING = "starting"
_JITTER = 0.2  # part of the pause: many cameras of one site must not come back in step
_RING_PART = 4  # an unpaced source runs at most 1/4 of the ring ahead of the acknowledgements
_OVERFLOW = "overflow"
_RATE_LOG_NS = 3600 * NS_PER_SECOND

ENVELOPE_S = 60  # how far back arrivals are compared
SETTLE_S = 10  # first comparison after an anchor: the first blocks of a device come irregularly
STEP_NS = 20_000_000  # drift that is worth a step, about one block's jitter
_BUCKET_NS = NS_PER_SECOND  # arrivals of one second are kept as their earliest
_NS_PER_US = 1000


def make_source(settings: streams.Source) -> Source:
    """Return the source that `settings` describes, unopened."""
    match settings:
        case streams.MicrophoneSource():
            return Microphone(settings)
        case streams.FileSource():
            return FilePlayer(settings)
        case streams.UrlSource():
            return NetworkStream(settings)
        case streams.StdinSource():
            return StandardInput(settings)
        case streams.SceneSource():
            return ScenePlayer(settings)


class Intake:
    """One source feeding one ring; `run` is the body of a thread.

    Args:
        stop: ends `run` soon after it is set.
        channels: selects the channel of each block.
        coded: codes what goes into `ring`; None: it takes the samples as they are.
        warn_lost, warn_back: log a loss and its end; a flapping device may call them often.
        warn_fault: logs that the source gives what cannot be sound.
        random_unit: a number in [0, 1) for the jitter of the pauses.

    Attributes:
        failure: why nothing more will come although the source should have gone on, or None.
        trouble: why nothing comes although the source does not say so, as others have found.
        n_losses: times the source was lost.
        n_overflows: times samples were lost inside the source.
    """

    def __init__(
        self,
        source: Source,
        ring: Ring,
        stop: threading.Event,
        *,
        channels: ChannelSelector | None = None,
        coded: OpusRing | None = None,
        warn_lost: Callable[..., None] = logger.warning,
        warn_back: Callable[..., None] = logger.warning,
        warn_fault: Callable[..., None] = logger.warning,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        random_unit: Callable[[], float] = random.random,
    ) -> None:
        self.failure: Exception | None = None
        self.trouble: str | None = None
        self.n_losses = 0
        self.n_overflows = 0
        self._source = source
        self._ring = ring
        self._stop = stop
        self._channels = channels or ChannelSelector()
        self._coded = coded
        self._warn_lost = warn_lost
        self._warn_back = warn_back
        self._warn_fault = warn_fault
        self._monotonic_ns = monotonic_ns
        self._clock = CaptureClock()
        self._resampler: Resampler | None = None
        self._n_clipped = 0  # by resamplers before this one
        self._base = 0  # ring index of the resampler's first sample
        self._n_frames = 0  # frames given to the resampler
        self._gap_reason: str | None = None  # why the next block does not continue the last one
        self._lost_text: str | None = _STARTING
        self._has_ended = False
        self._began_ns = monotonic_ns()
        self._first_block_ns: int | None = None  # since the last opening
        self._last_block_ns = self._progress_ns = self._began_ns
        self._backoff = Backoff(
            *RETRY_S, healthy_s=STEADY_S, jitter=_JITTER, random_unit=random_unit
        )
        self._next_rate_log_ns = self._began_ns + _RATE_LOG_NS

    def status(self) -> SourceStatus:
        """Return the state of the source, correct even while a call to it hangs."""
        if self.trouble is not None:
            return SourceStatus("missing", self.trouble)
        if self._has_ended:
            return SourceStatus("ended", None if self.failure is None else str(self.failure))
        if self._lost_text is not None:
            return SourceStatus("missing", self._lost_text)
        silent_s = (self._monotonic_ns() - self._last_block_ns) / NS_PER_SECOND
        if self._source.is_live and silent_s > SILENCE_LIMIT_S:
            return SourceStatus("missing", f"no audio for {silent_s:.0f} s")
        if (fault := self._channels.fault) is not None:
            return SourceStatus("degraded", fault)
        return SourceStatus("listening")

    @property
    def data_age_s(self) -> float | None:
        """Seconds since the last block, None before the first."""
        if self._resampler is None:
            return None
        return (self._monotonic_ns() - self._last_block_ns) / NS_PER_SECOND

    @property
    def stuck_s(self) -> float:
        """Seconds since the last progress: a block arrived, or another attempt to open it failed.

        A source that is open and claims to work, but gives nothing, does not go on; a pipe whose
        writer pauses and a recording that waits for the worker do.
        """
        return (self._monotonic_ns() - self._progress_ns) / NS_PER_SECOND

    @property
    def has_ended(self) -> bool:
        """Whether the source has ended."""
        return self._has_ended

    @property
    def n_clipped(self) -> int:
        """Samples beyond full scale."""
        return self._n_clipped + (0 if self._resampler is None else self._resampler.n_clipped)

    def run(self) -> None:
        """Fill the ring until the source ends or `stop` is set; `failure` says what went wrong."""
        try:
            while not self._stop.is_set() and not self._has_ended:
                self._run_once()
        except SourceHungError as error:
            self._lost_text = str(error)
            self.failure = error
        except Exception as error:  # the main thread raises it: no bug may end a thread in silence
            self.failure = error

    def _run_once(self) -> None:
        """Open the source and read it until it is lost, ends, or `stop` is set."""
        self._first_block_ns = None
        try:
            self._source.open()
            self._progress_ns = self._monotonic_ns()
            if self._lost_text == _STARTING:
                self._lost_text = "open, but no audio yet"
            self._channels.restart()
            while not self._stop.is_set() and not self._has_ended:
                self._wait_for_worker()
                block = self._source.read(READ_TIMEOUT_S)
                if block is not None:
                    self._add(block)
                if block is not None or not self._source.is_live:
                    self._progress_ns = self._monotonic_ns()
            self._source.close()
        except SourceHungError:
            raise
        except CaptureError as error:
            self._lose(error)
            self._source.close()
            self._pause(error)
        except AudioError as error:
            logger.error("%s", error)
            self.failure = error
            self._end()
            self._source.close()

    def _wait_for_worker(self) -> None:
        if self._source.is_paced:
            return
        max_ahead = self._ring.capacity // _RING_PART
        while not self._stop.is_set() and not self._ring.wait_acked(max_ahead, READ_TIMEOUT_S):
            self._progress_ns = self._monotonic_ns()

    def _add(self, block: SourceBlock) -> None:
        pcm = self._selected(block)
        if block.overflowed and self._gap_reason is None and self._resampler is not None:
            self.n_overflows += 1
            self._gap_reason = _OVERFLOW
        if self._gap_reason is not None or self._resampler is None:
            self._continue_after_gap(block)
        elif self._resampler.rate != block.rate:
            self._begin_resampler(block.rate)
        elif self._source.is_live:
            here = self._base + self._n_frames * SAMPLE_RATE // block.rate
            self._clock.observe(here, block.monotonic_ns, block.captured_ns)
        assert self._resampler is not None
        self._write(self._resampler.push(pcm))
        self._n_frames += len(block.pcm)
        self._last_block_ns = self._monotonic_ns()
        self._lost_text = None
        if self._first_block_ns is None:
            self._first_block_ns = self._last_block_ns
        if block.is_last:
            self._end()
        self._log_rate()

    def _selected(self, block: SourceBlock) -> Pcm:
        """Return the selected channel of a block; log when a fault begins or ends."""
        before = self._channels.fault
        try:
            pcm = self._channels.select(block.pcm, block.rate)
        except AudioError as error:
            if not self._source.is_live:
                raise  # a recording does not grow a channel
            raise SourceError("channel_absent", str(error)) from error
        fault = self._channels.fault
        if before is None and fault is not None:
            self._warn_fault("no sound of a room: %s", fault)
        elif before is not None and fault is None:
            self._warn_back("the source gives sound again")
        return pcm

    def _log_rate(self) -> None:
        if self._last_block_ns >= self._next_rate_log_ns:
            self._next_rate_log_ns = self._last_block_ns + _RATE_LOG_NS
            if (rate_hz := self._clock.rate_hz()) is not None:
                logger.info("the source delivers %.2f samples per second of 16000", rate_hz)

    def _continue_after_gap(self, block: SourceBlock) -> None:
        """Count lost samples, and start a new time line at this block."""
        self._flush()
        if self._gap_reason is not None and self._source.is_live:
            lost = self._samples_lost(block)
            skipped = self._ring.skip(lost, self._gap_reason)
            self._warn_back(
                "audio goes on after %s: %.2f s lost", self._gap_reason, skipped / SAMPLE_RATE
            )
        if self._source.is_live or self._resampler is None:
            self._clock.anchor(self._ring.next, block.monotonic_ns, block.captured_ns)
        self._gap_reason = None
        self._begin_resampler(block.rate)

    def _samples_lost(self, block: SourceBlock) -> int:
        if self._resampler is None:  # the source was absent from the start
            return ns_to_samples(block.monotonic_ns - self._began_ns)
        return self._clock.samples_until(self._ring.next, block.monotonic_ns)

    def _begin_resampler(self, rate: int) -> None:
        self._flush()
        self._n_clipped = self.n_clipped
        self._resampler = Resampler(rate)
        self._base, self._n_frames = self._ring.next, 0

    def _lose(self, error: CaptureError) -> None:
        """Write the rest of the resampler; remember why the next block will not be consecutive."""
        self._flush()
        self.n_losses += 1
        reason = error.reason if isinstance(error, SourceError) else "source_lost"
        self._gap_reason = self._gap_reason or reason
        self._lost_text = str(error)
        self._warn_lost("%s; trying again", error)

    def _pause(self, error: CaptureError) -> None:
        max_s = getattr(error, "max_pause_s", None)
        began_ns = self._first_block_ns or self._last_block_ns
        gave_s = (self._last_block_ns - began_ns) / NS_PER_SECOND
        self._wait(self._backoff.after_run(gave_s, max_s))

    def _wait(self, duration_s: float) -> None:
        """Wait in steps, so that a long pause counts as progress."""
        while duration_s > 0 and not self._stop.is_set():
            self._progress_ns = self._monotonic_ns()
            self._stop.wait(min(duration_s, RETRY_S[1]))
            duration_s -= RETRY_S[1]
        self._progress_ns = self._monotonic_ns()

    def _end(self) -> None:
        self._flush()
        self._has_ended = True

    def _flush(self) -> None:
        if self._resampler is not None:
            self._write(self._resampler.flush())
        if self._coded is not None:
            self._coded.flush(self._clock.moment)

    def _write(self, pcm: Pcm16) -> None:
        if len(pcm) == 0:
            return
        step_ns = self._clock.step_ns(self._ring.next) if self._source.is_live else 0
        if step_ns:
            logger.info("audio clock moved by %.1f ms", step_ns / 1e6)
        if self._coded is not None:
            self._coded.write(pcm, self._clock.moment)
        else:
            self._ring.write(pcm, self._clock.moment(self._ring.next))


@dataclass(frozen=True)
class _Arrival:
    """The least delayed block of one second, relative to the line."""

    sample: int
    monotonic_ns: int
    delay_ns: int


@dataclass
class _Line:
    sample: int = 0
    wall_ns: int = 0
    monotonic_ns: int = 0
    wall_offset_ns: int = 0  # wall minus monotonic clock, as last seen
    compare_ns: int = 0  # monotonic time of the next comparison
    arrivals: deque[_Arrival] = field(default_factory=lambda: deque(maxlen=ENVELOPE_S))


class CaptureClock:
    """When samples were captured: a straight line, restarted when the clocks drift apart.

    Blocks arrive late by a varying delay and never early, so the lower envelope of (arrival time
    minus samples / rate) over the last minute shows when samples were really captured. The time of
    a sample is read off the current line alone: it does not depend on how audio was cut into
    blocks. Lines run on the monotonic clock; a step of the wall clock shows as one clean step of
    the line.
    """

    def __init__(self) -> None:
        self._line = _Line()

    def anchor(self, sample: int, monotonic_ns: int, wall_ns: int) -> None:
        """Start a line: `sample` was captured at these times (wall time is truncated to us)."""
        self._line = _Line(
            sample=sample,
            wall_ns=wall_ns // _NS_PER_US * _NS_PER_US,
            monotonic_ns=monotonic_ns,
            wall_offset_ns=wall_ns - monotonic_ns,
            compare_ns=monotonic_ns + SETTLE_S * NS_PER_SECOND,
        )

    def observe(self, sample: int, monotonic_ns: int, wall_ns: int) -> None:
        """Note that `sample` was captured at these times, or slightly earlier."""
        line = self._line
        line.wall_offset_ns = wall_ns - monotonic_ns
        arrival = _Arrival(sample, monotonic_ns, monotonic_ns - self.monotonic_ns(sample))
        newest = line.arrivals[-1] if line.arrivals else None
        if newest is None or newest.monotonic_ns // _BUCKET_NS != monotonic_ns // _BUCKET_NS:
            line.arrivals.append(arrival)
        elif arrival.delay_ns < newest.delay_ns:
            line.arrivals[-1] = arrival

    def step_ns(self, sample: int) -> int:
        """Start a new line at `sample` if the clocks have drifted apart.

        Returns:
            How much later (or, negative, earlier) `sample` is now; 0 if nothing changed.
        """
        line = self._line
        if not line.arrivals or line.arrivals[-1].monotonic_ns < line.compare_ns:
            return 0
        line.compare_ns = line.arrivals[-1].monotonic_ns + SETTLE_S * NS_PER_SECOND
        monotonic_ns = self.monotonic_ns(sample) + min(
            arrival.delay_ns for arrival in line.arrivals
        )
        wall_ns = monotonic_ns + line.wall_offset_ns
        step_ns = wall_ns - self.time_ns(sample)
        if abs(step_ns) <= STEP_NS:
            return 0
        self.anchor(sample, monotonic_ns, wall_ns)
        return step_ns

    def moment(self, sample: int) -> Moment:
        """Return when `sample` was captured."""
        return Moment(self.time_ns(sample), self.monotonic_ns(sample))

    def time_ns(self, sample: int) -> int:
        """Return the wall time of `sample`, nanoseconds since 1970."""
        return self._line.wall_ns + samples_to_ns(sample - self._line.sample)

    def monotonic_ns(self, sample: int) -> int:
        """Return the monotonic time of `sample`."""
        return self._line.monotonic_ns + samples_to_ns(sample - self._line.sample)

    def samples_until(self, sample: int, monotonic_ns: int) -> int:
        """Return how many samples lie between `sample` and a later moment; 0 if it is earlier."""
        return max(0, ns_to_samples(monotonic_ns - self.monotonic_ns(sample)))

    def rate_hz(self) -> float | None:
        """Return the device's rate, scaled to 16 kHz, fitted over the last minute; None if new."""
        arrivals = self._line.arrivals
        if len(arrivals) < 2 or arrivals[-1].sample - arrivals[0].sample < SETTLE_S * SAMPLE_RATE:
            return None
        mean_sample = sum(arrival.sample for arrival in arrivals) / len(arrivals)
        mean_ns = sum(arrival.monotonic_ns for arrival in arrivals) / len(arrivals)
        spread = sum((arrival.sample - mean_sample) ** 2 for arrival in arrivals)
        ns_per_sample = (
            sum(
                (arrival.sample - mean_sample) * (arrival.monotonic_ns - mean_ns)
                for arrival in arrivals
            )
            / spread
        )
        return NS_PER_SECOND / ns_per_sample
