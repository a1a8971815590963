"""Recipes by name: those of the AST paper, ours for small models, and one for fine-tuning.

Source: YuanGongND/ast, egs/*/run*.sh, src/run.py, src/traintest.py; its models start from ImageNet
where they do not start from AudioSet, ours from nothing where no start is named.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ast_stream.model.dims import AstDims
from ast_stream.training.augment import SpectrogramAugmentation
from ast_stream.training.recipe import Decay, Recipe
from ast_stream.training.windows import ClipMixing, WindowMixing

PresetName = Literal["small", "esc50", "speechcommands", "audioset", "audioset-balanced"]

FINE_TUNING_RATE = 5e-5  # of the published models, 768 wide; narrower ones bear more
HEAD_FINE_TUNING_RATE = 10 * FINE_TUNING_RATE
PUBLISHED_WIDTH = 768


@dataclass(frozen=True)
class Preset:
    """A recipe with the sizes, windows and generated material that go with it.

    Attributes:
        rate_from_start: learning rate where a checkpoint is fine-tuned; None: the recipe's.
        window_s, max_frames, width, n_layers, stride: of a model from scratch.
        held_out_share: of the clips of each class, to choose thresholds.
    """

    summary: str
    recipe: Recipe
    mixing: WindowMixing | ClipMixing
    window_s: float
    max_frames: int
    width: int
    n_layers: int
    stride: int
    n_generated: int
    n_backgrounds: int
    rate_from_start: float | None = None
    held_out_share: float = 0.0


def fine_tuning(dims: AstDims, keep_classes: bool) -> Preset:
    """Return what suits a checkpoint with few clips: a low rate, but for the classifier a high one.

    The rate is that which the AST authors advise, times what a narrower model bears. Where classes
    are kept it is the advised one: what they were learnt by must not move far.
    """
    head_rate = HEAD_FINE_TUNING_RATE * PUBLISHED_WIDTH / dims.hidden_size
    rate = (
        FINE_TUNING_RATE if keep_classes else FINE_TUNING_RATE * PUBLISHED_WIDTH / dims.hidden_size
    )
    recipe = Recipe(
        steps=150,
        batch_size=24,
        learning_rate=rate,
        warmup_steps=20,
        weight_decay=5e-7,
        ema_decay=0.98,
        drop_path=0.0,
        patch_share=1.0,
        report_every=10,
        save_every=50,
        evaluate_every=50,
        optimizer="adam",
        head_rate=head_rate / rate,
    )
    return replace(
        PRESETS["small"],
        summary="fine-tuning",
        recipe=recipe,
        n_generated=60 if keep_classes else 0,
        n_backgrounds=200,
        held_out_share=0.2,
    )


def _published(
    summary: str,
    batch_size: int,
    epochs: int,
    rate: float,
    decay: Decay,
    masks: tuple[int, int],
    window: tuple[float, int],
    *,
    mixup_prob: float = 0.0,
    is_balanced: bool = False,
    loss: Literal["bce", "ce"] = "bce",
    rate_from_start: float | None = None,
    warmup_steps: int = 0,
    average_from_epoch: int | None = None,
    is_noisy: bool = False,
) -> Preset:
    """Return a preset with what all recipes of the paper share: Adam on DeiT-base, stride 10."""
    frequency_mask, time_mask = masks
    window_s, max_frames = window
    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=rate,
        warmup_steps=warmup_steps,
        warmup_every=50,
        weight_decay=5e-7,
        ema_decay=0.0,  # the last weights
        drop_path=0.0,
        label_smoothing=0.0,
        gradient_clip=0.0,
        patch_share=1.0,
        optimizer="adam",
        adam_betas=(0.95, 0.999),
        decay=decay,
        average_from_epoch=average_from_epoch,
        loss=loss,
        augmentation=SpectrogramAugmentation(
            filter_spread=0.0,
            frequency_mask=frequency_mask,
            time_mask=time_mask,
            noise=0.1 if is_noisy else 0.0,
            shift=10 if is_noisy else 0,
        ),
    )
    return Preset(
        summary, recipe, ClipMixing(mixup_prob=mixup_prob, is_balanced=is_balanced), window_s,
        max_frames, PUBLISHED_WIDTH, n_layers=12, stride=10, n_generated=0, n_backgrounds=0,
        rate_from_start=rate_from_start,
    )  # fmt: skip


PRESETS: dict[PresetName, Preset] = {
    "small": Preset(
        "windows mixed as a stream has them, from clips, generated alarms and backgrounds; "
        "192 x 6 layers on 2.56 s, Muon, 4000 steps of 48 at 8e-4, half a cosine",
        Recipe(), WindowMixing(), window_s=2.56, max_frames=256, width=192, n_layers=6, stride=16,
        n_generated=300, n_backgrounds=1000,
    ),
    "esc50": _published(
        "the AST paper on ESC-50: whole clips of 5 s, 25 epochs of 48 at 1e-5 (1e-4 from scratch), "
        "x 0.85 each epoch from 5, masks 24/96, cross-entropy",
        48, 25, 1e-4, Decay(5, 1, 0.85), (24, 96), (5.0, 512), loss="ce", rate_from_start=1e-5,
    ),
    "speechcommands": _published(
        "the AST paper on Speech Commands: clips of 1 s, 30 epochs of 128 at 2.5e-4, x 0.85 each "
        "epoch from 5, masks 48/48, mixup 0.6, noise and shift",
        128, 30, 2.5e-4, Decay(5, 1, 0.85), (48, 48), (1.0, 128), mixup_prob=0.6, is_noisy=True,
    ),
    "audioset": _published(
        "the AST paper on all of AudioSet: clips of 10 s, 5 epochs of 12 at 1e-5, halved each "
        "epoch from 2, warm-up of 1000 steps, masks 48/192, mixup 0.5, balanced, averaged",
        12, 5, 1e-5, Decay(2, 1, 0.5), (48, 192), (10.0, 1024), mixup_prob=0.5, is_balanced=True,
        warmup_steps=1000, average_from_epoch=1,
    ),
    "audioset-balanced": _published(
        "the same on its balanced set: 25 epochs at 5e-5, halved every 5 epochs from 10, not "
        "balanced further, averaged from epoch 6",
        12, 25, 5e-5, Decay(10, 5, 0.5), (48, 192), (10.0, 1024), mixup_prob=0.5,
        warmup_steps=1000, average_from_epoch=6,
    ),
}  # fmt: skip
