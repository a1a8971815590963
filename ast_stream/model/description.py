"""The description of a checkpoint: everything known without its weights and without torch."""

from __future__ import annotations

import csv
import importlib.resources
import io
import math
from dataclasses import dataclass
from pathlib import Path

from ast_stream.errors import CheckpointError
from ast_stream.labels import problem_with_labels
from ast_stream.model import hub
from ast_stream.model.audioset import with_audioset_defaults
from ast_stream.model.dims import AstDims, Normalization, Scoring, default_window_s
from ast_stream.model.hf_config import (
    CONFIG,
    Config,
    check_supported,
    read_dims,
    read_labels,
    read_normalization,
    read_scoring,
    read_small_file,
)
from ast_stream.model.metadata import METADATA, Metadata, read_metadata
from ast_stream.model.weights import (
    FRAMES,
    WEIGHTS,
    KeyMap,
    check_names,
    detect_key_map,
    exists,
    read_shapes,
    unwrapped,
    weights_in,
)
from ast_stream.units import frame_count, seconds_to_samples

BUNDLED = "bundled"
LABELS_CSV = "class_labels_indices.csv"


@dataclass(frozen=True, eq=False)
class Description:
    """A checkpoint without its weights.

    Attributes:
        labels: class names in the order of the logits.
        scoring: how logits become scores.
        origin: where it came from, for messages.
        n_params: how many numbers its weights are.
    """

    dims: AstDims
    labels: list[str]
    normalization: Normalization
    scoring: Scoring
    metadata: Metadata
    origin: str
    n_params: int

    @property
    def window_s(self) -> float:
        """Seconds of audio in one window, as trained."""
        return window_of(self.dims, self.metadata)

    @property
    def frame_s(self) -> float | None:
        """Seconds from one frame to the next; None: the checkpoint decides by windows."""
        return None if self.metadata.frames is None else self.dims.time_patch_s


def window_of(dims: AstDims, metadata: Metadata) -> float:
    """Return the seconds of audio in one window, as trained."""
    return metadata.window_s or default_window_s(dims.max_frames)


def find_weights(reference: str) -> Path:
    """Return the file (or the index of the files) with the weights that `reference` names.

    Raises:
        CheckpointError: there is none; one sentence.
    """
    folder, path = folder_of(reference), Path(reference).expanduser()
    if reference == BUNDLED and not (folder and (folder / CONFIG).exists()):
        raise CheckpointError(
            "bundled: this installation holds no bundled checkpoint; expected "
            f"{CONFIG} and {WEIGHTS[0]} in ast_stream/model/{BUNDLED}"
        )
    if folder is not None:
        return weights_in(folder)
    if exists(path):
        return path
    if hub.is_hub_id(reference):
        return weights_in(hub.download(reference))
    raise CheckpointError(
        f"{reference}: no such file or directory, and neither 'bundled' nor a hub id like org/name"
    )


def folder_of(reference: str) -> Path | None:
    """Return the folder whose files are the checkpoint; None: a single file, or of the hub."""
    if reference == BUNDLED:
        return Path(str(importlib.resources.files("ast_stream.model") / BUNDLED))
    folder = Path(reference).expanduser()
    return folder if exists(folder) and folder.is_dir() else None


def describe(reference: str) -> Description:
    """Return the description of the checkpoint that `reference` names.

    Nothing is downloaded, and no weight of a .safetensors file is read.

    Raises:
        CheckpointError: as `load_checkpoint`, for what shows without the weights.
    """
    weights = find_weights(reference)
    config = config_beside(weights)
    tensors = unwrapped(read_shapes(weights), str(weights))
    key_map = detect_key_map(tensors, str(weights))
    if config is None:  # the sizes follow from the tensors alone
        from ast_stream.model.checkpoint import load_checkpoint  # imports torch

        loaded = load_checkpoint(reference)
        return Description(
            loaded.dims,
            loaded.labels,
            loaded.normalization,
            loaded.scoring,
            loaded.metadata,
            reference,
            sum(tensor.numel() for tensor in loaded.state_dict.values()),
        )
    dims = checked_dims(config, key_map, str(weights))
    key_map = KeyMap(key_map.schema, key_map.n_layers, dims.qkv_bias)
    check_names(tensors, key_map, str(weights))
    head = tensors[key_map.sources()["head.weight"][0]]
    dims = with_classes(dims, head[0] if head else 0, str(weights))
    own = {name for parts in key_map.sources().values() for name in parts}
    shapes = [shape for name, shape in tensors.items() if name in own]
    metadata = read_metadata(weights.parent)
    if metadata.frames is not None:
        shapes += read_shapes(weights.parent / FRAMES).values()
    labels = read_all_labels(config, weights.parent, dims.n_classes)
    described = Description(
        dims,
        labels,
        read_normalization(weights.parent, dims.max_frames),
        read_scoring(config, dims.n_classes),
        with_audioset_defaults(metadata, labels),
        reference,
        sum(map(math.prod, shapes)),
    )
    check_description(described.dims, described.labels, described.metadata, reference)
    return described


