"""A cascade: a small model scores every window and selects those that the large model scores.

The large model's classes, thresholds and scores decide. A window is selected if

* the small model gives an enabled class that both know a score of at least `ask_ratio` times its
  own onset threshold; or some bands of the newest hop are louder by `change_db` than in all other
  hops of the window; or it is the first window since start or gap;
* one of these was true for a window that ended at most half a window earlier, so that the large
  model hears enough of the sound;
* an event of the stream is open, or may be confirmed;
* it is due by its number on the stream's sample index, once every `every_s`.

While all live events of a stream are open and steady, and no other class gives a reason, one in
`steady_hops` windows is selected; nothing is decided about the others.

All other windows count as silence. Until when a reason holds is part of the journalled state; the
rest depends on the window alone, so the selection is the same live, resumed and scanned, whatever
other streams do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ast_stream.detect.decision import SlotNames
from ast_stream.detect.parameters import DecisionParameters
from ast_stream.detect.scorer import DueWindows, WindowScorer
from ast_stream.detect.state import NEVER
from ast_stream.errors import UsageError
from ast_stream.labels import find_label
from ast_stream.messages.event import Event
from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.settings.model import CascadeSettings, ModelSettings
from ast_stream.units import FRAME_SHIFT, N_MELS, SAMPLE_RATE, seconds_to_samples

N_BANDS = 16  # of eight mel filters each
N_RISEN = 3  # bands that must be louder; fewer often are, although nothing begins

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cascade:
    """The small model of a cascade, and the conditions for asking the large one.

    Attributes:
        tagger: the small model; only its window scores are used, so it needs no frame head.
    """

    tagger: Tagger
    settings: CascadeSettings


def load_cascade(
    model: ModelSettings, on_batch: Callable[[int, float], None] | None = None
) -> Cascade | None:
    """Return the cascade that `model` describes; None without one.

    Load it after the large model, which configures the threads of the process.

    Args:
        on_batch: called with the size of each batch of windows and the seconds it took.

    Raises:
        CheckpointError, StartupError: as `load_tagger`.
    """
    if model.cascade is None:
        return None
    tagger = load_tagger(
        model.cascade.checkpoint,
        device=model.device,
        precision=model.precision,
        attention=model.attention,
        on_batch=on_batch,
        use_frames=False,
    )
    return Cascade(tagger, model.cascade)


class Watcher:
    """Scores all windows with the small model and selects those for the large one.

    Args:
        labels: of the large model.
        window, hop: of the large model, in samples.

    Raises:
        UsageError: the models have no class in common, or the small one's windows are shorter than
            a hop.
    """

    def __init__(
        self,
        cascade: Cascade,
        labels: Sequence[str],
        names: SlotNames,
        *,
        window: int,
        hop: int,
        max_hops: int,
    ) -> None:
        tagger, self._settings = cascade.tagger, cascade.settings
        self._names = names
        self._scorer = WindowScorer(tagger, hop, max_hops)
        named = [find_label(label, tagger.labels) for label in labels]
        if not any(named):
            raise UsageError(
                f"model.cascade: expected a checkpoint with classes of model.checkpoint, "
                f"got none of them in {tagger.checkpoint.origin}"
            )
        if tagger.window_samples < hop:
            raise UsageError(
                f"model.cascade: expected windows of a hop, {hop / SAMPLE_RATE:g} s, or more, "
                f"got {tagger.window_s:g} s of {tagger.checkpoint.origin}"
            )
        known = [(index, label) for index, label in enumerate(named) if label is not None]
        # index of each class of the large model among those of the small one
        self._small = {index: tagger.labels.index(label) for index, label in known}
        self._thresholds = np.array(
            [tagger.metadata.onset_threshold(label) for label in tagger.labels], np.float32
        )
        self._ask_from = np.full(len(tagger.labels), np.inf, np.float32)
        self._follow = window // 2  # how long a reason holds after its window
        every_s = self._settings.every_s
        self._every = 0 if every_s is None else max(1, seconds_to_samples(every_s) // hop)
        self._steady_hops = self._settings.steady_hops
        # classes of the large model by those of the small one: an open event of one gives no reason
        self._own = np.zeros((len(labels), len(tagger.labels)), np.bool_)
        self._own[list(self._small), list(self._small.values())] = True
        self._hop = hop
        self._bands = BandMeter(window, hop)
        self._asked_until: Indices = np.zeros(0, np.int64)
        self._heard: _SmallModelScores | None = None

    @property
    def n_scored(self) -> int:
        """Windows that the small model has scored."""
        return self._scorer.n_scored

    @property
    def nan_scores(self) -> int:
        """Scores of the small model that were NaN and were replaced by 0."""
        return self._scorer.nan_scores

    def use(self, parameters: DecisionParameters) -> None:
        """Select windows for the classes that these parameters enable, from the next window on."""
        self._ask_from[:] = np.inf
        ratio = np.float32(self._settings.ask_ratio)
        for index, small in self._small.items():
            if parameters.is_enabled[index]:
                self._ask_from[small] = ratio * self._thresholds[small]

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        self._scorer.grow(n_slots)
        self._bands.grow(n_slots)
        more = n_slots - len(self._asked_until)
        self._asked_until = np.pad(self._asked_until, (0, more), constant_values=NEVER)

    def reset(self, slot: int) -> None:
        """Forget a slot: its stream starts, or continues after a gap."""
        self._asked_until[slot] = NEVER

    def asked_until(self, slot: int) -> int:
        """Return the sample up to which windows are selected for past reasons, or NEVER."""
        return int(self._asked_until[slot])

    def restore(self, slot: int, asked_until: int) -> None:
        """Restore what `asked_until` returned."""
        self._asked_until[slot] = asked_until

    def push(self, slots: Indices, frames: Tensor, ends: Indices) -> None:
        """Take the frames of new hops; arguments as for `SlidingFbank.keep`."""
        self._scorer.keep(slots, frames, ends)
        self._bands.measure(slots, frames)

    def hear(self, windows: DueWindows, context_starts: Indices) -> None:
        """Score the windows of a step, of all hops at once.

        Args:
            context_starts: first real sample of each slot since start or gap, shape (n,).
        """
        scores = self._scorer.score(windows)
        is_likely = windows.is_run[:, :, None] & (scores >= self._ask_from)
        is_change = np.zeros(windows.is_run.shape, np.bool_)
        if self._settings.change_db is not None:
            rises = self._bands.rises(windows.hop_ends, context_starts)
            # even if overload skips the window: then the next one is selected
            is_heard = windows.is_due & ~windows.is_gated
            is_change = is_heard & (rises >= self._settings.change_db)
        self._heard = _SmallModelScores(windows, scores, is_likely, is_change)

    def ask(self, hop: int, is_first: Flags, is_live: Flags, steady: Flags) -> DueWindows:
        """Return the windows of one hop of the last step, with those for the large model marked.

        Call this for one hop after the other.

        Args:
            is_first: whether the window is the first since start or gap, shape (n,).
            is_live: whether an event is open or may be confirmed, shape (n,).
            steady: classes with open events, for slots whose live events are all open and
                steady, shape (n, classes of the large model).
        """
        assert self._heard is not None
        windows = self._heard.windows.of_hop(hop)
        slots, ends = windows.slots, windows.hop_ends[0]
        is_likely = self._heard.is_likely[hop]
        is_steady: Flags = np.zeros(len(slots), np.bool_)
        if self._steady_hops > 1:
            is_steady = np.any(steady, axis=1)
            is_likely = is_likely & ~np.matmul(steady, self._own)
        is_reason = self._heard.is_change[hop] | (windows.is_run[0] & is_first)
        is_reason = is_reason | is_likely.any(axis=1)
        until = self._asked_until[slots]
        until = np.where(is_reason, np.maximum(until, ends + self._follow), until)
        self._asked_until[slots] = until
        number = ends // self._hop
        is_asked: Flags = is_live | (ends <= until)
        is_passed_over = is_steady & (ends > until) & (number % self._steady_hops != 0)
        if self._every:
            is_asked = is_asked | (number % self._every == 0)
        return replace(
            windows,
            is_run=windows.is_run & is_asked & ~is_passed_over,
            is_unasked=windows.is_run & ~is_asked,
            is_passed_over=windows.is_run & is_passed_over,
        )

    def with_scores(self, events: Sequence[Event], hop: int) -> list[Event]:
        """Return the decisions of a hop, with the small model's score of each event."""
        assert self._heard is not None
        windows, scores = self._heard.windows, self._heard.scores[hop]
        rows = {
            slot: row for row, slot in enumerate(windows.slots.tolist()) if windows.is_run[hop, row]
        }
        scored = []
        for event in events:
            row, small = rows.get(self._names.slot(event.stream)), self._small.get(event.index)
            if row is not None and small is not None:
                event = replace(event, watcher_score=float(scores[row, small]))
            scored.append(event)
        return scored


