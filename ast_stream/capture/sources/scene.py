"""Generated scenes as sources of sound; in real time or as fast as they are read."""

from __future__ import annotations

from ast_stream.capture.sources.base import SourceBlock
from ast_stream.capture.sources.file import Pace
from ast_stream.settings.streams import SceneSource
from ast_stream.soundscape.scene import SceneRenderer
from ast_stream.units import SAMPLE_RATE, samples_to_ns, seconds_to_samples


class ScenePlayer:
    """A finite source: one scene, once; opened again, it continues where it was."""

    is_live = False

    def __init__(self, settings: SceneSource) -> None:
        self._pace = Pace(settings.pace == "realtime")
        self._renderer = SceneRenderer(settings.seed, settings.duration_s)
        self._block_samples = seconds_to_samples(settings.block_s)
        self._position = 0
        self._opened_at = 0  # sample that was due when the source was opened

    @property
    def is_paced(self) -> bool:
        """Blocks come in real time."""
        return self._pace.is_realtime

    def open(self) -> None:
        """Start, or continue where the scene was left."""
        self._opened_at = self._position
        self._pace.begin()

    def read(self, timeout_s: float) -> SourceBlock | None:
        """Return the next block, or None if it is not due within `timeout_s`."""
        stop = min(self._position + self._block_samples, self._renderer.n_samples)
        if not self._pace.wait(samples_to_ns(stop - self._opened_at), timeout_s):
            return None
        times = self._pace.times_ns(samples_to_ns(self._position - self._opened_at))
        pcm = self._renderer.render(stop - self._position)
        self._position = stop
        return SourceBlock(
            pcm=pcm[:, None],
            rate=SAMPLE_RATE,
            captured_ns=times[1],
            monotonic_ns=times[0],
            is_last=stop == self._renderer.n_samples,
        )

    def close(self) -> None:
        """Do nothing: nothing is held open."""
