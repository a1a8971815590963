"""What a training step computes: logits from part of the patches, and the loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.dims import N_PREFIX_TOKENS

BINARY_WEIGHT = 5.0  # brings the mean over classes to the size of the cross-entropy


def forward_some_patches(model: AudioSpectrogramTransformer, fbank: Tensor, share: float) -> Tensor:
    """Return the logits (B, n_classes) from a random part of each window's patches.

    Half the patches cost less than half the time and keep a small set from being learnt by heart.

    Args:
        fbank: normalised windows, shape (B, max_frames, n_mels).
        share: of the patches, in (0, 1].

    Source: Koutini et al., "Efficient training of audio transformers with patchout" (2022).
    """
    if share >= 1:
        whole: Tensor = model(fbank)
        return whole
    patches = model.patch_embed(fbank) + model.pos_embed[:, N_PREFIX_TOKENS:]  # (B, P, C)
    n_kept = max(1, round(share * patches.shape[1]))
    places = torch.rand(patches.shape[:2]).to(patches.device)  # the same on every device
    chosen = places.argsort(dim=1)[:, :n_kept]  # (B, n_kept)
    kept = patches.gather(1, chosen[..., None].expand(-1, -1, patches.shape[2]))
    prefix = torch.cat((model.cls_token, model.dist_token), dim=1)
    prefix = prefix + model.pos_embed[:, :N_PREFIX_TOKENS]
    x = torch.cat((prefix.expand(len(kept), -1, -1), kept), dim=1)  # (B, 2 + n_kept, C)
    for block in model.blocks:
        x = block(x)
    pooled = model.norm(x[:, :N_PREFIX_TOKENS]).mean(dim=1)  # (B, C)
    logits: Tensor = model.head(model.head_norm(pooled))
    return logits


def loss_of(
    name: Literal["detection", "bce", "ce"], logits: Tensor, targets: Tensor, weights: Tensor
) -> Tensor:
    """Return the loss of that name; `bce` and `ce` are those of the AST repository.

    Args:
        logits, targets, weights: shape (B, n_classes); weight 0 takes a class out. Of `ce` the
            highest target is the label.
    """
    if name == "detection":
        return detection_loss(logits, targets, weights)
    if name == "ce":
        return F.cross_entropy(logits, targets.argmax(dim=1))
    return F.binary_cross_entropy_with_logits(logits, targets, weights)


def teacher_loss(logits: Tensor, opinions: Tensor, is_taught: Tensor) -> Tensor:
    """Return binary cross-entropy against a teacher's scores, at the size of `detection_loss`.

    Args:
        logits, opinions: shape (B, n_classes).
        is_taught: shape (n_classes,), 0 for classes the teacher does not know.
    """
    binary = F.binary_cross_entropy_with_logits(logits, opinions, is_taught.expand_as(logits))
    return BINARY_WEIGHT * binary


def detection_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return binary cross-entropy per class plus cross-entropy among the classes and "nothing".

    The first is what the scores are for; the second makes the classes compete, without which a
    small set teaches very slowly. "Nothing" has the fixed logit 0, where a score is one half.

    Args:
        logits, targets, weights: shape (B, n_classes); weight 0 takes a class out of both.
    """
    binary = F.binary_cross_entropy_with_logits(logits, targets, weights)
    known = torch.where(weights > 0, logits, torch.full_like(logits, -1e4))
    shares = targets * weights
    shares = shares / shares.sum(dim=1, keepdim=True).clamp_min(1.0)
    nothing = 1 - shares.sum(dim=1, keepdim=True)
    competing = torch.cat((known, torch.zeros_like(nothing)), dim=1)  # (B, n_classes + 1)
    among = F.cross_entropy(competing, torch.cat((shares, nothing), dim=1))
    return BINARY_WEIGHT * binary + among
