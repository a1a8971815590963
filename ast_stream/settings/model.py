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
    """A small model scores every window; `model.checkpoint` scores those that have a reason.

    Reasons: the small model finds a class likely, the sound becomes louder in some bands, an event
    is open or may be confirmed, the stream starts, or `every_s` has passed.
    """

    checkpoint: str = Field(
        description="the small model: a directory, a .pth file or a hub id; only classes that "
        "model.checkpoint also has count"
    )
    ask_ratio: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="a class is a reason if its score is at least this ratio of the small model's "
        "onset threshold",
    )
    change_db: float | None = Field(
        default=6.0,
        gt=0,
        le=100,
        description="bands of the newest hop that are louder by this than in all other hops of the "
        "window are a reason; null: they are not",
    )
    every_s: PositiveSeconds | None = Field(
        default=30.0,
        description="without any other reason, one window is scored this often; null: none",
    )

    steady_hops: int = Field(
        default=1,
        ge=1,
        le=8,
        description="while all open events are steady and nothing else is a reason, one in this "
        "many windows is scored",
    )

    _checkpoint_is_found = field_validator("checkpoint")(_checkpoint)


class VerifierSettings(Section):
    """Second opinions on events that are about to begin, learned from people's verdicts."""

    file: str = Field(description="file written by `ast-stream review fit` for this checkpoint")
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
    """Which checkpoint scores, on which device, at which precision and hop."""

    checkpoint: str = Field(
        default="bundled", description="bundled, a directory, a .pth file or a hub id"
    )
    cascade: CascadeSettings | None = Field(
        default=None, description="a small model that scores all windows first; null: none"
    )
    verifiers: VerifierSettings | None = Field(
        default=None, description="second opinions learned from verdicts; null: none"
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
        description="length of a window; null: as trained; shorter windows use the centre of the "
        "position embeddings",
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
