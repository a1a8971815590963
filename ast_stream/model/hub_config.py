"""`config.json` and `preprocessor_config.json`, as transformers writes and reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ast_stream.errors import CheckpointError
from ast_stream.model.ast import AstDims
from ast_stream.model.fbank import Normalization
from ast_stream.model.recipes import default_normalization
from ast_stream.units import N_MELS, SAMPLE_RATE

MODEL_TYPE = "audio-spectrogram-transformer"
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
_HUB_EPS = 1e-12  # ASTConfig's default


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: it cannot be read, or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


class Config:
    """One of the two files, read with its defaults and with errors that name file and key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content = read_json(path)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value as it is."""
        return self._content.get(key, default)

    def integer(self, key: str, default: int) -> int:
        """Return a whole number; for a pair of equal numbers, that number."""
        value = self.get(key, default)
        if isinstance(value, list) and len(set(map(str, value))) == 1:
            value = value[0]
        if type(value) is not int:
            raise self.error(key, "a whole number", value)
        return value

    def number(self, key: str, default: float) -> float:
        """Return a finite number."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.error(key, "a finite number", value)
        return float(value)

    def error(self, key: str, expected: str, got: object) -> CheckpointError:
        """Return the error that says what stands under `key`."""
        return CheckpointError(f"{self.path}: {key}: expected {expected}, got {got!r}")


def read_dims(config: Config, n_classes: int) -> AstDims:
    """Return the model's sizes.

    Raises:
        CheckpointError: the configuration is not that of an AST, or not one we can compute.
    """
    if config.get("model_type") != MODEL_TYPE:
        raise config.error("model_type", repr(MODEL_TYPE), config.get("model_type"))
    if config.get("hidden_act", "gelu") != "gelu":
        raise config.error("hidden_act", "'gelu'", config.get("hidden_act"))
    if config.integer("num_mel_bins", N_MELS) != N_MELS:
        raise config.error("num_mel_bins", str(N_MELS), config.get("num_mel_bins"))
    eps = config.number("layer_norm_eps", _HUB_EPS)
    try:
        return AstDims(
            n_classes=n_classes,
            hidden_size=config.integer("hidden_size", 768),
            n_layers=config.integer("num_hidden_layers", 12),
            n_heads=config.integer("num_attention_heads", 12),
            intermediate_size=config.integer("intermediate_size", 3072),
            patch_size=config.integer("patch_size", 16),
            frequency_stride=config.integer("frequency_stride", 10),
            time_stride=config.integer("time_stride", 10),
            max_frames=config.integer("max_length", 1024),
            layer_norm_eps=eps,
            head_layer_norm_eps=config.number("head_layer_norm_eps", eps),
            qkv_bias=bool(config.get("qkv_bias", True)),
        )
    except ValueError as error:
        raise CheckpointError(f"{config.path}: {error}") from error


def read_labels(config: Config, n_classes: int) -> list[str] | None:
    """Return the class names in order, or None if the file has none.

    Lenient on types: files exist with whole numbers as names and with indices as strings.
    """
    by_index = config.get("id2label")
    if by_index is None and isinstance(config.get("label2id"), Mapping):
        by_index = {index: label for label, index in config.get("label2id").items()}
    if by_index is None:
        return None
    if not isinstance(by_index, Mapping):
        raise config.error("id2label", "names by index", by_index)
    names = {str(index): str(label) for index, label in by_index.items()}
    wanted = [str(index) for index in range(n_classes)]
    if set(names) != set(wanted):
        raise CheckpointError(
            f"{config.path}: id2label: expected {n_classes} names, 0 to {n_classes - 1}, as the "
            f"classifier has, got {len(names)}"
        )
    return [names[index] for index in wanted]


def read_normalization(directory: Path, max_frames: int) -> Normalization:
    """Return mean and std from `preprocessor_config.json`, or the recipe's without that file.

    Raises:
        CheckpointError: the features it describes are not those this program computes.
    """
    if not (directory / PREPROCESSOR).exists():
        return default_normalization(max_frames)
    config = Config(directory / PREPROCESSOR)
    fixed = {"sampling_rate": SAMPLE_RATE, "num_mel_bins": N_MELS, "max_length": max_frames}
    for key, expected in fixed.items():
        if config.integer(key, expected) != expected:
            raise config.error(key, str(expected), config.get(key))
    if config.get("do_normalize", True) is False:
        return Normalization(mean=0.0, std=0.5)  # (x - 0) / (2 * 0.5)
    audioset = default_normalization(1024)  # ASTFeatureExtractor's defaults
    mean, std = config.number("mean", audioset.mean), config.number("std", audioset.std)
    if std <= 0:
        raise config.error("std", "a number above 0", std)
    return Normalization(mean, std)


def config_json(dims: AstDims, labels: Sequence[str], dtype: str) -> dict[str, Any]:
    """Return what transformers needs to build the model."""
    return {
        "architectures": ["ASTForAudioClassification"],
        "model_type": MODEL_TYPE,
        "problem_type": "multi_label_classification",  # its pipeline would use softmax otherwise
        "hidden_size": dims.hidden_size,
        "num_hidden_layers": dims.n_layers,
        "num_attention_heads": dims.n_heads,
        "intermediate_size": dims.intermediate_size,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": dims.layer_norm_eps,
        "head_layer_norm_eps": dims.head_layer_norm_eps,  # ours; transformers has one eps for all
        "patch_size": dims.patch_size,
        "qkv_bias": dims.qkv_bias,
        "frequency_stride": dims.frequency_stride,
        "time_stride": dims.time_stride,
        "max_length": dims.max_frames,
        "num_mel_bins": dims.n_mels,
        "dtype": dtype,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def preprocessor_json(max_frames: int, normalization: Normalization) -> dict[str, Any]:
    """Return what transformers' ASTFeatureExtractor needs."""
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "sampling_rate": SAMPLE_RATE,
        "num_mel_bins": N_MELS,
        "max_length": max_frames,
        "do_normalize": True,
        "mean": normalization.mean,
        "std": normalization.std,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
