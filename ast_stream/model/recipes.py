"""What the published training recipes imply for files that do not say it themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ast_stream.errors import CheckpointError
from ast_stream.model.dims import AUDIOSET_NORMALIZATION, N_PREFIX_TOKENS, AstDims, Normalization
from ast_stream.units import FRAMES_PER_SECOND, N_MELS

if TYPE_CHECKING:
    from torch import Tensor

# Source: YuanGongND/ast, egs/*/run*.sh. The clips are shorter than the input, the rest is padding:
# AudioSet 10 s in 1024 frames, ESC-50 5 s in 512, Speech Commands 1 s in 128.
_WINDOW_S = {1024: 10.0, 512: 5.0, 128: 1.0}
_NORMALIZATION = {
    1024: AUDIOSET_NORMALIZATION,
    512: Normalization(mean=-6.6268077, std=5.358466),
    128: Normalization(mean=-6.845978, std=5.5654526),
}
_STRIDES = (10, 12, 14, 16)
_PATCH_SIZE = 16
_HEAD_DIM = 64  # of all published sizes, as in DeiT
_ORIGINAL_EPS = (1e-6, 1e-5)  # timm's blocks, torch's default in the head
_HUB_EPS = (1e-12, 1e-12)
# Tensors that sizes are read from.
_AXES = {"cls_token": 3, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2, "head.weight": 2}


def default_window_s(max_frames: int) -> float:
    """Return the seconds of audio that a model of `max_frames` frames was trained on."""
    return _WINDOW_S.get(max_frames, max_frames / FRAMES_PER_SECOND)


def default_normalization(max_frames: int) -> Normalization:
    """Return the statistics of the published recipe with this input, else AudioSet's."""
    return _NORMALIZATION.get(max_frames, AUDIOSET_NORMALIZATION)


def infer_dims(own: Mapping[str, Tensor], *, is_original: bool, where: str) -> AstDims:
    """Return the sizes of a model from its tensors (in our names) alone.

    The patch grid is told from the number of position embeddings for the published strides and
    window lengths; heads are 64 wide.

    Raises:
        CheckpointError: the tensors leave it open; a config.json beside them would say it.
    """
    for name, n_axes in _AXES.items():
        if own[name].ndim != n_axes:
            raise CheckpointError(
                f"{where}: {name}: expected {n_axes} dimensions, got {own[name].ndim}"
            )
    width = own["cls_token"].shape[-1]
    if width % _HEAD_DIM:
        raise CheckpointError(
            f"{where}: expected a width that is a multiple of {_HEAD_DIM}, got {width}; "
            "put a config.json beside the file"
        )
    stride, max_frames = _patch_grid(own["pos_embed"].shape[1], where)
    eps, head_eps = _ORIGINAL_EPS if is_original else _HUB_EPS
    return AstDims(
        n_classes=own["head.weight"].shape[0],
        hidden_size=width,
        n_layers=sum(name.endswith(".norm1.weight") for name in own),
        n_heads=width // _HEAD_DIM,
        intermediate_size=own["blocks.0.mlp.fc1.weight"].shape[0],
        patch_size=_PATCH_SIZE,
        frequency_stride=stride,
        time_stride=stride,
        max_frames=max_frames,
        n_mels=N_MELS,
        layer_norm_eps=eps,
        head_layer_norm_eps=head_eps,
        qkv_bias="blocks.0.attn.qkv.bias" in own,
    )


def _patch_grid(n_positions: int, where: str) -> tuple[int, int]:
    """Return (stride, max_frames) of the published model with that many position embeddings."""
    for max_frames in _WINDOW_S:
        for stride in _STRIDES:
            dims = AstDims(
                n_classes=1, frequency_stride=stride, time_stride=stride, max_frames=max_frames
            )
            if dims.n_tokens == n_positions:
                return stride, max_frames
    raise CheckpointError(
        f"{where}: cannot tell stride and window length from {n_positions - N_PREFIX_TOKENS} "
        "position embeddings; put a config.json beside the file"
    )
