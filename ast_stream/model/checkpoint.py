"""Checkpoints: any file or folder that holds an AST in, one checked `Checkpoint` out, and back."""

from __future__ import annotations

import csv
import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ast_stream.errors import CheckpointError
from ast_stream.model import hub, hub_config, key_schemas, recipes
from ast_stream.model.ast import AstDims, AudioSpectrogramTransformer
from ast_stream.model.checkpoint_files import write_files
from ast_stream.model.fbank import Normalization
from ast_stream.model.metadata import METADATA, Metadata, metadata_json, read_metadata
from ast_stream.model.weight_files import SUFFIXES, read_tensors
from ast_stream.units import frame_count, seconds_to_samples

BUNDLED = "bundled"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LABELS_CSV = "class_labels_indices.csv"

StoredPrecision = Literal["fp32", "fp16"]
_STORED = {"fp32": (torch.float32, "float32"), "fp16": (torch.float16, "float16")}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained model and all that is known about it.

    Attributes:
        state_dict: tensors of `AudioSpectrogramTransformer(dims)`, float32, on the CPU.
        labels: class names in the order of the logits.
        origin: where it came from, for messages.
    """

    dims: AstDims
    state_dict: Mapping[str, Tensor]
    labels: list[str]
    normalization: Normalization
    metadata: Metadata
    origin: str

    @cached_property
    def hash(self) -> str:
        """`sha256:…` of sizes, labels, statistics and weights, the same for every file format."""
        facts = [asdict(self.dims), self.labels, asdict(self.normalization)]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name in sorted(self.state_dict):
            digest.update(name.encode())
            digest.update(self.state_dict[name].contiguous().numpy().data)
        return f"sha256:{digest.hexdigest()}"

    @property
    def window_s(self) -> float:
        """Seconds of audio in one window, as trained."""
        return self.metadata.window_s or recipes.default_window_s(self.dims.max_frames)

    def build_model(self) -> AudioSpectrogramTransformer:
        """Return the model on the CPU, in fp32, ready to score; it shares the tensors."""
        return model_with(self.dims, self.state_dict)


def model_with(dims: AstDims, state_dict: Mapping[str, Tensor]) -> AudioSpectrogramTransformer:
    """Return a model in evaluation mode that uses the tensors of `state_dict` as they are."""
    with torch.device("meta"):  # no memory and no random numbers for weights about to be replaced
        model = AudioSpectrogramTransformer(dims)
    model.load_state_dict(state_dict, strict=True, assign=True)
    return model.train(False).requires_grad_(False)


def load_checkpoint(reference: str) -> Checkpoint:
    """Return the checkpoint that `reference` names.

    Args:
        reference: "bundled", a directory as transformers writes it, a .safetensors, .bin, .pth or
            .pt file, or a hub id like "MIT/ast-finetuned-audioset-10-10-0.4593".

    Raises:
        CheckpointError: there is none, it is damaged, or it is not an AST; one sentence.
    """
    folder, path = folder_of(reference), Path(reference).expanduser()
    if reference == BUNDLED and not (folder and (folder / hub_config.CONFIG).exists()):
        raise CheckpointError(
            "bundled: this installation holds no bundled checkpoint; expected "
            f"{hub_config.CONFIG} and {WEIGHTS[0]} in ast_stream/model/{BUNDLED}"
        )
    if folder is not None:
        return _load_file(_weights_in(folder), reference)
    if path.exists():
        return _load_file(path, reference)
    if hub.is_hub_id(reference):
        return _load_file(_weights_in(hub.download(reference)), reference)
    raise CheckpointError(
        f"{reference}: no such file or directory, and neither 'bundled' nor a hub id like org/name"
    )


def folder_of(reference: str) -> Path | None:
    """Return the folder whose files are the checkpoint; None: a single file, or of the hub."""
    if reference == BUNDLED:
        return Path(str(importlib.resources.files("ast_stream.model") / BUNDLED))
    folder = Path(reference).expanduser()
    return folder if folder.is_dir() else None


def save_checkpoint(
    directory: Path, checkpoint: Checkpoint, precision: StoredPrecision = "fp32"
) -> None:
    """Write `checkpoint` as a directory that transformers itself can load, plus ast_stream.json.

    Raises:
        CheckpointError: it is not consistent, has weights that `precision` cannot hold, or a file
            cannot be written; a checkpoint that was there before is whole.
    """
    _check(checkpoint, {name: name for name in checkpoint.state_dict})
    dtype, dtype_name = _STORED[precision]
    tensors = {
        name: tensor.to(dtype, copy=True)
        for name, tensor in key_schemas.from_own(checkpoint.state_dict, "hub").items()
    }
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{directory}: {name}: has values beyond the range of {precision}"
            )
    texts = {
        hub_config.CONFIG: hub_config.config_json(checkpoint.dims, checkpoint.labels, dtype_name),
        hub_config.PREPROCESSOR: hub_config.preprocessor_json(
            checkpoint.dims.max_frames, checkpoint.normalization
        ),
        METADATA: metadata_json(checkpoint.metadata),
    }
    write_files(directory, texts, WEIGHTS[0], tensors)


def _weights_in(directory: Path) -> Path:
    for name in WEIGHTS:
        if (directory / name).exists():
            return directory / name
    candidates = [path for path in sorted(directory.iterdir()) if path.suffix in SUFFIXES]
    if len(candidates) == 1:
        return candidates[0]
    found = ", ".join(path.name for path in candidates) or "none"
    raise CheckpointError(
        f"{directory}: expected {' or '.join(WEIGHTS)}, or one file ending in "
        f"{', '.join(SUFFIXES)}, got {found}"
    )


def _load_file(weights: Path, origin: str) -> Checkpoint:
    where, directory = str(weights), weights.parent
    tensors = key_schemas.strip_module(read_tensors(weights))
    key_map = key_schemas.detect(tensors, where)
    config = None
    if (directory / hub_config.CONFIG).exists():
        config = hub_config.Config(directory / hub_config.CONFIG)
        dims = hub_config.read_dims(config, n_classes=1)  # how many is told by the classifier
        if dims.n_layers != key_map.n_layers:
            raise config.error(
                "num_hidden_layers", f"{key_map.n_layers} as in {where}", dims.n_layers
            )
        key_map = replace(key_map, qkv_bias=dims.qkv_bias)
        own = key_schemas.to_own(tensors, key_map, where)
        dims = replace(dims, n_classes=len(own["head.weight"]))
    else:
        own = key_schemas.to_own(tensors, key_map, where)
        dims = recipes.infer_dims(own, is_original=key_map.schema == "original", where=where)
    checkpoint = Checkpoint(
        dims=dims,
        state_dict=own,
        labels=_labels(config, directory, dims.n_classes),
        normalization=hub_config.read_normalization(directory, dims.max_frames),
        metadata=read_metadata(directory),
        origin=origin,
    )
    _check(checkpoint, {own: " + ".join(names) for own, names in key_map.sources().items()})
    return checkpoint


def _labels(config: hub_config.Config | None, directory: Path, n_classes: int) -> list[str]:
    labels = hub_config.read_labels(config, n_classes) if config else None
    if labels is None and (directory / LABELS_CSV).exists():
        labels = _read_labels_csv(directory / LABELS_CSV, n_classes)
    return labels or [f"class_{index:03d}" for index in range(n_classes)]


def _read_labels_csv(path: Path, n_classes: int) -> list[str]:
    """Return AudioSet's `display_name` column, ordered by its `index` column."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            names = {int(row["index"]): row["display_name"] for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise CheckpointError(
            f"{path}: expected columns index, mid, display_name: {error!r}"
        ) from error
    if set(names) != set(range(n_classes)):
        raise CheckpointError(f"{path}: expected {n_classes} labels, got {len(names)}")
    return [names[index] for index in range(n_classes)]


