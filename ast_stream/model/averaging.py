"""One checkpoint from several of the same model: the mean of their weights.

Checkpoints that were trained on from one another often lie in one basin of the loss, where the mean
is about as good as the best of them at each of several tasks; it costs nothing at run time.

Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves
accuracy without increasing inference time" (2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ast_stream.errors import CheckpointError
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.metadata import Metadata

ALIKE = ("dims", "labels", "normalization", "scoring", "window_s")
TEST_FOLDS = "test_folds"


def average_checkpoints(checkpoints: Sequence[Checkpoint], origin: str) -> Checkpoint:
    """Return the checkpoint whose every weight is the mean of those of `checkpoints`.

    Thresholds, score maps, timing and the self-check hold for the weights they were measured with,
    so the mean has none; its provenance is that of the last, and names all.

    Raises:
        CheckpointError: they differ in sizes, classes, statistics or window.
    """
    first, last = checkpoints[0], checkpoints[-1]
    for other in checkpoints[1:]:
        for name in ALIKE:
            here, there = getattr(first, name), getattr(other, name)
            if here != there:
                raise CheckpointError(
                    f"{other.origin}: {name}: expected that of {first.origin} ({here}), got {there}"
                )
    means = {
        name: torch.stack([one.state_dict[name] for one in checkpoints]).mean(dim=0)
        for name in first.state_dict
    }
    metadata = Metadata(
        window_s=last.metadata.window_s,
        hop_s=last.metadata.hop_s,
        background=last.metadata.background,
        licence=last.metadata.licence,
        provenance=_provenance(checkpoints),
    )
    return replace(first, state_dict=means, metadata=metadata, origin=origin)


def _provenance(checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    last = checkpoints[-1].metadata.provenance
    provenance = {**last, "averaged_from": [one.hash for one in checkpoints]}
    if TEST_FOLDS in last:
        # what any of them has learnt, their mean knows
        unseen = [one.metadata.provenance.get(TEST_FOLDS, []) for one in checkpoints]
        provenance[TEST_FOLDS] = [
            fold for fold in last[TEST_FOLDS] if all(fold in folds for folds in unseen)
        ]
    return provenance
