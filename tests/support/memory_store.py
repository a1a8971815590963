"""The buckets of a fleet in memory, and the kills of whoever writes to them."""

from __future__ import annotations

from ast_stream.fleet.buckets import ALL, PLAN, BucketEntry
from ast_stream.messages.fleet import BoxReport
from ast_stream.messages.rollout import WantedModel
from ast_stream.runtime.nats import NatsError


class KilledError(BaseException):
    """Whoever writes ends here, as by a kill."""


class MemoryStore:
    """What `FleetStore` is, without servers.

    Attributes:
        objects: manifests and pieces, by name.
        writes_left: so many writes more succeed, then the writer is killed; None: all do.
        is_away: nobody can be reached.
    """

    def __init__(self) -> None:
        self.values: dict[str, tuple[bytes, int]] = {}
        self.boxes: dict[str, tuple[BoxReport, float]] = {}
        self.objects: dict[str, bytes] = {}
        self.writes_left: int | None = None
        self.is_away = False
        self._revision = 0

    def get(self, key: str) -> BucketEntry | None:
        self._reach()
        found = self.values.get(key)
        return None if found is None else BucketEntry(key, *found)

    def put(self, key: str, value: bytes, revision: int | None = None) -> int:
        self._reach()
        there = self.values.get(key)
        if revision is not None and revision != (0 if there is None else there[1]):
            raise NatsError(f"{key} was changed by somebody else")
        self._write()
        self._revision += 1
        self.values[key] = (value, self._revision)
        return self._revision

    def delete(self, key: str) -> None:
        self._reach()
        self._write()
        self.values.pop(key, None)

    def reports(self) -> list[BucketEntry]:
        self._reach()
        return [
            BucketEntry(key, report.encode(), 1, age_s)
            for key, (report, age_s) in self.boxes.items()
        ]

    def all_wanted(self) -> list[BucketEntry]:
        self._reach()
        return [BucketEntry(key, *value) for key, value in self.values.items() if key != PLAN]

    def wanted(self, box: str) -> WantedModel | None:
        self._reach()
        found = self.values.get(box) or self.values.get(ALL)
        return None if found is None else WantedModel.decode(found[0])

    def manifest(self, content: str) -> bytes:
        return self._object(content)

    def piece(self, digest: str) -> bytes:
        return self._object(digest)

    def _object(self, name: str) -> bytes:
        self._reach()
        if name not in self.objects:
            raise NatsError(f"there is no object {name}")
        return self.objects[name]

    def _reach(self) -> None:
        if self.is_away:
            raise NatsError("the centre is away")

    def _write(self) -> None:
        if self.writes_left == 0:
            raise KilledError
        if self.writes_left is not None:
            self.writes_left -= 1
