"""Where messages are kept: a PostgreSQL table, Parquet files, or both. Each message once."""

from __future__ import annotations

import fcntl
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import astuple
from datetime import UTC, date, timedelta
from pathlib import Path
from typing import Protocol

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from messages import Row, refused
from psycopg.errors import ProgramLimitExceeded

HERE = Path(__file__).parent
Key = tuple[str, str]
"""Source and id of a message."""

Day = date | None
"""None: of messages that have no time."""


class Store(Protocol):
    """Keeps messages."""

    def write(self, rows: list[Row]) -> int:
        """Keep rows for good, and return how many were new; all are safe when this returns."""

    def close(self) -> None:
        """Let go of it."""


class Postgres:
    """The table `messages` of schema.sql, which is made if it is not there."""

    def __init__(self, address: str) -> None:
        self._db = psycopg.connect(address, autocommit=True)
        with self._db.transaction():  # one of several consumers at a time
            self._db.execute("SELECT pg_advisory_xact_lock(7251820)")
            self._db.execute((HERE / "schema.sql").read_bytes())

    def write(self, rows: list[Row]) -> int:
        """Insert what is not there, in one transaction."""
        try:
            return self._insert(rows)
        except (psycopg.DataError, ProgramLimitExceeded):
            return sum(map(self._insert_or_refuse, rows))

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def _insert(self, rows: list[Row]) -> int:
        with self._db.transaction(), self._db.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO messages (source, id, type, subject, time, data)"
                " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [astuple(row) for row in sorted(rows, key=_key)],  # sorted: no deadlock
            )
            return cursor.rowcount

    def _insert_or_refuse(self, row: Row) -> int:
        """Insert a row, or what the database says of it: one row holds up no other."""
        try:
            return self._insert([row])
        except (psycopg.DataError, ProgramLimitExceeded) as error:
            return self._insert([refused(row.source, row.data.encode(), str(error))])


class Parquet:
    """Files below `folder/day=2026-11-20/`, one for each day and write; for one consumer.

    A file is written beside its place and renamed, so that readers see whole files. What comes
    again is known by the keys in the files of its day and the days around it, read once.
    """

    SCHEMA = pa.schema(
        [
            *((name, pa.string()) for name in ("source", "id", "type", "subject")),
            ("time", pa.timestamp("us", tz="UTC")),
            ("data", pa.string()),
        ]
    )

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise OSError(f"another consumer writes to {folder}") from error
        self._keys: dict[Day, set[Key]] = {}
        for unfinished in folder.glob("day=*/*.tmp"):
            unfinished.unlink()

    def write(self, rows: list[Row]) -> int:
        """Write those rows that no file has."""
        new: dict[Day, dict[Key, Row]] = defaultdict(dict)
        for row in rows:
            day = None if row.time is None else row.time.astimezone(UTC).date()
            # a message that a box derives again may say a slightly other time, so around midnight
            near = [None] if day is None else [day + timedelta(days=by) for by in (-1, 0, 1)]
            if not any(_key(row) in self._known(day) or _key(row) in new[day] for day in near):
                new[day][_key(row)] = row
        for day, of_day in new.items():
            if of_day:
                self._write(day, of_day.values())
                self._keys[day].update(of_day)
        self._forget()
        return sum(map(len, new.values()))

    def close(self) -> None:
        """Let another consumer write here."""
        os.close(self._lock)

    def _known(self, day: Day) -> set[Key]:
        if day not in self._keys:
            files = self._place(day).glob("*.parquet")
            tables = [pq.read_table(file, columns=["source", "id"]) for file in sorted(files)]
            pairs = (zip(*table.to_pydict().values(), strict=True) for table in tables)
            self._keys[day] = {key for of_file in pairs for key in of_file}
        return self._keys[day]

    def _write(self, day: Day, rows: Iterable[Row]) -> None:
        place = self._place(day)
        place.mkdir(exist_ok=True)
        number = 1 + max((int(path.stem) for path in place.glob("*.parquet")), default=0)
        path = place / f"{number:06}.parquet"
        unfinished = path.with_suffix(".tmp")
        table = pa.Table.from_pylist([vars(row) for row in rows], self.SCHEMA)
        pq.write_table(table, unfinished, compression="zstd")
        _sync(unfinished)
        os.replace(unfinished, path)
        _sync(place)

    def _forget(self) -> None:
        """Keep the keys of a few days in memory: those that were asked for last."""
        for day in list(self._keys)[:-30]:
            del self._keys[day]

    def _place(self, day: Day) -> Path:
        return self._folder / f"day={'__HIVE_DEFAULT_PARTITION__' if day is None else day}"


def _key(row: Row) -> Key:
    return row.source, row.id


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)
