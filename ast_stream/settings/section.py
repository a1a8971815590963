"""What every section of the configuration is made of: rules for all, and kinds of values.

Every number has both bounds: what is converted to samples, hops or nanoseconds later must fit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

MAX_SECONDS = 604_800.0  # a week: no duration of detection is longer
MAX_WAIT_S = 3600.0  # for an answer
MAX_PATH_BYTES = 4095
MAX_NAME_BYTES = 255
FOLDER = "folder"  # key of the validation context: where relative paths begin
MISFITS = "misfits"  # key of the validation context: a list of what does not fit each other

Misfit = tuple[tuple[str | int, ...], str]
"""Path from the top of the configuration, and a sentence."""

PositiveSeconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
Patience = Annotated[float, Field(gt=0, le=MAX_WAIT_S)]


class Section(BaseModel):
    """Rules of every section: exact types, no unknown keys, no NaN, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def resolved(path: str, context: Any) -> str:
    """Return `path` beside the configuration file if it is relative, and there is such a file.

    Raises:
        ValueError: no file can have this name, or there is no such home folder.
    """
    if not path:
        raise ValueError("expected a path, got an empty text")
    if "://" in path:
        raise ValueError("expected a path, got a URL")
    if "\0" in path:
        raise ValueError("expected a path without NUL characters")
    try:
        parts = os.fsencode(path).split(b"/")
        whole = Path(path).expanduser()
    except (UnicodeEncodeError, RuntimeError) as error:
        raise ValueError(f"expected a path, got one that cannot be used: {error}") from None
    if sum(map(len, parts)) + len(parts) > MAX_PATH_BYTES or max(map(len, parts)) > MAX_NAME_BYTES:
        raise ValueError(
            f"expected a path of at most {MAX_PATH_BYTES} bytes with names of at most "
            f"{MAX_NAME_BYTES}, got {len(os.fsencode(path))} bytes"
        )
    folder = (context or {}).get(FOLDER)
    return path if folder is None else str(Path(folder) / whole)


def _resolve(path: str, info: ValidationInfo) -> str:
    return resolved(path, info.context)


def refuse_misfits(misfits: Sequence[Misfit], info: ValidationInfo) -> None:
    """Note what does not fit each other where somebody collects that, else refuse it.

    Raises:
        ValueError: nobody collects.
    """
    if misfits and (info.context is None or MISFITS not in info.context):
        raise ValueError("; ".join(text for _, text in misfits))
    if misfits and info.context is not None:
        info.context[MISFITS].extend(misfits)


FilePath = Annotated[str, AfterValidator(_resolve)]
"""A path; a relative one begins at the folder of the configuration file."""
