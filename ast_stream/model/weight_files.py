"""Files of tensors in, tensors by name out; nothing in a file is ever executed.

Only reading tensors imports torch: names and shapes of a safetensors file are had without it.
"""

from __future__ import annotations

import pickle
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open

from ast_stream.errors import CheckpointError
from ast_stream.model.hub_config import read_json

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
_Read = TypeVar("_Read")

SAFETENSORS = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt")
SUFFIXES = (SAFETENSORS, *PICKLE_SUFFIXES)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"
INDEXES = tuple(name + INDEX_SUFFIX for name in WEIGHTS)
REWRITE = "write the model again with save_pretrained(), or its state_dict() with torch.save()"

# What may lie beside the weights: none of it is a model.
_NO_MODEL = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state[_\d]*|trainer_state)\.\w+\Z"
)
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.\w+\Z")
_FOREIGN = {
    ".onnx": "ONNX",
    ".gguf": "GGUF",
    ".h5": "TensorFlow",
    ".tflite": "TensorFlow Lite",
    ".msgpack": "Flax",
    ".pt2": "torch.export",
}
# Where training scripts put a model's tensors among other things.
_INSIDE = ("state_dict", "model_state_dict", "model", "module", "net", "weights")


def weights_in(directory: Path) -> Path:
    """Return the file of a folder that holds the weights, or the index of several such files.

    Raises:
        CheckpointError: there is none, or more than one that might be meant.
    """
    for name in (*WEIGHTS, *INDEXES):
        if (directory / name).exists():
            return directory / name
    try:
        files = sorted(directory.iterdir())
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read: {error.strerror or error}") from error
    candidates = [
        path for path in files if path.suffix in SUFFIXES and not _NO_MODEL.match(path.name)
    ]
    if len(candidates) == 1:
        return candidates[0]
    found = ", ".join(path.name for path in candidates) or "none"
    raise CheckpointError(
        f"{directory}: expected {' or '.join(WEIGHTS)}, or one file ending in "
        f"{', '.join(SUFFIXES)}, got {found}{_what_else(files)}"
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors, .bin, .pth, .pt or .ckpt file, on the CPU.

    Args:
        path: such a file, or the index (`….index.json`) of the files that a checkpoint is split in.

    Raises:
        CheckpointError: a file is missing, empty, damaged, of another kind, or holds more or
            other things than tensors by name.
    """
    return _read(path, _safetensors, _pickled)


def read_shapes(path: Path) -> dict[str, Shape]:
    """Return the shapes of the tensors that `read_tensors` returns.

    Raises:
        CheckpointError: as `read_tensors`, for what can be seen without reading the numbers.
    """
    return _read(path, _safetensors_shapes, _pickled_shapes)


def _read(
    path: Path,
    read_safe: Callable[[Path], dict[str, _Read]],
    read_pickle: Callable[[Path], dict[str, _Read]],
) -> dict[str, _Read]:
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path, read_safe, read_pickle)
    if path.suffix not in SUFFIXES:
        kind = _FOREIGN.get(path.suffix)
        raise CheckpointError(
            f"{path}: expected a file ending in {', '.join(SUFFIXES)}, got '{path.suffix}'"
            + (f", a model for {kind}; {REWRITE}" if kind else "")
        )
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path}: expected a file, got something else of that name")
        if found.st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        return read_safe(path) if path.suffix == SAFETENSORS else read_pickle(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: does not fit into memory") from error


def _read_shards(
    index: Path,
    read_safe: Callable[[Path], dict[str, _Read]],
    read_pickle: Callable[[Path], dict[str, _Read]],
) -> dict[str, _Read]:
    """Return the tensors of all files that an index names, each tensor from the file it says."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CheckpointError(f"{index}: weight_map: expected file names by tensor, got {where!r}")
    for tensor, name in where.items():
        # nothing outside of the folder, whatever the index says
        if not isinstance(name, str) or Path(name).name != name or name.endswith(INDEX_SUFFIX):
            raise CheckpointError(
                f"{index}: weight_map: {tensor}: expected the name of a file beside it, "
                f"got {name!r}"
            )
    tensors: dict[str, _Read] = {}
    for name in sorted(set(where.values())):
        shard = index.parent / name
        if not shard.exists():
            raise CheckpointError(f"{index}: {name} is missing beside it")
        held = _read(shard, read_safe, read_pickle)
        wanted = [tensor for tensor, file in where.items() if file == name]
        missing = [tensor for tensor in wanted if tensor not in held]
        if missing:
            raise CheckpointError(f"{shard}: expected {missing[0]}, as {index.name} says, got none")
        extra = held.keys() - set(wanted)
        if extra:
            raise CheckpointError(f"{shard}: {min(extra)} is not in {index.name}")
        tensors |= held
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file  # imports torch

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, KeyError) as error:  # KeyError: a type of numbers torch has not
        raise CheckpointError(f"{path}: damaged or not a safetensors file: {error}") from error
    return tensors


