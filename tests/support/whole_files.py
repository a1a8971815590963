"""Files that a running process reads when it wants to: it must not see half of one."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Put a text in the place of a file in one step, as careful editors do."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text)
    draft.rename(path)
