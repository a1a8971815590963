"""The module that is trained: the model, and a head for a teacher, dropped afterwards.

Both that head and the model's frame head read the patch tokens, of which training sees a part.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ast_stream.model.ast import INIT_STD, AudioSpectrogramTransformer
from ast_stream.model.dims import N_PREFIX_TOKENS, AstDims
from ast_stream.units import FRAME_SHIFT

RARE_LOGIT = -5.0  # of hundreds of a teacher's classes a window holds a few


class StudentOutputs(NamedTuple):
    """Logits of a batch.

    Attributes:
        clip: shape (B, n_classes).
        frames: shape (B, n_time_patches, n_classes); None without a frame head.
        teacher: shape (B, n_segments, n_teacher_classes); None without a teacher.
        is_seen: shape (B, n_time_patches): patchout left something of the time patch.
    """

    clip: Tensor
    frames: Tensor | None
    teacher: Tensor | None
    is_seen: Tensor


class Student(nn.Module):
    """A model and its heads.

    Args:
        segments: shape (n_segments, n_time_patches): the part of each time patch in each of the
            stretches that a teacher scores; None without one.
    """

    segments: Tensor

    def __init__(
        self,
        model: AudioSpectrogramTransformer,
        n_teacher_classes: int = 0,
        segments: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher_head = None
        if n_teacher_classes:
            self.teacher_head = nn.Linear(model.dims.hidden_size, n_teacher_classes)
            nn.init.trunc_normal_(self.teacher_head.weight, std=INIT_STD)
            nn.init.constant_(self.teacher_head.bias, RARE_LOGIT)
        self.register_buffer("segments", torch.zeros(0) if segments is None else segments)

    def forward(self, fbank: Tensor, patch_ratio: float = 1.0) -> StudentOutputs:
        """Return all logits from a random part of each window's patches (patchout).

        Half the patches cost less than half the time and keep a small set from being learnt by
        heart.

        Args:
            fbank: normalised windows, shape (B, max_frames, n_mels).
            patch_ratio: of the patches, in (0, 1].

        Source: Koutini et al., "Efficient training of audio transformers with patchout" (2022).
        """
        model = self.model
        patches = model.patch_embed(fbank) + model.pos_embed[:, N_PREFIX_TOKENS:]  # (B, P, C)
        n_windows, n_patches, width = patches.shape
        n_times = model.dims.n_time_patches
        chosen = torch.arange(n_patches, device=patches.device).expand(n_windows, -1)
        if patch_ratio < 1:
            n_kept = max(1, round(patch_ratio * n_patches))
            order = torch.rand(n_windows, n_patches).to(patches.device)  # the same on every device
            chosen = order.argsort(dim=1)[:, :n_kept]  # (B, n_kept)
            patches = patches.gather(1, chosen[..., None].expand(-1, -1, width))
        prefix = torch.cat((model.cls_token, model.dist_token), dim=1)
        prefix = prefix + model.pos_embed[:, :N_PREFIX_TOKENS]
        x = torch.cat((prefix.expand(n_windows, -1, -1), patches), dim=1)  # (B, 2 + n_kept, C)
        for block in model.blocks:
            x = block(x)
        pooled = model.norm(x[:, :N_PREFIX_TOKENS]).mean(dim=1)  # (B, C)
        clip = model.head(model.head_norm(pooled))
        times = chosen % n_times  # patches are frequency-major
        counts = torch.zeros(n_windows, n_times, device=x.device)
        counts.scatter_add_(1, times, torch.ones_like(times, dtype=counts.dtype))
        is_seen = counts > 0
        if model.frame_head is None and self.teacher_head is None:
            return StudentOutputs(clip, None, None, is_seen)
        tokens = model.norm(x[:, N_PREFIX_TOKENS:]).float()  # (B, n_kept, C)
        sums = torch.zeros(n_windows, n_times, width, device=x.device)
        sums = sums.scatter_add(1, times[..., None].expand(-1, -1, width), tokens)
        moments = sums / counts.clamp_min(1)[..., None]  # (B, T, C)
        frames = None if model.frame_head is None else model.frame_head(moments)
        teacher = None
        if self.teacher_head is not None:
            parts = self.segments * is_seen[:, None]  # (B, S, T)
            parts = parts / parts.sum(dim=2, keepdim=True).clamp_min(1e-6)
            teacher = self.teacher_head(parts @ moments)
        return StudentOutputs(clip, frames, teacher, is_seen)


def teacher_starts(n_samples: int, n_teacher_samples: int) -> list[int]:
    """Return where a teacher's shorter inputs begin, evenly spaced and covering a window.

    Raises:
        ValueError: the window is shorter than what the teacher takes.
    """
    room = n_samples - n_teacher_samples
    if room < 0:
        raise ValueError(f"n_samples: expected {n_teacher_samples} or more, got {n_samples}")
    n_segments = -(-n_samples // n_teacher_samples)
    if n_segments == 1:
        return [room // 2]
    return [round(room * number / (n_segments - 1)) for number in range(n_segments)]


def teacher_segments(dims: AstDims, starts: list[int], n_teacher_samples: int) -> Tensor:
    """Return which time patches lie in each stretch, shape (n_segments, n_time_patches)."""
    centres = torch.arange(dims.n_time_patches) * dims.time_stride + dims.patch_size / 2  # frames
    begins = torch.tensor(starts)[:, None] / FRAME_SHIFT
    is_inside = (centres >= begins) & (centres < begins + n_teacher_samples / FRAME_SHIFT)
    return is_inside.float()
