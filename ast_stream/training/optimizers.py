"""The optimizers of a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.training.recipe import Recipe

SCALE = "rate_scale"  # key of a group: its rate in multiples of the recipe's


def optimizers_of(
    model: AudioSpectrogramTransformer, recipe: Recipe
) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together train all parameters of `model`."""
    return [_adam(model, recipe)] if recipe.optimizer == "adam" else _muon(model, recipe)


def set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Give every group its learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get(SCALE, 1.0)


def _adam(model: AudioSpectrogramTransformer, recipe: Recipe) -> torch.optim.Optimizer:
    """Return Adam as the AST repository uses it: the decay is part of the gradient."""
    in_head = set(model.head_norm.parameters()) | set(model.head.parameters())
    body = [one for one in model.parameters() if one not in in_head]
    head = [one for one in model.parameters() if one in in_head]
    return torch.optim.Adam(
        [_group(body), _group(head, **{SCALE: recipe.head_rate})],
        lr=recipe.learning_rate,
        betas=recipe.adam_betas,
        weight_decay=recipe.weight_decay,
    )


def _muon(model: AudioSpectrogramTransformer, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks, and AdamW for everything else.

    Muon's steps are scaled to the size of AdamW's, so that both share one learning rate. Only the
    matrices decay: not biases, norms, tokens and position embeddings.
    """
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    in_blocks = set(matrices)
    others = [p for p in model.parameters() if p not in in_blocks]
    is_decayed = {model.patch_embed.proj.weight, model.head.weight}
    groups = [
        _group([p for p in others if (p in is_decayed) == decays], weight_decay=decay)
        for decays, decay in ((True, recipe.weight_decay), (False, 0.0))
    ]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True),
    ]


def _group(parameters: list[nn.Parameter], **settings: float) -> dict[str, Any]:
    return {"params": parameters, **settings}
