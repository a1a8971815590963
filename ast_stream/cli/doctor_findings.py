"""What a check of `ast-stream doctor` reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        status: `failed` is something that must work and does not; `warning` may be intended.
        text: one sentence for people.
        facts: the same for programs.
    """

    name: str
    status: Status
    text: str
    facts: dict[str, Any] = field(default_factory=dict)
