"""Writing a calibrated checkpoint: weights stay as they are, readers see all of it or nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

import torch

from ast_stream.errors import CheckpointError, UsageError
from ast_stream.model.checkpoint import Checkpoint, save_checkpoint
from ast_stream.model.description import BUNDLED, folder_of
from ast_stream.model.metadata import write_metadata
from ast_stream.runtime.files import replacing_folder


def check_target(reference: str, out: Path | None, is_in_place: bool) -> None:
    """Refuse a target that cannot be written, before hours of listening.

    Raises:
        UsageError: both or an impossible target.
    """
    if out is not None and is_in_place:
        raise UsageError("calibrate: expected --out or --in-place, got both")
    if is_in_place:
        folder = Path(reference).expanduser()
        if reference == BUNDLED or not folder.is_dir():
            raise UsageError(
                f"--in-place: expected the directory of a checkpoint, got {reference!r}; use --out"
            )
        if not os.access(folder, os.W_OK):
            raise UsageError(f"--in-place: {folder} cannot be written")
    if out is not None:
        _check_out(out)


def _check_out(out: Path) -> None:
    whole = out.resolve()
    if whole.is_file() or (whole.is_dir() and any(whole.iterdir())):
        raise UsageError(f"--out: expected a new or empty folder, got {out}, which is there")
    if whole == Path.cwd() or whole.is_mount():
        raise UsageError(
            f"--out: expected a folder that can be replaced, got {out}; name a new one"
        )
    above = next(one for one in whole.parents if one.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError(f"--out: {above} cannot be written")


def write_in_place(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the ast_stream.json of a checkpoint's folder at once.

    Raises:
        CheckpointError: it cannot be written; the old one is whole.
    """
    write_metadata(folder, checkpoint.metadata)


def write_copy(reference: str, checkpoint: Checkpoint, out: Path) -> None:
    """Write the checkpoint that `reference` names to `out`, with its new metadata.

    Raises:
        CheckpointError: it cannot be written; nothing is left behind.
    """
    out = out.resolve()  # a link stays, and what it leads to is replaced
    source = folder_of(reference)
    try:
        with replacing_folder(out) as unfinished:
            if source is None:
                precision: Literal["fp16", "fp32"] = "fp16" if _fits_fp16(checkpoint) else "fp32"
                save_checkpoint(unfinished, checkpoint, precision)
            else:
                for file in sorted(source.iterdir()):
                    if file.is_file() and not file.name.startswith("."):
                        shutil.copyfile(file, unfinished / file.name)
                write_metadata(unfinished, checkpoint.metadata)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror}") from error


def _fits_fp16(checkpoint: Checkpoint) -> bool:
    """Tell whether half precision holds every weight exactly."""
    return all(torch.equal(one.half().float(), one) for one in checkpoint.state_dict.values())
