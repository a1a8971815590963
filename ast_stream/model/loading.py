"""Loading the model in a long-running process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ast_stream.settings.model import ModelSettings

if TYPE_CHECKING:
    from ast_stream.model.tagger import Tagger


def load_model(
    model: ModelSettings, on_batch: Callable[[int, float], None] | None = None
) -> Tagger:
    """Return the tagger that `model` describes.

    On the CPU the whole process gets as many threads as the model can use: what lies between two
    calls of a small model is smaller still, and would only wait for threads of busy cores.

    Args:
        on_batch: called with the size of each batch of windows and the seconds it took.
    """
    import torch  # here: the help of a command that loads a model needs none of this

    from ast_stream.model.runners import scoring_threads
    from ast_stream.model.tagger import load_tagger

    tagger = load_tagger(
        model.checkpoint,
        device=model.device,
        precision=model.precision,
        attention=model.attention,
        window_s=model.window_s,
        on_batch=on_batch,
    )
    if tagger.device.type == "cpu":
        torch.set_num_threads(scoring_threads(tagger.dims.gflop))
    return tagger
