"""`ast_stream.json` beside a checkpoint: thresholds, timing, and where it comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ast_stream.errors import CheckpointError
from ast_stream.model.hf_config import read_small_file
from ast_stream.runtime.files import replace_file

METADATA = "ast_stream.json"

Score = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=3600)]
PositiveSeconds = Annotated[float, Field(ge=0.01, le=3600)]  # from one frame on
SmoothingSeconds = Annotated[float, Field(ge=0, le=60)]
FitSeconds = Annotated[float, Field(ge=-60, le=60)]  # no window is as long

DEFAULT_FRAME_DELAY_S = 0.16
UNMEASURED_RISE_S = 0.5
UNMEASURED_RISE_OF_WINDOW = 0.25
UNMEASURED_SPREAD = 0.25  # of the rise time
LONGEST_RISE_OF_WINDOW = 0.5  # of windows that it was not measured with


class Rise(NamedTuple):
    """How many seconds of a sound a window must hold for its score to reach the threshold.

    Attributes:
        on_s, off_s: for the onset threshold and for the lower one that ends an event; the latter
            is negative where averages outlast the last window that holds the sound.
        assumed: at least one of them was not measured for this class and window.
        on_spread_s: how much more or less than `on_s`; a quarter of it where nothing was measured.
    """

    on_s: float
    off_s: float
    assumed: bool
    on_spread_s: float


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PlattScaling(_Part):
    """A monotone map of one class's logits: its score is the sigmoid of scale * logit + bias.

    It changes no ranking within the class; it makes scores of different classes comparable.
    """

    scale: Annotated[float, Field(gt=0, le=100)] = 1.0
    bias: Annotated[float, Field(ge=-100, le=100)] = 0.0


class Golden(_Part):
    """A clip that any installation can generate, and the scores it must get (fp32, math)."""

    recipe: Literal["chirps-1"]
    seed: Annotated[int, Field(ge=0, lt=1 << 32)]
    scores: list[Score]


class StoredOnsetFit(_Part):
    """How the rise time of a class depends on the scores around the threshold crossing.

    With z = logit(score) - logit(onset threshold) of the last window below and the first above,

        rise = rise_s + before_s * z(before) + first_s * z(first)

    Attributes:
        before_s, first_s: seconds for each unit of z.
        lowest_s, highest_s: of what was measured; no estimate lies beyond.
        within_s: so close to the truth were 90 % of the estimates.
    """

    rise_s: FitSeconds
    before_s: FitSeconds
    first_s: FitSeconds
    lowest_s: FitSeconds
    highest_s: FitSeconds
    within_s: Annotated[FitSeconds, Field(ge=0)]


class FrameDecisions(_Part):
    """How events are decided by the scores of frames; there if the checkpoint has a frame head.

    Attributes:
        delay_s: a frame is decided by the first window that ends so much later, with what all
            windows until then say of it: the scores of a frame get better with what follows it.
        onset_thresholds, confirm_s, smoothing_s, score_maps: as in `Metadata`, for frames.
        hold_s: quiet time after which an event has ended, by label: the pauses of a bark or an
            alarm, which windows do not see, are no ends.
    """

    delay_s: Annotated[float, Field(ge=0, le=10)] = DEFAULT_FRAME_DELAY_S
    default_onset_threshold: Score = 0.5
    onset_thresholds: dict[str, Score] = Field(default_factory=dict)
    confirm_s: dict[str, PositiveSeconds] = Field(default_factory=dict)
    smoothing_s: dict[str, SmoothingSeconds] = Field(default_factory=dict)
    hold_s: dict[str, PositiveSeconds] = Field(default_factory=dict)
    score_maps: dict[str, PlattScaling] = Field(default_factory=dict)

    def onset_threshold(self, label: str) -> float:
        """Return the score at which an event of `label` may begin."""
        return self.onset_thresholds.get(label, self.default_onset_threshold)

    def named_labels(self) -> set[str]:
        """Return every label that is mentioned."""
        return {
            *self.onset_thresholds,
            *self.confirm_s,
            *self.smoothing_s,
            *self.hold_s,
            *self.score_maps,
        }


class Metadata(_Part):
    """Contents of `ast_stream.json`; every field may be absent, as for foreign checkpoints.

    Attributes:
        window_s: length of the windows the model was trained on; None: by its input length.
        hop_s: distance between windows the thresholds were chosen for.
        onset_thresholds: scores at which an event may begin, by label.
        rise_on_s, rise_off_s: measured rise times by label, see `Rise`.
        rise_on_spread_s, rise_off_spread_s: half of the interquartile range of what was measured.
        onset_fits: finer than `rise_on_s`, by label, for windows and hop as above.
        confirm_s: span in which windows must agree before an event begins, by label.
        smoothing_s: time constant over which scores are averaged, by label; the others' are not.
        score_maps: from logits to scores, by label; the others' scores are plain sigmoids.
        background: labels that never make events.
        off: labels that make events only where the settings enable them: what is found of them is
            not worth what is alarmed falsely.
        frames: how events are decided by frames; None: the checkpoint has no frame head, and
            windows decide. What is above holds for decisions by windows.
        golden: the self-check; None: compared with fp32 at start instead.
        provenance: training data, attributions, measurements; free form.
    """

    version: Literal[1] = 1
    window_s: PositiveSeconds | None = None
    hop_s: PositiveSeconds | None = None
    default_onset_threshold: Score = 0.5
    onset_thresholds: dict[str, Score] = Field(default_factory=dict)
    rise_on_s: dict[str, Seconds] = Field(default_factory=dict)
    rise_off_s: dict[str, FitSeconds] = Field(default_factory=dict)
    rise_on_spread_s: dict[str, Seconds] = Field(default_factory=dict)
    rise_off_spread_s: dict[str, Seconds] = Field(default_factory=dict)
    onset_fits: dict[str, StoredOnsetFit] = Field(default_factory=dict)
    confirm_s: dict[str, PositiveSeconds] = Field(default_factory=dict)
    smoothing_s: dict[str, SmoothingSeconds] = Field(default_factory=dict)
    score_maps: dict[str, PlattScaling] = Field(default_factory=dict)
    background: list[str] = Field(default_factory=list)
    off: list[str] = Field(default_factory=list)
    frames: FrameDecisions | None = None
    golden: Golden | None = None
    licence: str | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)

    def onset_threshold(self, label: str) -> float:
        """Return the score at which an event of `label` may begin."""
        return self.onset_thresholds.get(label, self.default_onset_threshold)

    def rise(self, label: str, window_s: float) -> Rise:
        """Return the rise times of `label` for windows of `window_s`.

        Where none were measured they are min(0.5 s, window / 4); those measured with windows of
        another length are at most half of this one. Both count as `assumed`.
        """
        unmeasured = min(UNMEASURED_RISE_S, window_s * UNMEASURED_RISE_OF_WINDOW)
        on_s, off_s = self.rise_on_s.get(label), self.rise_off_s.get(label)
        spread_s = self.rise_on_spread_s.get(label)
        is_same_window = self.window_s in (None, window_s)
        longest = math.inf if is_same_window else window_s * LONGEST_RISE_OF_WINDOW
        rise_on_s = unmeasured if on_s is None else min(on_s, longest)
        is_measured = is_same_window and on_s is not None
        return Rise(
            rise_on_s,
            unmeasured if off_s is None else min(off_s, longest),
            assumed=on_s is None or off_s is None or not is_same_window,
            on_spread_s=(
                spread_s if is_measured and spread_s is not None else UNMEASURED_SPREAD * rise_on_s
            ),
        )

    def named_labels(self) -> set[str]:
        """Return every label that is mentioned."""
        return {
            *self.onset_thresholds,
            *self.rise_on_s,
            *self.rise_off_s,
            *self.rise_on_spread_s,
            *self.rise_off_spread_s,
            *self.onset_fits,
            *self.confirm_s,
            *self.smoothing_s,
            *self.score_maps,
            *self.background,
            *self.off,
            *(self.frames.named_labels() if self.frames else ()),
        }


def read_metadata(directory: Path) -> Metadata:
    """Return what `ast_stream.json` in `directory` says; all defaults without that file.

    Raises:
        CheckpointError: the file cannot be read, or has an unknown key or a wrong value.
    """
    path = directory / METADATA
    if not path.exists():
        return Metadata()
    try:
        return Metadata.model_validate_json(read_small_file(path))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        text = f"{key}: {first['msg']}" if key else first["msg"]
        raise CheckpointError(f"{path}: {text}") from error


def write_metadata(directory: Path, metadata: Metadata) -> None:
    """Write `ast_stream.json` beside the weights in `directory`.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        write_json(directory / METADATA, metadata_json(metadata))
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be written: {error}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old or the new one, never half of it."""
    replace_file(path, json_text(content).encode(), is_synced=True)


def json_text(content: Mapping[str, Any]) -> str:
    """Return what a JSON file of a checkpoint holds."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def metadata_json(metadata: Metadata) -> dict[str, Any]:
    """Return what `ast_stream.json` says."""
    content: dict[str, Any] = metadata.model_dump(mode="json", exclude_none=True)
    return content
