"""Checkpoints: any file or folder that holds an AST in, one checked `Checkpoint` out, and back.

The mean of several: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models
improves accuracy without increasing inference time" (2022).
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ast_stream.errors import CheckpointError
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.audioset import with_audioset_defaults
from ast_stream.model.description import (
    check_description,
    checked_dims,
    config_beside,
    find_weights,
    read_all_labels,
    window_of,
    with_classes,
)
from ast_stream.model.dims import AstDims, Normalization, Scoring, StoredPrecision, infer_dims
from ast_stream.model.hf_config import (
    CONFIG,
    PREPROCESSOR,
    config_json,
    preprocessor_json,
    read_normalization,
    read_scoring,
)
from ast_stream.model.metadata import (
    METADATA,
    FrameDecisions,
    Metadata,
    json_text,
    metadata_json,
    read_metadata,
)
from ast_stream.model.weights import (
    FRAME_HEAD,
    FRAMES,
    WEIGHTS,
    detect_key_map,
    from_own,
    read_frame_head,
    read_tensors,
    to_own,
    unwrapped,
)
from ast_stream.runtime.files import Content, replace_files

_STORED = {"fp32": (torch.float32, "float32"), "fp16": (torch.float16, "float16")}
ALIKE = ("dims", "labels", "normalization", "scoring", "window_s", "has_frames")
TEST_FOLDS = "test_folds"
ATTRIBUTIONS = "ATTRIBUTIONS.csv"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained model with its description.

    Attributes:
        state_dict: tensors of `AudioSpectrogramTransformer(dims)`, float32, on the CPU; those of
            the frame head are among them if it has one.
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

    @property
    def has_frames(self) -> bool:
        """Whether it has a frame head."""
        return has_frame_head(self.state_dict)

    def build_model(self) -> AudioSpectrogramTransformer:
        """Return the model on the CPU, in fp32, ready to score; it shares the tensors."""
        return model_with(self.dims, self.state_dict)


def has_frame_head(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether a frame head is among the tensors of a model."""
    return FRAME_HEAD[0] in state_dict


def model_with(dims: AstDims, state_dict: Mapping[str, Tensor]) -> AudioSpectrogramTransformer:
    """Return a model in evaluation mode that uses the tensors of `state_dict` as they are."""
    with torch.device("meta"):  # no memory and no random numbers for weights about to be replaced
        model = AudioSpectrogramTransformer(dims, has_frames=has_frame_head(state_dict))
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

    A frame head is written to a file of its own, which transformers does not look at.

    Raises:
        CheckpointError: it is not consistent, has weights that `precision` cannot hold, or a file
            cannot be written; a checkpoint that was there before is whole.
    """
    _check(checkpoint, {name: name for name in checkpoint.state_dict})
    dtype, dtype_name = _STORED[precision]
    files = {WEIGHTS[0]: from_own(checkpoint.state_dict, "hub")}
    if checkpoint.has_frames:  # before the weights, which take their place last
        files = {FRAMES: {name: checkpoint.state_dict[name] for name in FRAME_HEAD}} | files
    stored = {
        file: {name: tensor.to(dtype, copy=True) for name, tensor in tensors.items()}
        for file, tensors in files.items()
    }
    for tensors in stored.values():
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise CheckpointError(
                    f"{directory}: {name}: has values beyond the range of {precision}"
                )
    texts = {
        CONFIG: config_json(checkpoint.dims, checkpoint.labels, checkpoint.scoring, dtype_name),
        PREPROCESSOR: preprocessor_json(checkpoint.dims.max_frames, checkpoint.normalization),
        METADATA: metadata_json(checkpoint.metadata),
    }
    _write_files(directory, texts, stored)
    if not checkpoint.has_frames:
        _remove_frame_head(directory)


def _load_file(weights: Path, origin: str) -> Checkpoint:
    where, directory = str(weights), weights.parent
    config = config_beside(weights)
    tensors = unwrapped(read_tensors(weights), where)
    key_map = detect_key_map(tensors, where)
    if config is not None:
        dims = checked_dims(config, key_map, where)
        key_map = replace(key_map, qkv_bias=dims.qkv_bias)
        own = to_own(tensors, key_map, where)
        dims = with_classes(dims, len(own["head.weight"]), where)
    else:
        own = to_own(tensors, key_map, where)
        dims = infer_dims(own, is_original=key_map.schema == "original", where=where)
    metadata = read_metadata(directory)
    if metadata.frames is not None:
        own |= read_frame_head(directory)
    elif (directory / FRAMES).exists():
        raise CheckpointError(
            f"{directory / FRAMES}: expected 'frames' in {METADATA} beside it, got none; "
            "remove the file to decide by windows"
        )
    labels = read_all_labels(config, directory, dims.n_classes)
    checkpoint = Checkpoint(
        dims=dims,
        state_dict=own,
        labels=labels,
        normalization=read_normalization(directory, dims.max_frames),
        metadata=with_audioset_defaults(metadata, labels),
        origin=origin,
        scoring=read_scoring(config, dims.n_classes) if config else "sigmoid",
    )
    _check(checkpoint, {own: " + ".join(names) for own, names in key_map.sources().items()})
    return checkpoint


def _check(checkpoint: Checkpoint, file_names: Mapping[str, str]) -> None:
    """Refuse tensors with wrong shapes or values, and metadata of another model."""
    where, dims = checkpoint.origin, checkpoint.dims
    check_description(dims, checkpoint.labels, checkpoint.metadata, where)
    if checkpoint.has_frames != (checkpoint.metadata.frames is not None):
        raise CheckpointError(
            f"{where}: expected a frame head and 'frames' in its metadata, or neither, got one"
        )
    with torch.device("meta"):
        model = AudioSpectrogramTransformer(dims, has_frames=checkpoint.has_frames)
    expected = model.state_dict()
    for name, tensor in checkpoint.state_dict.items():
        file_name = file_names.get(name, name)  # a frame head is called the same there
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{where}: {file_name}: expected shape {tuple(expected[name].shape)}, "
                f"got {tuple(tensor.shape)}"
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{where}: {file_name}: has values that are not finite")


def _write_files(
    directory: Path,
    texts: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Write JSON files and files of tensors, by name.

    The tensors take their place last: a new folder without them is no checkpoint yet.

    Raises:
        CheckpointError: a file cannot be written; what was there before is whole.
    """

    def writer(name: str, tensors: Mapping[str, Tensor]) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            try:
                save_file(dict(tensors), path, metadata={"format": "pt"})
            except SafetensorError as error:
                raise CheckpointError(f"{directory / name}: cannot be written: {error}") from error

        return write

    contents: dict[str, Content] = {name: json_text(text).encode() for name, text in texts.items()}
    contents |= {name: writer(name, tensors) for name, tensors in weights.items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_files(directory, contents, is_synced=True)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{error.filename}: cannot be written: {reason}") from error


def _remove_frame_head(directory: Path) -> None:
    """Remove the files of an earlier checkpoint."""
    try:
        (directory / FRAMES).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{directory / FRAMES}: cannot be removed: {error.strerror}"
        ) from error