def config_beside(weights: Path) -> Config | None:
    """Return the configuration beside the weights, checked; None without one.

    Raises:
        CheckpointError: it is not one of a model that we can compute.
    """
    path = weights.parent / CONFIG
    if not path.exists():
        return None
    config = Config(path)
    check_supported(config)  # first, since it says best what a file of weights is
    return config


def checked_dims(config: Config, key_map: KeyMap, where: str) -> AstDims:
    """Return the sizes, still for one class: the classifier says how many there are.

    Raises:
        CheckpointError: the configuration speaks of another model than the weights.
    """
    dims = read_dims(config, n_classes=1)
    if dims.n_layers != key_map.n_layers:
        raise config.error("num_hidden_layers", f"{key_map.n_layers} as in {where}", dims.n_layers)
    return dims


def with_classes(dims: AstDims, n_classes: int, where: str) -> AstDims:
    """Return the sizes with the number of classes that the classifier has."""
    try:
        return AstDims(**{**vars(dims), "n_classes": n_classes})
    except ValueError as error:
        raise CheckpointError(f"{where}: classifier: {error}") from error


def read_all_labels(config: Config | None, directory: Path, n_classes: int) -> list[str]:
    """Return the class names, numbers where no file has any.

    Raises:
        CheckpointError: there are not as many as classes.
    """
    labels = read_labels(config, n_classes) if config else None
    if labels is None and (directory / LABELS_CSV).exists():
        labels = _read_labels_csv(directory / LABELS_CSV, n_classes)
    return labels or [f"class_{index:03d}" for index in range(n_classes)]


def check_description(dims: AstDims, labels: list[str], metadata: Metadata, where: str) -> None:
    """Refuse labels that are ambiguous, and metadata that speaks of another model.

    Raises:
        CheckpointError: naming what does not fit.
    """
    problem = problem_with_labels(labels)
    if problem is not None:
        raise CheckpointError(f"{where}: {problem}; rename it in id2label of {CONFIG}")
    unknown = sorted(metadata.named_labels() - set(labels))
    if unknown:
        raise CheckpointError(f"{where}: {METADATA}: {unknown[0]!r} is no label of this model")
    if metadata.golden and len(metadata.golden.scores) != dims.n_classes:
        raise CheckpointError(
            f"{where}: {METADATA}: golden.scores: expected {dims.n_classes} scores, "
            f"got {len(metadata.golden.scores)}"
        )
    window_s = window_of(dims, metadata)
    if frame_count(seconds_to_samples(window_s)) > dims.max_frames:
        raise CheckpointError(
            f"{where}: {METADATA}: window_s: expected at most {dims.max_frames} frames of 10 ms, "
            f"got {window_s:g} s"
        )


def _read_labels_csv(path: Path, n_classes: int) -> list[str]:
    """Return AudioSet's `display_name` column, ordered by its `index` column."""
    text = read_small_file(path)
    try:
        rows = list(csv.DictReader(io.StringIO(text.decode("utf-8-sig"), newline="")))
        names = {int(row["index"]): str(row["display_name"]).strip() for row in rows}
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise CheckpointError(
            f"{path}: expected columns index, mid, display_name: {error!r}"
        ) from error
    if set(names) != set(range(n_classes)) or len(rows) != n_classes:
        raise CheckpointError(f"{path}: expected {n_classes} labels, got {len(rows)}")
    return [names[index] for index in range(n_classes)]
