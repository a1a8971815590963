"""The model that a training begins with: new, or a checkpoint with other classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ast_stream.errors import UsageError
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.dims import AstDims
from ast_stream.model.grid import change_stride, cut_time
from ast_stream.training.initialize import new_model
from ast_stream.training.plan import Plan
from ast_stream.units import FRAMES_PER_SECOND

DEFAULT_WINDOW_S = 2.56  # from scratch
DEFAULT_STRIDE = 16
EPS = 1e-6  # of LayerNorm: survives fp16, unlike transformers' default
HEAD_DIM = 64
HEAD = ("head.weight", "head.bias")


def window_of(plan: Plan, start: Checkpoint | None) -> float:
    """Return the seconds of a window.

    Raises:
        UsageError: longer than the windows of the start.
    """
    if start is None:
        return plan.window_s or DEFAULT_WINDOW_S
    if plan.window_s is not None and plan.window_s > start.window_s:
        raise UsageError(
            f"{start.origin}: expected windows of {plan.window_s:g} s or more, "
            f"got a checkpoint with {start.window_s:g} s"
        )
    return plan.window_s or start.window_s


def first_dims(plan: Plan, start: Checkpoint | None, n_classes: int) -> AstDims:
    """Return the sizes of the model to train; of a start but for classes, window and stride."""
    n_frames = plan.max_frames or round(window_of(plan, start) * FRAMES_PER_SECOND)
    if start is None:
        return AstDims(
            n_classes=n_classes,
            hidden_size=plan.width,
            n_layers=plan.n_layers,
            n_heads=plan.width // HEAD_DIM,
            intermediate_size=4 * plan.width,
            frequency_stride=plan.stride or DEFAULT_STRIDE,
            time_stride=plan.stride or DEFAULT_STRIDE,
            max_frames=n_frames,
            layer_norm_eps=EPS,
            head_layer_norm_eps=EPS,
        )
    is_cut = window_of(plan, start) < start.window_s
    n_frames = n_frames if is_cut else start.dims.max_frames
    dims = replace(start.dims, n_classes=n_classes, max_frames=n_frames)
    if plan.stride is None:
        return dims
    if plan.stride > dims.patch_size:
        raise UsageError(
            f"--stride: expected at most the {dims.patch_size} of a patch of {start.origin}, "
            f"got {plan.stride}"
        )
    return replace(dims, frequency_stride=plan.stride, time_stride=plan.stride)


def first_model(
    plan: Plan, start: Checkpoint | None, labels: Sequence[str]
) -> AudioSpectrogramTransformer:
    """Return the model to train on `labels`, the same for the same plan.

    Of a start with other classes the rows of its classifier go along with their labels; rows of
    new labels begin as noise with the lowest bias of the others, since a new sound is rare.
    """
    dims = first_dims(plan, start, len(labels))
    model = new_model(dims, plan.recipe)
    if start is None:
        return model
    cut_dims, weights = cut_time(start.dims, start.state_dict, dims.max_frames)
    if plan.stride is not None:
        _, weights = change_stride(cut_dims, weights, plan.stride)
    places = {label: place for place, label in enumerate(start.labels)}
    head = {name: model.state_dict()[name].clone() for name in HEAD}
    head["head.bias"].fill_(float(weights["head.bias"].min()))
    for row, label in enumerate(labels):
        if label in places:
            for name in HEAD:
                head[name][row] = weights[name][places[label]]
    model.load_state_dict(weights | head)
    return model
