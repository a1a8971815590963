"""The files of a checkpoint: none replaces an old one before all of them are written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ast_stream.errors import CheckpointError
from ast_stream.model.metadata import json_text


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
    unfinished = {name: directory / f".{name}.unfinished" for name in (*texts, weights)}
    path = directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in texts.items():
            path = directory / name
            unfinished[name].write_text(json_text(content), "utf-8")
        path = directory / weights
        save_file(dict(tensors), unfinished[weights], metadata={"format": "pt"})
        # safetensors makes files that only their owner can read
        shutil.copymode(next(iter(unfinished.values())), unfinished[weights])
        for name, written in unfinished.items():
            path = directory / name
            os.replace(written, path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise CheckpointError(f"{path}: cannot be written: {reason or error}") from error
    finally:
        for left_over in unfinished.values():
            with suppress(OSError):
                left_over.unlink()
