"""What an audit log holds, for tests."""

from __future__ import annotations

from pathlib import Path

from ast_stream.privacy.audit import Access, decode_access


def lines(folder: Path) -> list[Access]:
    """Return the accesses in the audit log of a process."""
    return [
        decode_access(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]
