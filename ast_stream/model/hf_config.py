"""`config.json` and `preprocessor_config.json`, as transformers writes and reads them."""

from __future__ import annotations

import json
import math
import reprlib
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ast_stream.errors import CheckpointError
from ast_stream.model.dims import Activation, AstDims, Normalization, Scoring, default_normalization
from ast_stream.units import N_MELS, SAMPLE_RATE

MODEL_TYPE = "audio-spectrogram-transformer"
ARCHITECTURE = "ASTForAudioClassification"
EXTRACTOR = "ASTFeatureExtractor"
MULTI_LABEL, SINGLE_LABEL = "multi_label_classification", "single_label_classification"
# transformers' names of the functions that we have, the one to write first
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
MAX_TEXT_BYTES = 32 << 20
LARGEST_LOG_MEL = 1000  # of sound they lie between -16 and 20; beyond, scores would be NaN
_HUB_EPS = 1e-12  # ASTConfig's default


def read_small_file(path: Path) -> bytes:
    """Return what a file of text beside the weights holds.

    Raises:
        CheckpointError: it cannot be read, is no file, or is far too large for one.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a FIFO would wait for ever
            raise CheckpointError(f"{path}: expected a file, got something else of that name")
        if found.st_size > MAX_TEXT_BYTES:
            raise CheckpointError(
                f"{path}: expected at most {MAX_TEXT_BYTES >> 20} MB, got {found.st_size} bytes"
            )
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: it cannot be read, or is not a JSON object.
    """
    text = read_small_file(path)
    try:
        content = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_without_repeats)
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path}: not valid JSON: nested too deeply") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; ValueError where a key stands twice, of which one would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in an object")
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
        try:
            number = float(value) if type(value) in (int, float) else math.nan
        except OverflowError:  # a whole number of hundreds of digits
            number = math.inf
        if not math.isfinite(number):
            raise self.error(key, "a finite number", value)
        return number

    def boolean(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.error(key, "true or false", value)
        return value

    def refuse_unless(self, key: str, allowed: Sequence[Any], why: str) -> None:
        """Refuse a value of `key` that is not among `allowed`; without the key, all is well.

        Raises:
            CheckpointError: saying `why`.
        """
        value = self.get(key)
        if value is not None and not any(
            type(value) is type(choice) and value == choice for choice in allowed
        ):
            expected = " or ".join(json.dumps(choice) for choice in allowed)
            raise self.error(key, f"{expected}, since {why}", value)

    def error(self, key: str, expected: str, got: object) -> CheckpointError:
        """Return the error that says what stands under `key`."""
        shown = reprlib.repr(got)  # whatever a file holds, the message stays one short sentence
        return CheckpointError(f"{self.path}: {key}: expected {expected}, got {shown}")


def check_supported(config: Config) -> None:
    """Refuse options that transformers would compute differently, with the name of the key.

    What is not named here changes nothing in the scores: dropout, initialisation, the type that
    weights are stored in, attention implementations, what a forward pass returns.

    Raises:
        CheckpointError: the configuration is not that of an AST, or not one we can compute.
    """
    if config.get("model_type") != MODEL_TYPE:
        raise config.error("model_type", repr(MODEL_TYPE), config.get("model_type"))
    architectures = config.get("architectures") or []
    if architectures not in ([], [ARCHITECTURE], ["ASTModel"]):
        raise config.error("architectures", f"[{ARCHITECTURE!r}]", architectures)
    if config.get("auto_map"):
        raise config.error("auto_map", "none, since code from a checkpoint is never run",
                           config.get("auto_map"))  # fmt: skip
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            raise config.error(key, "none, since only plain weights are read", config.get(key))
    if config.get("pruned_heads"):
        raise config.error("pruned_heads", "none", config.get("pruned_heads"))
    for key in ("is_decoder", "is_encoder_decoder", "add_cross_attention"):
        config.refuse_unless(key, [False], "an AST is an encoder")
    if config.integer("num_mel_bins", N_MELS) != N_MELS:
        raise config.error("num_mel_bins", str(N_MELS), config.get("num_mel_bins"))


def read_dims(config: Config, n_classes: int) -> AstDims:
    """Return the model's sizes.

    Raises:
        CheckpointError: the configuration is not that of an AST, or not one we can compute.
    """
    check_supported(config)
    activation = config.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise config.error("hidden_act", " or ".join(map(repr, ACTIVATIONS)), activation)
    eps = config.number("layer_norm_eps", _HUB_EPS)
    try:
        dims = AstDims(
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
            qkv_bias=config.boolean("qkv_bias", True),
            activation=ACTIVATIONS[activation],
        )
    except ValueError as error:
        raise CheckpointError(f"{config.path}: {error}") from error
    config.refuse_unless("head_dim", [dims.head_dim], "that is hidden_size / num_attention_heads")
    return dims


def read_scoring(config: Config, n_classes: int) -> Scoring:
    """Return how logits become scores: as the loss that the model was trained with has it.

    Raises:
        CheckpointError: the model does not tell classes.
    """
    problem_type = config.get("problem_type")
    if problem_type not in (None, MULTI_LABEL, SINGLE_LABEL):
        raise config.error(
            "problem_type", f"{MULTI_LABEL!r} or {SINGLE_LABEL!r}", config.get("problem_type")
        )
    if problem_type == SINGLE_LABEL and n_classes == 1:
        raise config.error("problem_type", f"{MULTI_LABEL!r} of a single class", problem_type)
    # unsaid by the published AudioSet models, which are of many labels
    return "softmax" if problem_type == SINGLE_LABEL else "sigmoid"


def read_labels(config: Config, n_classes: int) -> list[str] | None:
    """Return the class names in order, or None if the file has none.

    Lenient on types: files exist with whole numbers as names and with indices as strings.
    """
    key, by_index = "id2label", config.get("id2label")
    if by_index is None and isinstance(config.get("label2id"), Mapping):
        key = "label2id"
        by_index = {index: label for label, index in _hashable(config, key).items()}
    if by_index is None:
        return None
    if not isinstance(by_index, Mapping):
        raise config.error("id2label", "names by index", by_index)
    names = {str(index): label for index, label in by_index.items()}
    wanted = [str(index) for index in range(n_classes)]
    if set(names) != set(wanted):
        missing = [index for index in wanted if index not in names]
        raise CheckpointError(
            f"{config.path}: {key}: expected {n_classes} names, 0 to {n_classes - 1}, as the "
            f"classifier has, got {len(names)}" + (f", none for {missing[0]}" if missing else "")
        )
    for index in wanted:
        if type(names[index]) not in (str, int, float):
            raise config.error(f"{key}.{index}", "a name", names[index])
    return [str(names[index]).strip() for index in wanted]


def _hashable(config: Config, key: str) -> Mapping[str, Any]:
    content: Mapping[str, Any] = config.get(key)
    for name, value in content.items():
        if isinstance(value, list | dict):
            raise config.error(f"{key}.{name}", "an index", value)
    return content


def read_normalization(directory: Path, max_frames: int) -> Normalization:
    """Return mean and std from `preprocessor_config.json`, or the recipe's without that file.

    Raises:
        CheckpointError: the features it describes are not those this program computes.
    """
    if not (directory / PREPROCESSOR).exists():
        return default_normalization(max_frames)
    config = Config(directory / PREPROCESSOR)
    kind = config.get("feature_extractor_type", EXTRACTOR)
    if kind != EXTRACTOR:
        raise config.error("feature_extractor_type", repr(EXTRACTOR), kind)
    if config.get("auto_map"):
        raise config.error(
            "auto_map", "none, since code from a checkpoint is never run", config.get("auto_map")
        )
    fixed = {
        "sampling_rate": SAMPLE_RATE,
        "num_mel_bins": N_MELS,
        "max_length": max_frames,
        "feature_size": 1,
    }
    for key, expected in fixed.items():
        if config.integer(key, expected) != expected:
            raise config.error(key, str(expected), config.get(key))
    if not config.boolean("do_normalize", True):
        return Normalization(mean=0.0, std=0.5)  # (x - 0) / (2 * 0.5)
    audioset = default_normalization(1024)  # ASTFeatureExtractor's defaults
    mean, std = config.number("mean", audioset.mean), config.number("std", audioset.std)
    if abs(mean) > LARGEST_LOG_MEL:
        raise config.error("mean", f"-{LARGEST_LOG_MEL} to {LARGEST_LOG_MEL}", mean)
    if not 1 / LARGEST_LOG_MEL <= std <= LARGEST_LOG_MEL:
        span = f"a number above 0, from {1 / LARGEST_LOG_MEL} to {LARGEST_LOG_MEL}"
        raise config.error("std", span, std)
    return Normalization(mean, std)


def config_json(
    dims: AstDims, labels: Sequence[str], scoring: Scoring, dtype: str
) -> dict[str, Any]:
    """Return what transformers needs to build the model."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        # its pipeline would use softmax where nothing is said
        "problem_type": SINGLE_LABEL if scoring == "softmax" else MULTI_LABEL,
        "hidden_size": dims.hidden_size,
        "num_hidden_layers": dims.n_layers,
        "num_attention_heads": dims.n_heads,
        "intermediate_size": dims.intermediate_size,
        "hidden_act": next(name for name, own in ACTIVATIONS.items() if own == dims.activation),
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
        "feature_extractor_type": EXTRACTOR,
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
