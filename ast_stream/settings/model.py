"""The section `model`: which checkpoint, on which device, how often; cascade and verifiers."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from ast_stream.settings.section import PositiveSeconds, Section, resolved
from ast_stream.units import whole_frames

BUNDLED = "bundled"  # the name of the checkpoint that is part of the package
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")
DEVICE = r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"
WindowSeconds = Annotated[float, Field(gt=0, le=600)]


def _checkpoint(checkpoint: str, info: ValidationInfo) -> str:
    """Return the path of a checkpoint beside the configuration; other names as they are."""
    if checkpoint == BUNDLED:
        return checkpoint
    beside = resolved(checkpoint, info.context)
    return checkpoint if HUB_ID.match(checkpoint) and not os.path.exists(beside) else beside


class CascadeSettings(Section):
    """A small model scores every window, `model.checkpoint` only those that give a reason.

    A reason: the small model finds a class likely enough, the sound grows louder in some band, an
    event is open or may be confirmed, a stream begins, or it is time again.
    """

    checkpoint: str = Field(
        description="the small model: a directory, a .pth file or a hub id; of its classes those "
        "count that model.checkpoint has, too"
    )
    ask_ratio: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="a class is a reason from this ratio of the small model's onset threshold on",
    )
    change_db: float | None = Field(
        default=6.0,
        gt=0,
        le=100,
        description="a window gives a reason if bands of its newest hop are louder by this than in "
        "all its other hops; null: it does not",
    )
    every_s: PositiveSeconds | None = Field(
        default=30.0, description="without a reason, one window is scored this often; null: none"
    )

    steady_hops: int = Field(
        default=1,
        ge=1,
        le=8,
        description="while events are open and steady, and nothing else gives a reason, one of so "
        "many windows is scored",
    )

    _checkpoint_is_found = field_validator("checkpoint")(_checkpoint)


class VerifierSettings(Section):
    """Second opinions of events that are about to begin, learnt from verdicts of people."""

    file: str = Field(description="what `ast-stream review fit` wrote, for this checkpoint")
    action: Literal["drop", "tag"] = Field(
        default="drop",
        description="drop: events that their verifier rejects do not begin; tag: all begin, with "
        "its score",
    )

    @field_validator("file")
    @classmethod
    def _file_is_found(cls, value: str, info: ValidationInfo) -> str:
        return resolved(value, info.context)


class ModelSettings(Section):
    """Which checkpoint, on what, how precisely, how often."""

    checkpoint: str = Field(
        default="bundled", description="bundled, a directory, a .pth file or a hub id"
    )
    cascade: CascadeSettings | None = Field(
        default=None, description="a small model that scores all windows first; null: none"
    )
    verifiers: VerifierSettings | None = Field(
        default=None, description="second opinions learnt from verdicts; null: none"
    )
    device: str = Field(
        default="auto",
        pattern=DEVICE,
        description="auto, cpu, cuda or cuda:<number>",
    )
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8", "fp8"] = "auto"
    attention: Literal["auto", "flash_attn", "flash", "cudnn", "efficient", "blocked", "math"] = (
        "auto"
    )
    window_s: WindowSeconds | None = Field(
        default=None,
        description="null: as the checkpoint was trained; shorter is cut from the centre",
    )
    hop_s: WindowSeconds = Field(default=0.5, description="a window is scored this often")
    min_context_s: WindowSeconds | None = Field(
        default=1.0,
        description="audio needed after a start or gap before the first score; null: a full window",
    )
    max_streams: int = Field(default=64, ge=1, le=4096)

    _checkpoint_is_found = field_validator("checkpoint")(_checkpoint)

    @field_validator("hop_s", "window_s", "min_context_s")
    @classmethod
    def _whole_frames(cls, value: float | None) -> float | None:
        if value is not None:
            whole_frames(value)
        return value
