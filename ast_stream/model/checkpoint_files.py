"""The files of a checkpoint: none replaces an old one before all of them are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ast_stream.errors import CheckpointError
from ast_stream.model.metadata import json_text
from ast_stream.runtime.files import Content, replace_files


def write_files(
    directory: Path,
    texts: Mapping[str, Mapping[str, Any]],
    weights: str,
    tensors: Mapping[str, Tensor],
) -> None:
    """Write JSON files and, named `weights`, the tensors.

    The weights take their place last: a new folder without them is no checkpoint yet.

    Raises:
        CheckpointError: a file cannot be written; what was there before is whole.
    """

    def write_weights(path: Path) -> None:
        save_file(dict(tensors), path, metadata={"format": "pt"})

    contents: dict[str, Content] = {name: json_text(one).encode() for name, one in texts.items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_files(directory, contents | {weights: write_weights}, is_synced=True)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        path = error.filename if isinstance(error, OSError) else directory / weights
        raise CheckpointError(f"{path}: cannot be written: {reason or error}") from error