@dataclass(frozen=True, eq=False)
class _SmallModelScores:
    """The small model's results for the windows of one step.

    Attributes:
        scores: shape (hops, n, n_classes of the small model).
        is_likely: classes that are a reason, of the same shape.
        is_change: whether the sound has changed, shape (hops, n).
    """

    windows: DueWindows
    scores: npt.NDArray[np.float32]
    is_likely: Flags
    is_change: Flags


class BandMeter:
    """Levels of the hops in each slot's window, by frequency band."""

    def __init__(self, window: int, hop: int) -> None:
        self._hop = hop
        self._hop_frames = hop // FRAME_SHIFT
        # even if a window is one hop long, the hop before the newest is kept
        self._n_kept = max(2, window // hop)
        self._db: Floats = np.zeros((0, self._n_kept, N_BANDS))
        self._windows: Floats = np.zeros((0, 0, self._n_kept, N_BANDS))

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        self._db = np.pad(self._db, ((0, n_slots - len(self._db)), (0, 0), (0, 0)))

    def measure(self, slots: Indices, frames: Tensor) -> None:
        """Take the frames of the next hops of each slot, shape (n, hops * hop_frames, 128)."""
        power = np.exp(frames.cpu().numpy())
        bands = power.reshape(len(slots), -1, self._hop_frames, N_BANDS, N_MELS // N_BANDS)
        # one axis after the other: the order of summation must not depend on the number of slots
        means = bands.sum(axis=4).sum(axis=2) / (self._hop_frames * (N_MELS // N_BANDS))
        db = np.concatenate([self._db[slots], 10 * np.log10(means.astype(np.float64))], axis=1)
        self._db[slots] = db[:, -self._n_kept :]
        n_hops = means.shape[1]
        self._windows = np.stack(
            [db[:, hop + 1 : hop + 1 + self._n_kept] for hop in range(n_hops)], axis=0
        )

    def rises(self, hop_ends: Indices, context_starts: Indices) -> Floats:
        """Return by how many dB at least `N_RISEN` bands are louder than in all earlier hops.

        The comparison is with the loudest earlier hop, not with the mean: otherwise every drop of
        rain and every key stroke would be a change.

        Args:
            hop_ends: of the hops measured last, shape (hops, n).
            context_starts: earlier hops are ignored, shape (n,).

        Returns:
            Shape (hops, n); minus infinity if there is no earlier hop.
        """
        back = np.arange(self._n_kept, 1, -1) * self._hop  # from the end to each hop's begin
        is_real = hop_ends[:, :, None] - back >= context_starts[:, None]
        before, newest = self._windows[:, :, :-1], self._windows[:, :, -1]
        loudest = np.where(is_real[..., None], before, -np.inf).max(axis=2)
        rises: Floats = np.sort(newest - loudest, axis=2)[:, :, -N_RISEN]
        return np.where(is_real.any(axis=2), rises, -np.inf)