def _check(checkpoint: Checkpoint, file_names: Mapping[str, str]) -> None:
    """Refuse tensors of wrong shapes or values, and metadata that speaks of another model."""
    where, dims, metadata = checkpoint.origin, checkpoint.dims, checkpoint.metadata
    with torch.device("meta"):
        expected = AudioSpectrogramTransformer(dims).state_dict()
    for name, tensor in checkpoint.state_dict.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{where}: {file_names[name]}: expected shape {tuple(expected[name].shape)}, "
                f"got {tuple(tensor.shape)}"
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{where}: {file_names[name]}: has values that are not finite")
    unknown = sorted(metadata.named_labels() - set(checkpoint.labels))
    if unknown:
        raise CheckpointError(f"{where}: {METADATA}: '{unknown[0]}' is no label of this model")
    if metadata.golden and len(metadata.golden.scores) != dims.n_classes:
        raise CheckpointError(
            f"{where}: {METADATA}: golden.scores: expected {dims.n_classes} scores, "
            f"got {len(metadata.golden.scores)}"
        )
    if frame_count(seconds_to_samples(checkpoint.window_s)) > dims.max_frames:
        raise CheckpointError(
            f"{where}: {METADATA}: window_s: expected at most {dims.max_frames} frames of 10 ms, "
            f"got {checkpoint.window_s:g} s"
        )
