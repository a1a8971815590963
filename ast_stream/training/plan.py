"""What a user asks of a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ast_stream.dataset.tables import Columns
from ast_stream.training.recipe import Recipe
from ast_stream.training.windows import ClipMixing, WindowMixing


@dataclass(frozen=True)
class Plan:
    """What to train on and what to make; the defaults are those of a small model from scratch.

    Attributes:
        data: as `read_data` takes it.
        start: checkpoint to fine-tune, as `load_checkpoint` takes it; None: from scratch. Its sizes
            are kept, and its classifier for the classes that it knows.
        keep_classes: the classes of the start stay; those without examples are learnt from it.
        teacher: checkpoint whose scores join the labels; None: the start for `keep_classes`.
        test_folds: recordings of these folds are held out: they are not trained on, and choose
            the thresholds.
        held_out_share: of the recordings of each class, if there are no test folds.
        backgrounds: own recordings without any event, files or folders; a part is held out.
        n_generated: takes of each generated class; 0: recordings only.
        n_backgrounds: generated backgrounds without any event.
        window_s: None: that of the start. A shorter one cuts its position embeddings.
        max_frames: input of the model from scratch; None: as many as the window has.
        width, n_layers: sizes of a model from scratch.
        stride: of the patch grid, in mel bands and frames; None: that of the start. Another one
            interpolates its position embeddings.
        mixing: how windows are drawn, from streams or from whole clips.
        measure_normalization: compute the statistics also where the start has some.
        negatives_s: length of the streams without events that bound the false alarms; 0: choose no
            thresholds.
        budget_per_h: false alarms of one class in an hour of them.
        device: auto, cpu, cuda or cuda:N.
        licence: of the weights.
    """

    data: Path
    start: str | None = None
    keep_classes: bool = False
    teacher: str | None = None
    columns: Columns = field(default_factory=Columns)
    test_folds: tuple[str, ...] = ()
    held_out_share: float = 0.0
    backgrounds: tuple[Path, ...] = ()
    n_generated: int = 300
    n_backgrounds: int = 1000
    window_s: float | None = None
    max_frames: int | None = None
    width: int = 192
    n_layers: int = 6
    stride: int | None = None
    recipe: Recipe = field(default_factory=Recipe)
    mixing: WindowMixing | ClipMixing = field(default_factory=WindowMixing)
    measure_normalization: bool = False
    negatives_s: float = 3600.0
    budget_per_h: float = 0.5
    device: str = "cpu"
    licence: str | None = None
