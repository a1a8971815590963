"""The losses of a training step: logits against labels, and against a teacher's scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ast_stream.training.config import Loss

BINARY_WEIGHT = 5.0  # brings the mean over classes to the size of the cross-entropy


def label_loss(name: Loss, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
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


def detection_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return binary cross-entropy per class plus cross-entropy among the classes and "nothing".

    The first is what the scores are for; the second makes the classes compete, without which a
    small set teaches very slowly. "Nothing" has the fixed logit 0, where a score is one half.

    Args:
        logits, targets, weights: shape (B, n_classes); weight 0 takes a class out of both.
    """
    binary = F.binary_cross_entropy_with_logits(logits, targets, weights)
    known = torch.where(weights > 0, logits, torch.full_like(logits, -1e4))
    probs = targets * weights
    probs = probs / probs.sum(dim=1, keepdim=True).clamp_min(1.0)
    nothing = 1 - probs.sum(dim=1, keepdim=True)
    competing = torch.cat((known, torch.zeros_like(nothing)), dim=1)  # (B, n_classes + 1)
    among = F.cross_entropy(competing, torch.cat((probs, nothing), dim=1))
    return BINARY_WEIGHT * binary + among


def frame_loss(logits: Tensor, targets: Tensor, weights: Tensor, is_seen: Tensor) -> Tensor:
    """Return the detection loss of time patches, each an example of its own.

    Args:
        logits, targets, weights: shape (B, n_time_patches, n_classes).
        is_seen: shape (B, n_time_patches); patches that patchout left nothing of teach nothing.
    """
    chosen = is_seen & (weights.amax(dim=2) > 0)
    return detection_loss(logits[chosen], targets[chosen], weights[chosen])


def distillation_loss(logits: Tensor, scores: Tensor) -> Tensor:
    """Return how far the student is from a teacher of its own classes: divergence, 0 at best.

    The sum over classes: of hundreds of classes a window holds a few.

    Args:
        logits: shape (..., n_teacher_classes).
        scores: of the teacher, same shape, in (0, 1).
    """
    least = torch.special.entr(scores) + torch.special.entr(1 - scores)
    cross = F.binary_cross_entropy_with_logits(logits, scores, reduction="none")
    divergence: Tensor = (cross - least).sum(dim=-1).mean()
    return divergence


def teacher_loss(logits: Tensor, scores: Tensor, is_taught: Tensor) -> Tensor:
    """Return binary cross-entropy against a teacher's scores, at the size of `detection_loss`.

    Args:
        logits, scores: shape (B, n_classes).
        is_taught: shape (n_classes,), 0 for classes the teacher does not know.
    """
    binary = F.binary_cross_entropy_with_logits(logits, scores, is_taught.expand_as(logits))
    return BINARY_WEIGHT * binary
