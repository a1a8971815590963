"""Checkpoints: any file or folder that holds an AST in, one checked `Checkpoint` out, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ast_stream.errors import CheckpointError
from ast_stream.model import hub_config, key_schemas, recipes
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.checkpoint_files import write_files
from ast_stream.model.description import (
    check_description,
    checked_dims,
    config_beside,
    find_weights,
    read_all_labels,
    window_of,
    with_classes,
)
from ast_stream.model.dims import AstDims, Normalization, Scoring, StoredPrecision
from ast_stream.model.metadata import METADATA, Metadata, metadata_json, read_metadata
from ast_stream.model.weight_files import WEIGHTS, read_tensors

_STORED = {"fp32": (torch.float32, "float32"), "fp16": (torch.float16, "float16")}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained model and all that is known about it.

    Attributes:
        state_dict: tensors of `AudioSpectrogramTransformer(dims)`, float32, on the CPU.
        labels: class names in the order of the logits.
        origin: where it came from, for messages.
        scoring: how logits become scores.
    """

    dims: AstDims
    state_dict: Mapping[str, Tensor]
    labels: list[str]
    normalization: Normalization
    metadata: Metadata
    origin: str
    scoring: Scoring = "sigmoid"

    @cached_property
    def hash(self) -> str:
        """`sha256:…` of sizes, labels, statistics and weights, the same for every file format."""
        sizes = {name: value for name, value in asdict(self.dims).items() if value != "gelu"}
        facts = [sizes, self.labels, asdict(self.normalization)]
        facts += [self.scoring] if self.scoring != "sigmoid" else []
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name in sorted(self.state_dict):
            digest.update(name.encode())
            digest.update(self.state_dict[name].contiguous().numpy().data)
        return f"sha256:{digest.hexdigest()}"

    @property
    def window_s(self) -> float:
        """Seconds of audio in one window, as trained."""
        return window_of(self.dims, self.metadata)

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
            .pt or .ckpt file, or a hub id like "MIT/ast-finetuned-audioset-10-10-0.4593".

    Raises:
        CheckpointError: there is none, it is damaged, or it is not an AST; one sentence.
    """
    return _load_file(find_weights(reference), reference)


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
        hub_config.CONFIG: hub_config.config_json(
            checkpoint.dims, checkpoint.labels, checkpoint.scoring, dtype_name
        ),
        hub_config.PREPROCESSOR: hub_config.preprocessor_json(
            checkpoint.dims.max_frames, checkpoint.normalization
        ),
        METADATA: metadata_json(checkpoint.metadata),
    }
    write_files(directory, texts, WEIGHTS[0], tensors)


def _load_file(weights: Path, origin: str) -> Checkpoint:
    where, directory = str(weights), weights.parent
    config = config_beside(weights)
    tensors = key_schemas.unwrapped(read_tensors(weights), where)
    key_map = key_schemas.detect(tensors, where)
    if config is not None:
        dims = checked_dims(config, key_map, where)
        key_map = replace(key_map, qkv_bias=dims.qkv_bias)
        own = key_schemas.to_own(tensors, key_map, where)
        dims = with_classes(dims, len(own["head.weight"]), where)
    else:
        own = key_schemas.to_own(tensors, key_map, where)
        dims = recipes.infer_dims(own, is_original=key_map.schema == "original", where=where)
    checkpoint = Checkpoint(
        dims=dims,
        state_dict=own,
        labels=read_all_labels(config, directory, dims.n_classes),
        normalization=hub_config.read_normalization(directory, dims.max_frames),
        metadata=read_metadata(directory),
        origin=origin,
        scoring=hub_config.read_scoring(config, dims.n_classes) if config else "sigmoid",
    )
    _check(checkpoint, {own: " + ".join(names) for own, names in key_map.sources().items()})
    return checkpoint


def _check(checkpoint: Checkpoint, file_names: Mapping[str, str]) -> None:
    """Refuse tensors of wrong shapes or values, and metadata that speaks of another model."""
    where, dims = checkpoint.origin, checkpoint.dims
    check_description(dims, checkpoint.labels, checkpoint.metadata, where)
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
