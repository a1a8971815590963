"""The boxes of a fleet as seen from its centre: well, with problems, or missing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ast_stream.errors import UsageError
from ast_stream.fleet.rollout import MIN_SILENT_S, SILENT_REPORTS, KnownBox
from ast_stream.labels import is_stream_name, one_line
from ast_stream.runtime.files import DamagedFileError, read_bounded, reason_of

BoxState = Literal["missing", "silent", "offline", "unreadable", "unwell", "well"]
"""The state of a box as seen from the centre, the worst first.

* missing: it is expected but has never reported
* silent: its next report is overdue
* offline: the box itself, or its broker, says that it is offline
* unreadable: its report cannot be read
* unwell: it reports problems
* well: it reports none
"""
_ORDER: tuple[BoxState, ...] = ("missing", "silent", "offline", "unreadable", "unwell", "well")
_MAX_EXPECTED_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class FoundBox:
    """One box.

    Attributes:
        box: None: it has never reported.
        is_offline: its MQTT last will says so.
        max_age_s: age of the last report from which the box counts as silent; None: several times
            the box's own interval.
    """

    key: str
    box: KnownBox | None
    is_offline: bool = False
    max_age_s: float | None = None

    @property
    def site(self) -> str:
        """The part of the key before the dot."""
        return self.key.partition(".")[0]

    @property
    def name(self) -> str:
        """The part of the key after the dot."""
        return self.key.partition(".")[2]

    @property
    def state(self) -> BoxState:
        """Its state."""
        if self.is_offline:
            return "offline"
        if self.box is None:
            return "missing"
        if self._is_silent(self.box):
            return "silent"
        if self.box.report is None:
            return "unreadable"
        return "unwell" if self.box.report.problems else "well"

    @property
    def problems(self) -> list[str]:
        """Its problems, one sentence each."""
        match self.state:
            case "missing":
                return ["it has never reported"]
            case "offline":
                return ["it has stopped, or has lost its connection"]
            case "unreadable":
                assert self.box is not None
                return [f"what it sent is no report: {self.box.error}"]
        assert self.box is not None
        own = [] if self.box.report is None else list(self.box.report.problems)
        if self.state == "silent" and self.box.age_s is not None:
            return [f"it has not reported for {duration(self.box.age_s)}", *own]
        return own

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        report = None if self.box is None or self.box.report is None else self.box.report.to_json()
        age_s = None if self.box is None else self.box.age_s
        return {
            "site": self.site,
            "box": self.name,
            "state": self.state,
            "age_s": None if age_s is None else round(age_s, 1),
            "problems": self.problems,
            "report": report,
        }

    def _is_silent(self, box: KnownBox) -> bool:
        if box.age_s is None:
            return False
        if self.max_age_s is not None:
            return box.age_s > self.max_age_s
        every_s = 0.0 if box.report is None else box.report.every_s
        return box.age_s > max(MIN_SILENT_S, SILENT_REPORTS * every_s)


def overview(
    boxes: Mapping[str, KnownBox],
    *,
    offline: Collection[str] = (),
    expected: Iterable[str] = (),
    sites: Collection[str] = (),
    max_age_s: float | None = None,
) -> list[FoundBox]:
    """Return all boxes, those that need attention first.

    Args:
        boxes: by key.
        offline: keys of the boxes that their broker reports as offline.
        expected: keys of the boxes that should report.
        sites: only boxes of these sites; empty: all.
        max_age_s: see `FoundBox`.
    """
    keys = dict.fromkeys([*boxes, *offline, *expected])
    found = [
        FoundBox(key, boxes.get(key), key in offline, max_age_s)
        for key in keys
        if not sites or key.partition(".")[0] in sites
    ]
    return sorted(found, key=lambda box: (_ORDER.index(box.state), box.key))


def read_expected(path: Path) -> list[str]:
    """Return the keys of the boxes in a file, one `site/box` per line; `#` starts a comment.

    Raises:
        UsageError: the file cannot be read, or a line is not the name of a box.
    """
    try:
        text = read_bounded(path, _MAX_EXPECTED_BYTES).decode()
    except (OSError, DamagedFileError, UnicodeDecodeError) as error:
        reason = reason_of(error)
        raise UsageError(f"--expect: cannot read {path}: {reason}") from error
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if name := line.partition("#")[0].strip():
            try:
                found.append(box_key(name))
            except ValueError as error:
                raise UsageError(f"--expect: {path}:{number}: {error}") from error
    return found


def box_key(name: str) -> str:
    """Return the key of a box from its name, `site/box` or `site.box`.

    Raises:
        ValueError: it is not the name of a box.
    """
    parts = name.replace("/", ".").split(".")
    if len(parts) != 2 or not all(map(is_stream_name, parts)):
        raise ValueError(f"expected a box as site/box, got {one_line(name)[:100]!r}")
    return ".".join(parts)


def duration(seconds: float) -> str:
    """Return a duration in the largest unit that fits."""
    for unit_s, unit in ((86_400, "d"), (3_600, "h")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