def _safetensors_shapes(path: Path) -> dict[str, Shape]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file: {error}") from error


def _pickled_shapes(path: Path) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in _pickled(path).items()}


def _pickled(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        with warnings.catch_warnings():  # about old storages and protocols, of no use to a reader
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: expected tensors only, got a pickle with other objects or none that torch "
            f"wrote; it was not opened, since that could run code from the file: {REWRITE}"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch raises many kinds for damaged files, KeyError among them
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path}: expected tensors, got a TorchScript program, which is not run: {REWRITE}"
            ) from error
        reason = str(error).split("\n")[0].split(". ")[0].strip() or type(error).__name__
        raise CheckpointError(f"{path}: damaged or not a torch file: {reason}") from error
    return _named_tensors(_inside(content, path), path)


def _inside(content: object, path: Path) -> Mapping[Any, object]:
    """Return the model's tensors where a training script saved them among other things."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected tensors by name, got {type(content).__name__}")
    if "param_groups" in content:
        raise CheckpointError(
            f"{path}: expected a model's tensors, got an optimizer's state: {REWRITE}"
        )
    models = [name for name in _INSIDE if isinstance(content.get(name), Mapping)]
    if len(models) > 1:
        raise CheckpointError(
            f"{path}: expected one model, got {' and '.join(models)}; "
            f"write the one that is meant with torch.save(content[{models[0]!r}], …)"
        )
    return content[models[0]] if models else content


def _named_tensors(content: Mapping[Any, object], path: Path) -> dict[str, Tensor]:
    import torch

    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path}: expected tensors by name, got {type(value).__name__} under {name!r}"
            )
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(
                f"{path}: {name}: expected plain numbers, got a tensor that is sparse, quantised "
                f"or without data: {REWRITE}"
            )
        tensors[name] = value
    return tensors


def _what_else(files: list[Path]) -> str:
    """Return what a folder without weights seems to hold instead, to help who looks for them."""
    names = [path.name for path in files]
    if any(name.startswith("adapter_") for name in names):
        return (
            "; it holds an adapter (PEFT): load it into its model, merge_and_unload(), and "
            "save_pretrained()"
        )
    if any(map(_SHARD.match, names)):
        return (
            f"; these are parts of a checkpoint, whose {INDEXES[0]} is missing: write it again "
            "with save_pretrained(…, max_shard_size='10GB')"
        )
    foreign = next((path for path in files if path.suffix in _FOREIGN), None)
    if foreign is not None:
        return f"; {foreign.name} is a model for {_FOREIGN[foreign.suffix]}: {REWRITE}"
    inner = [path.name for path in files if any((path / name).exists() for name in WEIGHTS)]
    if inner:
        return f"; the folders in it have some: {', '.join(inner[:3])}"
    if any(map(_NO_MODEL.match, names)):
        return "; what is there is the state of a training"
    return ""
