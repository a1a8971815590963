"""Learning without labels first: most patches of a window are hidden, and the rest must tell them.

A transformer from a random start takes thousands of steps on a few hundred clips to find out what
spectrograms are like; here every window teaches it a hundred patches and not one label. The decoder
is thrown away.

Sources: He et al., "Masked autoencoders are scalable vision learners" (CVPR 2022); Huang et al.,
"Masked autoencoders that listen" (NeurIPS 2022).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ast_stream.model.ast import (
    INIT_STD,
    Attend,
    Attention,
    AudioSpectrogramTransformer,
    Block,
)
from ast_stream.model.dims import N_PREFIX_TOKENS, AstDims
from ast_stream.training.initialize import sinusoidal_positions
from ast_stream.training.recipe import Recipe

DECODER_WIDTH, DECODER_HEADS, DECODER_LAYERS = 128, 2, 2
SEEN_SHARE = 0.25  # of the patches
FLAT_VARIANCE = 0.05  # of a patch: one with less is not blown up to it


class MaskedAutoencoder(nn.Module):
    """A transformer with a small decoder that tells the patches it was not shown."""

    positions: Tensor

    def __init__(self, encoder: AudioSpectrogramTransformer) -> None:
        super().__init__()
        self.encoder = encoder
        self.dims = encoder.dims
        sizes = _decoder_sizes(self.dims)
        self.entry = nn.Linear(self.dims.hidden_size, DECODER_WIDTH)
        self.hidden = nn.Parameter(INIT_STD * torch.randn(DECODER_WIDTH))
        self.blocks = nn.ModuleList(Block(sizes, drop_path=0.0) for _ in range(DECODER_LAYERS))
        self.norm = nn.LayerNorm(DECODER_WIDTH)
        self.exit = nn.Linear(DECODER_WIDTH, self.dims.patch_size**2)
        self.register_buffer("positions", sinusoidal_positions(sizes), persistent=False)

    def forward(self, fbank: Tensor, seen_share: float) -> Tensor:
        """Return the mean square error of the hidden patches, a scalar.

        Args:
            fbank: normalised windows, shape (B, max_frames, n_mels).
            seen_share: of the patches, in (0, 1).
        """
        encoder = self.encoder
        patches = encoder.patch_embed(fbank) + encoder.pos_embed[:, N_PREFIX_TOKENS:]  # (B, P, C)
        n_windows, n_patches, width = patches.shape
        n_seen = min(n_patches - 1, max(1, round(seen_share * n_patches)))
        places = torch.rand(n_windows, n_patches).to(patches.device)  # the same on every device
        seen = places.argsort(dim=1)[:, :n_seen]  # (B, n_seen)
        x = patches.gather(1, seen[..., None].expand(-1, -1, width))
        prefix = torch.cat((encoder.cls_token, encoder.dist_token), dim=1)
        prefix = prefix + encoder.pos_embed[:, :N_PREFIX_TOKENS]
        x = torch.cat((prefix.expand(n_windows, -1, -1), x), dim=1)  # (B, 2 + n_seen, C)
        for block in encoder.blocks:
            x = block(x)
        told = self._decode(encoder.norm(x)[:, N_PREFIX_TOKENS:], seen, n_patches)
        is_hidden = torch.ones_like(places).scatter(1, seen.to(places.device), 0.0)
        is_hidden = is_hidden.to(told.device)
        errors = (told.float() - self._patches(fbank)).square().mean(dim=2)  # (B, P)
        error: Tensor = (errors * is_hidden).sum() / is_hidden.sum()
        return error

    def use_attention(self, attend: Attend) -> None:
        """Compute attention with `attend` in every block."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.attend = attend

    def _decode(self, x: Tensor, seen: Tensor, n_patches: int) -> Tensor:
        """Return what each patch is told to hold, shape (B, P, patch_size ** 2)."""
        x = self.entry(x)  # (B, n_seen, D)
        whole = self.hidden.to(x.dtype).expand(len(x), n_patches, -1)
        x = whole.scatter(1, seen[..., None].expand(-1, -1, DECODER_WIDTH), x) + self.positions
        for block in self.blocks:
            x = block(x)
        told: Tensor = self.exit(self.norm(x))
        return told

    def _patches(self, fbank: Tensor) -> Tensor:
        """Return the patches, each at mean 0 and spread 1, shape (B, P, patch_size ** 2)."""
        image = fbank.unsqueeze(1).transpose(2, 3)  # (B, 1, n_mels, n_frames)
        stride = (self.dims.frequency_stride, self.dims.time_stride)
        patches = F.unfold(image, self.dims.patch_size, stride=stride).transpose(1, 2)
        spread = (patches.var(dim=2, keepdim=True) + FLAT_VARIANCE).sqrt()
        standard: Tensor = (patches - patches.mean(dim=2, keepdim=True)) / spread
        return standard


def pretraining_recipe(recipe: Recipe, steps: int) -> Recipe:
    """Return how to learn without labels, for a training by `recipe`.

    Masks of the augmentation would only ask for what is not there.
    """
    return replace(
        Recipe(steps=steps),
        batch_size=recipe.batch_size,
        augmentation=replace(
            recipe.augmentation, frequency_mask=0, time_mask=0, noise=0.0, shift=0
        ),
        patch_share=SEEN_SHARE,
        all_patches_share=0.0,
        drop_path=recipe.drop_path,
        report_every=recipe.report_every,
        save_every=recipe.save_every,
        seed=recipe.seed,
        precision=recipe.precision,
    )


def _decoder_sizes(dims: AstDims) -> AstDims:
    return replace(
        dims,
        hidden_size=DECODER_WIDTH,
        n_heads=DECODER_HEADS,
        n_layers=DECODER_LAYERS,
        intermediate_size=4 * DECODER_WIDTH,
    )
