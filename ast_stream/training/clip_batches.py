"""Whole clips as the AST repository trains on them: epochs, balanced sampling, mixup of waveforms.

For data sets of clips that each are one window long; `mixing` is for sounds in streams.
Source: YuanGongND/ast, src/dataloader.py and src/gen_weight_file.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.audio.activity import Waveform
from ast_stream.soundscape.mixing import Window
from ast_stream.soundscape.synthesis import Random
from ast_stream.soundscape.takes import Material, Take
from ast_stream.units import frame_count, samples_for_frames

_EPOCH_ORDER, _MIXUP = 1, 2  # streams of random numbers of one seed


@dataclass(frozen=True)
class ClipMixing:
    """How batches of clips are drawn.

    Attributes:
        mixup_share: probability that a clip is mixed with another one.
        mixup_beta: both parameters of the beta distribution of the first one's share.
        is_balanced: draw clips with replacement, those of rare classes more often.
    """

    mixup_share: float = 0.0
    mixup_beta: float = 10.0
    is_balanced: bool = False


class ClipMaker:
    """Draws batches of whole clips, cut to `max_frames`; each epoch sees every clip once."""

    def __init__(self, material: Material, max_frames: int, mixing: ClipMixing) -> None:
        self.labels = list(material.labels)
        self.has_examples = [bool(material.takes_of(index)) for index in range(len(self.labels))]
        self._takes = material.takes
        self._n_samples = samples_for_frames(max_frames)
        self._mixing = mixing
        self._shares = _balanced_shares(material)

    def epoch_steps(self, batch_size: int) -> int:
        """Return the steps of one pass over all clips; the last batch may be smaller."""
        return -(-len(self._takes) // batch_size)

    def draw_batch(self, seed: int, step: int, size: int) -> list[Window]:
        """Return the windows of one step."""
        epoch, place = divmod(step, self.epoch_steps(size))
        order = self._order(np.random.default_rng((seed, _EPOCH_ORDER, epoch)))
        rng = np.random.default_rng((seed, _MIXUP, step))
        return [
            self.window(rng, self._takes[int(index)])
            for index in order[place * size : (place + 1) * size]
        ]

    def window(self, rng: Random, take: Take) -> Window:
        """Return one clip as a window, mixed with another one at times."""
        mixing = self._mixing
        waveform, target = self._cut(take), self._target(take)
        if rng.random() < mixing.mixup_share:
            other = self._takes[int(rng.integers(len(self._takes)))]
            share = np.float32(rng.beta(mixing.mixup_beta, mixing.mixup_beta))
            second = self._cut(other)[: len(waveform)]
            waveform = share * waveform
            waveform[: len(second)] += (1 - share) * second
            target = share * target + (1 - share) * self._target(other)
        padded = np.zeros(self._n_samples, np.float32)
        padded[: len(waveform)] = waveform
        return Window(padded, frame_count(len(waveform)), target, np.ones_like(target))

    def _order(self, rng: Random) -> npt.NDArray[np.int64]:
        if self._mixing.is_balanced:
            return rng.choice(len(self._takes), len(self._takes), p=self._shares)
        return rng.permutation(len(self._takes))

    def _cut(self, take: Take) -> Waveform:
        return take.waveform[: self._n_samples]

    def _target(self, take: Take) -> npt.NDArray[np.float32]:
        target = np.zeros(len(self.labels), np.float32)
        target[list(take.classes)] = 1.0
        return target


def _balanced_shares(material: Material) -> npt.NDArray[np.float64]:
    """Return the share of each clip: the sum over its classes of one by their frequency."""
    counts = np.zeros(len(material.labels))
    for take in material.takes:
        counts[list(take.classes)] += 1
    weights = np.array(
        [np.sum(1.0 / (counts[list(take.classes)] + 1e-5)) for take in material.takes]
    )
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares
