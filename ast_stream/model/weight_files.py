"""Files of tensors in, tensors by name out; nothing in a file is ever executed."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ast_stream.errors import CheckpointError

PICKLE_SUFFIXES = (".bin", ".pth", ".pt")
SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors, .bin, .pth or .pt file, on the CPU.

    Raises:
        CheckpointError: the file is missing, empty, damaged, of another kind, or holds more or
            other things than tensors by name.
    """
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{path}: expected a file ending in {', '.join(SUFFIXES)}, got '{path.suffix}'"
        )
    try:
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file: {error}") from error
    return tensors


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():  # about old storages and protocols, of no use to a reader
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: expected tensors only, got a pickle with other objects or none that torch "
            "wrote; it was not opened, since that could run code from the file"
        ) from error
    except OSError:
        raise
    except Exception as error:  # torch raises many kinds for damaged files, KeyError among them
        reason = str(error).split(". ")[0].strip() or type(error).__name__
        raise CheckpointError(f"{path}: damaged or not a torch file: {reason}") from error
    return _check_content(content, path)


def _check_content(content: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected tensors by name, got {type(content).__name__}")
    if "param_groups" in content:
        raise CheckpointError(f"{path}: expected a model's tensors, got an optimizer's state")
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: expected tensors by name, got {type(value).__name__} under {name!r}"
            )
        tensors[name] = value
    return tensors
