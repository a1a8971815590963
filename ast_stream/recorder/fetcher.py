"""Fetches audio for clips from the workers within the minute for which they hold it.

Audio that several overlapping events need is requested once. A worker that is busy or unreachable
is asked again later.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

from ast_stream.errors import WireError
from ast_stream.messages.audio import MAX_BLOCK_SAMPLES
from ast_stream.messages.query import AudioAnswer, AudioQuery, Query
from ast_stream.messages.status import SOURCE_ENDED, Health
from ast_stream.recorder.held_audio import HeldAudio, Hole, Range
from ast_stream.recorder.plan import StreamEpoch
from ast_stream.runtime.logging import LimitedLog
from ast_stream.units import SAMPLE_RATE, seconds_to_samples

ASK_EVERY_S = 0.5  # often, since a restarted worker only has the audio from one window back on
ASK_AGAIN_S = 3.0  # after a missing answer; meanwhile the feed is read
IDLE_S = 15.0  # without new audio from a worker that answers: none is expected any more
ABSENT_S = 150.0  # the same without any answer: a large model may have to be loaded
MAX_GAPS, MAX_SOURCES = 100, 1000
MAX_HELD = 300 * SAMPLE_RATE  # samples of one stream at most
UNJUDGED_S = 6.0  # plus a window: how long audio may be withheld because it is not judged yet
TOO_OLD = "no longer held by the worker"
_TIMEOUT_S = 1.0
_AT_ONCE = 8  # answers for one stream in one turn

logger = logging.getLogger(__name__)


class Client(Protocol):
    """The part of QueryClient that is needed here."""

    def ask(self, query: Query, timeout_s: float) -> list[bytes] | None:
        """Return the frames of the answer; None: there was none in time."""


@dataclass
class _AudioState:
    """The state of the audio of one stream and epoch.

    Attributes:
        idle_s: since when there was no new audio, by `now_s`.
        is_from_first: the held audio begins at the first sample wanted.
        refusal: why the last request was refused.
        client: the client that was asked last.
        reached: end of the audio that this worker had in its last answer.
    """

    audio: HeldAudio
    next_s: float
    idle_s: float
    has_answer: bool = False
    is_from_first: bool = True
    refusal: str | None = None
    client: Client | None = None
    reached: int | None = None


class AudioFetcher:
    """Holds the audio of each stream and epoch that events need.

    Args:
        client_of: returns the query client of the worker that has a stream now; None: none can be
            asked.
        withholds: with `privacy: speech` the newest audio is silence until it is judged.

    Attributes:
        requests, refused: number of audio queries, and of those that were refused.
        window_s: of the model, as reported by the worker.
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
        self._states: dict[StreamEpoch, _AudioState] = {}
        self._healths: dict[str, Health] = {}
        self._gaps: dict[StreamEpoch, deque[Hole]] = {}  # the newest of each
        self._limited_log = LimitedLog(logger)
        self._silent_until_s: WeakKeyDictionary[Client, float] = WeakKeyDictionary()
        self.window_s = 10.24
        self.requests = self.refused = 0

    def on_health(self, health: Health) -> None:
        """Process a health message of the feed."""
        self._healths[health.stream] = health

    def note(self, source: StreamEpoch, hole: Hole) -> None:
        """Process a gap of the feed."""
        self._gaps.setdefault(source, deque(maxlen=MAX_GAPS)).append(hole)
        while len(self._gaps) > MAX_SOURCES:
            self._gaps.pop(next(iter(self._gaps)))
        if (state := self._states.get(source)) is not None:
            state.audio.note(hole)

    def audio(self, source: StreamEpoch) -> HeldAudio | None:
        """Return the held audio."""
        state = self._states.get(source)
        return None if state is None else state.audio

    def why_not(self, source: StreamEpoch) -> str:
        """Return why there is no more audio."""
        state, health = self._states.get(source), self._healths.get(source[0])
        if health is not None and health.epoch not in (None, source[1]):
            return "the capture process has begun anew"
        is_empty = state is not None and state.audio.end <= state.audio.start
        if is_empty and state is not None and state.refusal is not None:
            return state.refusal  # there was no audio before the end either
        if health is not None and health.detail == SOURCE_ENDED:
            return SOURCE_ENDED
        if state is not None and state.refusal is not None:
            return state.refusal
        return "no more audio came" if state is None or state.has_answer else "the worker is gone"

    def ends(self) -> dict[StreamEpoch, int]:
        """Return the end of the held audio of each source whose beginning has been fetched."""
        return {
            source: state.audio.end for source, state in self._states.items() if state.is_from_first
        }

    def over(self) -> Iterator[StreamEpoch]:
        """Yield the streams and epochs of which no more audio is expected."""
        now_s = self._now_s()
        for source, state in self._states.items():
            idle_s = now_s - state.idle_s
            health = self._healths.get(source[0])
            is_past = health is not None and health.epoch not in (None, source[1])
            has_ended = health is not None and health.detail == SOURCE_ENDED
            if ((is_past or has_ended) and state.has_answer and idle_s > ASK_EVERY_S) or (
                idle_s > (IDLE_S if state.has_answer else ABSENT_S)
            ):
                yield source

    def absent(self) -> Iterator[StreamEpoch]:
        """Yield the streams and epochs whose worker does not answer."""
        for source, state in self._states.items():
            if not state.has_answer:
                yield source

    def fetch(
        self, wanted: Mapping[StreamEpoch, int], takes_all: Container[StreamEpoch] = ()
    ) -> None:
        """Fetch audio that is wanted and missing, and release the rest.

        Args:
            wanted: first sample needed, by stream and epoch.
            takes_all: streams and epochs whose withheld audio is taken as it is, since there is no
                later chance.
        """
        now_s = self._now_s()
        for source in [source for source in self._states if source not in wanted]:
            del self._states[source]
        for source, first in wanted.items():
            state = self._states.get(source)
            if state is None:
                state = self._states[source] = _AudioState(self._begin(source, first), now_s, now_s)
            state.audio.forget(max(first, state.audio.end - MAX_HELD))
            if first < state.audio.start and state.audio.end > state.audio.start:
                self._fetch_before(source, state, first)
            elif first < state.audio.start:
                state.audio = self._begin(source, first)
            state.is_from_first = state.audio.start <= first
            if now_s >= state.next_s or source in takes_all:
                state.next_s = now_s + ASK_EVERY_S
                self._fetch_behind(source, state, takes_all=source in takes_all)

    def _begin(self, source: StreamEpoch, first: int) -> HeldAudio:
        audio = HeldAudio(first)
        for hole in self._gaps.get(source, ()):
            audio.note(hole)
        return audio

    def _fetch_behind(self, source: StreamEpoch, state: _AudioState, *, takes_all: bool) -> None:
        for _ in range(_AT_ONCE):
            start = state.audio.end
            answer = self._ask(source, state, start, start + MAX_BLOCK_SAMPLES)
            if answer is None:
                return
            block = answer.block
            if block.end_sample != state.reached:  # the worker has caught up further
                state.reached, state.idle_s = block.end_sample, self._now_s()
            if block.start_sample > start:
                stop = min(block.start_sample, start + MAX_BLOCK_SAMPLES)
                state.audio.append_hole(stop, TOO_OLD)
                continue
            is_full = len(block.pcm) == MAX_BLOCK_SAMPLES
            pcm, withheld = block.pcm, answer.withheld or []
            if not takes_all:
                pcm = pcm[: self._n_judged(source, block.end_sample, withheld) - start]
            if len(pcm):
                state.audio.append(pcm, _before(withheld, start + len(pcm)))
            if not is_full or len(pcm) < len(block.pcm):
                return

    def _fetch_before(self, source: StreamEpoch, state: _AudioState, first: int) -> None:
        """Fetch earlier audio, for an event that began before the others."""
        while state.audio.start > first:
            stop = state.audio.start
            start = max(first, stop - MAX_BLOCK_SAMPLES)
            answer = self._ask(source, state, start, stop)
            if answer is None:
                return  # try again in the next turn
            block = answer.block
            if block.end_sample == stop and len(block.pcm):
                state.audio.prepend(block.pcm, answer.withheld or [])
            if state.audio.start > start:  # older than what the worker holds
                state.audio.prepend_hole(first, TOO_OLD)

    def _n_judged(self, source: StreamEpoch, end: int, withheld: list[Range]) -> int:
        """Return the index up to which an answer is final.

        With `privacy: speech` the newest audio is withheld until it is judged, so it is requested
        again.
        """
        if not self._withholds or not withheld or withheld[-1][1] < end:
            return end
        health = self._healths.get(source[0])
        newest_s = None if health is None else health.audio_s
        newest = end if newest_s is None else max(end, seconds_to_samples(newest_s))
        judged = newest - seconds_to_samples(self.window_s + UNJUDGED_S)
        return max(withheld[-1][0], min(end, judged))

    def _ask(
        self, source: StreamEpoch, state: _AudioState, start: int, stop: int
    ) -> AudioAnswer | None:
        """Return the answer; None: there is none, or it is a refusal."""
        client = self._client_of(source[0])
        if client is not None and client is not state.client:
            state.client, state.reached, state.has_answer = client, None, False
        if client is None:
            state.has_answer = False
            return None
        if self._now_s() < self._silent_until_s.get(client, 0.0):
            return None
        self.requests += 1
        stream, epoch = source
        frames = client.ask(
            AudioQuery(stream=stream, epoch=epoch, start=start, stop=stop), _TIMEOUT_S
        )
        if frames is None:  # do not ask for its other streams in this turn
            self._silent_until_s[client] = self._now_s() + ASK_AGAIN_S
            state.has_answer = False
            return None
        if not state.has_answer:  # it may still have to catch up with the previous worker
            state.has_answer, state.idle_s = True, self._now_s()
        try:
            answer = AudioAnswer.decode(frames)
            if answer.block.epoch != epoch or answer.block.stream != stream:
                raise WireError(f"audio: expected {stream} {epoch}, got {answer.block.stream}")
        except WireError as error:
            self.refused += 1
            state.refusal = str(error)
            self._limited_log.warning("no audio of %s for clips: %s", stream, error)
            return None
        state.refusal = None
        return answer


def _before(ranges: list[Range], end: int) -> list[Range]:
    return [(start, min(stop, end)) for start, stop in ranges if start < end]
