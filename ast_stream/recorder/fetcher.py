"""Audio for the events at work, asked of the workers while they hold it: a minute.

What overlapping events need of a stream is asked for once. A worker that is busy, or not there,
is asked again a second later.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from ast_stream.errors import WireError
from ast_stream.messages.audio import MAX_BLOCK_SAMPLES
from ast_stream.messages.query import AudioAnswer, AudioQuery, Query
from ast_stream.messages.status import SOURCE_ENDED, Health
from ast_stream.recorder.held_audio import HeldAudio, Hole, Range
from ast_stream.recorder.plan import Source
from ast_stream.runtime.logging import LimitedLog
from ast_stream.units import SAMPLE_RATE, seconds_to_samples

ASK_EVERY_S = 0.5  # a worker that is killed has forgotten what was before a window
ASK_AGAIN_S = 3.0  # of a worker that did not answer: meanwhile the feed is read
IDLE_S = 15.0  # without new audio from a worker that answers, after which none is waited for
ABSENT_S = 150.0  # the same without an answer: a large model may have to be loaded
MAX_GAPS, MAX_SOURCES = 100, 1000
MAX_HELD = 300 * SAMPLE_RATE  # samples of one stream, whatever they are wanted for
UNJUDGED_S = 6.0  # with a window, how long audio may be withheld because it is not judged yet
TOO_OLD = "no longer held by the worker"
_TIMEOUT_S = 1.0
_AT_ONCE = 8  # answers for one stream in one turn

logger = logging.getLogger(__name__)


class Client(Protocol):
    """A QueryClient."""

    def ask(self, query: Query, timeout_s: float) -> list[bytes] | None:
        """Return the frames of the answer; None if none came in time."""


@dataclass
class _Line:
    """What is known of the audio of one stream and epoch.

    Attributes:
        idle_s: since when no new audio came; as `now_s`.
        refusal: why the last request was refused.
    """

    audio: HeldAudio
    next_s: float
    idle_s: float
    has_answer: bool = False
    refusal: str | None = None


class AudioFetcher:
    """Holds, of each stream and epoch, what events need.

    Args:
        client_of: the query client of the worker that a stream belongs to; None: of none.
        withholds: `privacy` is `speech`: the newest audio is silence until it is judged.

    Attributes:
        requests, refused: queries for audio, and those that were refused.
        window_s: of the model, as the worker says.
    """

    def __init__(
        self,
        client_of: Callable[[str], Client | None],
        *,
        withholds: bool = False,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client_of = client_of
        self._withholds = withholds
        self._now_s = now_s
        self._lines: dict[Source, _Line] = {}
        self._healths: dict[str, Health] = {}
        self._gaps: dict[Source, deque[Hole]] = {}  # the newest of each
        self._limited_log = LimitedLog(logger)
        self._silent: dict[int, float] = {}  # workers that do not answer, and since when
        self.window_s = 10.24
        self.requests = self.refused = 0

    def on_health(self, health: Health) -> None:
        """Take note of how a stream is."""
        self._healths[health.stream] = health

    def note(self, source: Source, hole: Hole) -> None:
        """Take note of a gap on the feed."""
        self._gaps.setdefault(source, deque(maxlen=MAX_GAPS)).append(hole)
        while len(self._gaps) > MAX_SOURCES:
            self._gaps.pop(next(iter(self._gaps)))
        if (line := self._lines.get(source)) is not None:
            line.audio.note(hole)

    def audio(self, source: Source) -> HeldAudio | None:
        """Return what is held."""
        line = self._lines.get(source)
        return None if line is None else line.audio

    def why_not(self, source: Source) -> str:
        """Return why there is no more audio."""
        line, health = self._lines.get(source), self._healths.get(source[0])
        if health is not None and health.epoch not in (None, source[1]):
            return "the capture process has begun anew"
        if health is not None and health.detail == SOURCE_ENDED:
            return SOURCE_ENDED
        if line is not None and line.refusal is not None:
            return line.refusal
        return "no more audio came" if line is None or line.has_answer else "the worker is gone"

    def ends(self) -> dict[Source, int]:
        """Return where what is held ends."""
        return {source: line.audio.end for source, line in self._lines.items()}

    def over(self) -> Iterator[Source]:
        """Yield of which streams and epochs no more audio is to be expected."""
        now_s = self._now_s()
        for source, line in self._lines.items():
            idle_s = now_s - line.idle_s
            health = self._healths.get(source[0])
            is_past = health is not None and health.epoch not in (None, source[1])
            has_ended = health is not None and health.detail == SOURCE_ENDED
            if ((is_past or has_ended) and line.has_answer and idle_s > ASK_EVERY_S) or (
                idle_s > (IDLE_S if line.has_answer else ABSENT_S)
            ):
                yield source

    def absent(self) -> Iterator[Source]:
        """Yield of which streams and epochs the worker does not answer."""
        for source, line in self._lines.items():
            if not line.has_answer:
                yield source

    def fetch(self, wanted: Mapping[Source, int], takes_all: Container[Source] = ()) -> None:
        """Ask for what is wanted and not there, and let go of the rest.

        Args:
            wanted: first sample that is needed, of each stream and epoch.
            takes_all: of which what is withheld is taken as it is, for there will be no later.
        """
        now_s = self._now_s()
        for source in [source for source in self._lines if source not in wanted]:
            del self._lines[source]
        for source, first in wanted.items():
            line = self._lines.get(source)
            if line is None:
                line = self._lines[source] = _Line(self._begin(source, first), now_s, now_s)
            line.audio.forget(max(first, line.audio.end - MAX_HELD))
            if first < line.audio.start and line.audio.end > line.audio.start:
                self._fetch_before(source, line, first)
            elif first < line.audio.start:
                line.audio = self._begin(source, first)
            if now_s >= line.next_s or source in takes_all:
                line.next_s = now_s + ASK_EVERY_S
                self._fetch_behind(source, line, takes_all=source in takes_all)

    def _begin(self, source: Source, first: int) -> HeldAudio:
        audio = HeldAudio(first)
        for hole in self._gaps.get(source, ()):
            audio.note(hole)
        return audio

    def _fetch_behind(self, source: Source, line: _Line, *, takes_all: bool) -> None:
        for _ in range(_AT_ONCE):
            start = line.audio.end
            answer = self._ask(source, line, start, start + MAX_BLOCK_SAMPLES)
            if answer is None:
                return
            block = answer.block
            if block.start_sample > start:
                stop = min(block.start_sample, start + MAX_BLOCK_SAMPLES)
                line.audio.append_hole(stop, TOO_OLD)
                line.idle_s = self._now_s()
                continue
            is_full = len(block.pcm) == MAX_BLOCK_SAMPLES
            pcm, withheld = block.pcm, answer.withheld or []
            if not takes_all:
                pcm = pcm[: self._n_judged(source, block.end_sample, withheld) - start]
            if len(pcm):
                line.idle_s = self._now_s()
                line.audio.append(pcm, _before(withheld, start + len(pcm)))
            if not is_full or len(pcm) < len(block.pcm):
                return

    def _fetch_before(self, source: Source, line: _Line, first: int) -> None:
        """Fetch what an event needs that began before the others."""
        while line.audio.start > first:
            stop = line.audio.start
            start = max(first, stop - MAX_BLOCK_SAMPLES)
            answer = self._ask(source, line, start, stop)
            if answer is None:
                return  # tried again with the next turn
            block = answer.block
            if block.end_sample == stop and len(block.pcm):
                line.audio.prepend(block.pcm, answer.withheld or [])
            if line.audio.start > start:  # it is older than what the worker holds
                line.audio.prepend_hole(first, TOO_OLD)

    def _n_judged(self, source: Source, end: int, withheld: list[Range]) -> int:
        """Return the index up to which an answer is final.

        With `privacy: speech` the newest audio is withheld until it is judged, and then may be
        had: it is asked for again.
        """
        if not self._withholds or not withheld or withheld[-1][1] < end:
            return end
        health = self._healths.get(source[0])
        newest_s = None if health is None else health.audio_s
        newest = end if newest_s is None else max(end, seconds_to_samples(newest_s))
        judged = newest - seconds_to_samples(self.window_s + UNJUDGED_S)
        return max(withheld[-1][0], min(end, judged))

    def _ask(self, source: Source, line: _Line, start: int, stop: int) -> AudioAnswer | None:
        """Return an answer; None if there is none, or it is a refusal."""
        client = self._client_of(source[0])
        if client is None or self._now_s() < self._silent.get(id(client), 0.0):
            return None
        self.requests += 1
        stream, epoch = source
        frames = client.ask(
            AudioQuery(stream=stream, epoch=epoch, start=start, stop=stop), _TIMEOUT_S
        )
        if frames is None:  # its other streams need not be asked in this turn
            self._silent[id(client)] = self._now_s() + ASK_AGAIN_S
            line.has_answer = False
            return None
        try:
            answer = AudioAnswer.decode(frames)
            if answer.block.epoch != epoch or answer.block.stream != stream:
                raise WireError(f"audio: expected {stream} {epoch}, got {answer.block.stream}")
        except WireError as error:
            self.refused += 1
            line.has_answer, line.refusal = True, str(error)
            self._limited_log.warning("no audio of %s for clips: %s", stream, error)
            return None
        line.has_answer, line.refusal = True, None
        return answer


def _before(ranges: list[Range], end: int) -> list[Range]:
    return [(start, min(stop, end)) for start, stop in ranges if start < end]
