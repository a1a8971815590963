"""What sections of the configuration share: their base class, kinds of values, an MQTT broker.

Every number has both bounds: what is converted to samples, hops or nanoseconds later must fit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

MAX_SECONDS = 604_800.0  # a week: no duration of detection is longer
MAX_WAIT_S = 3600.0  # for an answer
MAX_PATH_BYTES = 4095
MAX_NAME_BYTES = 255
FOLDER = "folder"  # key of the validation context: where relative paths begin
MISFITS = "misfits"  # key of the validation context: a list of what does not fit each other
LEFT_OUT = "left_out"  # key of the validation context: paths of what was wrong, and is not there

Misfit = tuple[tuple[str | int, ...], str]
"""Path from the top of the configuration, and a sentence."""

PositiveSeconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
Patience = Annotated[float, Field(gt=0, le=MAX_WAIT_S)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


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


def unless_left_out(
    misfits: Iterable[Misfit], info: ValidationInfo, *read: tuple[str | int, ...]
) -> Iterable[Misfit]:
    """Return the misfits, none of them if something was left out that they follow from.

    It is in the file and wrong, and has a sentence already: that it is missing is not true.

    Args:
        read: paths of what the misfits follow from; "*" is any name or number.
    """
    left_out = (info.context or {}).get(LEFT_OUT, ())
    is_left_out = any(_is_at_or_in(path, gone) for path in read for gone in left_out)
    return () if is_left_out else misfits


def _is_at_or_in(path: tuple[str | int, ...], gone: tuple[str | int, ...]) -> bool:
    return len(gone) <= len(path) and all(
        part in ("*", other) for part, other in zip(path, gone, strict=False)
    )


def refuse_misfits(misfits: Sequence[Misfit], info: ValidationInfo) -> None:
    """Collect the misfits if the validation context asks for it, else raise an error.

    Raises:
        ValueError: nobody collects.
    """
    if misfits and (info.context is None or MISFITS not in info.context):
        raise ValueError("; ".join(text for _, text in misfits))
    if misfits and info.context is not None:
        info.context[MISFITS].extend(misfits)


def _refuse_port_alone(value: Any) -> Any:
    text = str(value).removeprefix(":")
    if not isinstance(value, bool) and text.isascii() and text.isdigit():
        raise ValueError(
            f"expected host:port, e.g. 127.0.0.1:{text} for this machine alone, got {value!r}"
        )
    return value


FilePath = Annotated[str, AfterValidator(_resolve)]
HostPort = Annotated[
    str,
    BeforeValidator(_refuse_port_alone),
    Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^:\s\[\]]+):[0-9]{1,5}$"),
]
"""Where to listen; IPv6 addresses in brackets."""
"""A path; a relative one begins at the folder of the configuration file."""


class MqttBroker(Section):
    """Address of a broker, and who we are there."""

    host: str = Field(min_length=1, description="of the broker")
    port: int = Field(
        default=1883, ge=1, le=65535, description="of the broker; with `tls` usually 8883"
    )
    username: str | None = Field(default=None, description="null: no login")
    password_file: FilePath | None = Field(default=None, description="file with the password")
    password_env: VariableName | None = Field(
        default=None,
        description="environment variable with the password, instead of `password_file`",
    )
    tls: bool = Field(default=False, description="encrypt the connection")
    ca_file: FilePath | None = Field(default=None, description="null: the system's authorities")

    @property
    def place(self) -> str:
        """Where the broker is, as people write it."""
        return f"{self.host}:{self.port}"

    @property
    def described(self) -> str:
        """The broker, and whether others can read what goes there."""
        return f"the MQTT broker {self.place}, {'with tls' if self.tls else 'not encrypted'}"