def average_checkpoints(checkpoints: Sequence[Checkpoint], origin: str) -> Checkpoint:
    """Return the checkpoint whose every weight is the mean of those of `checkpoints`.

    Thresholds, score maps, timing and the self-check hold for the weights they were measured with,
    so the mean has none; its provenance is that of the last, and names all.

    Raises:
        CheckpointError: they differ in sizes, classes, statistics or window.
    """
    first, last = checkpoints[0], checkpoints[-1]
    for other in checkpoints[1:]:
        for name in ALIKE:
            here, there = getattr(first, name), getattr(other, name)
            if here != there:
                raise CheckpointError(
                    f"{other.origin}: {name}: expected that of {first.origin} ({here}), got {there}"
                )
    means = {
        name: torch.stack([checkpoint.state_dict[name] for checkpoint in checkpoints]).mean(dim=0)
        for name in first.state_dict
    }
    frames = last.metadata.frames
    metadata = Metadata(
        window_s=last.metadata.window_s,
        hop_s=last.metadata.hop_s,
        background=last.metadata.background,
        frames=FrameDecisions(delay_s=frames.delay_s) if frames else None,
        licence=last.metadata.licence,
        provenance=_provenance(checkpoints),
    )
    return replace(first, state_dict=means, metadata=metadata, origin=origin)


def _provenance(checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    last = checkpoints[-1].metadata.provenance
    provenance = {**last, "averaged_from": [checkpoint.hash for checkpoint in checkpoints]}
    if TEST_FOLDS in last:
        # what any of them has learnt, their mean knows
        unseen = [checkpoint.metadata.provenance.get(TEST_FOLDS, []) for checkpoint in checkpoints]
        provenance[TEST_FOLDS] = [
            fold for fold in last[TEST_FOLDS] if all(fold in folds for folds in unseen)
        ]
    return provenance


def carry_attributions(sources: Sequence[Path], directory: Path) -> None:
    """Write to `directory` every row of the tables in the folders `sources`, once each.

    Folders without a table, and files, have none to carry.

    Raises:
        CheckpointError: a table cannot be read, or the new one not be written.
    """
    rows: list[dict[str, str]] = []
    path = directory / ATTRIBUTIONS
    try:
        for source in sources:
            path = source / ATTRIBUTIONS
            if path.is_file():
                with path.open(encoding="utf-8", newline="") as table:
                    rows += [row for row in csv.DictReader(table) if row not in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    write_attributions(rows, directory)


def write_attributions(rows: Sequence[Mapping[str, str]], directory: Path) -> None:
    """Write titles, authors, licences and sources as they were given; nothing without any.

    Raises:
        CheckpointError: the table cannot be written.
    """
    if not rows:
        return
    path = directory / ATTRIBUTIONS
    try:
        with path.open("w", encoding="utf-8", newline="") as table:
            columns = dict.fromkeys(name for row in rows for name in row)
            writer = csv.DictWriter(table, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error
