"""What a disk may hold after a power cut, as POSIX permits it, and no file system promises more.

What was synced is there. Of what was written since then any part may be: each block of 512 or 4096
bytes by itself, as zeros where only the new size got through, in any order and across files. A name
is there once its folder was synced, whatever was synced of its file; a rename happened or did not,
and one to another folder may leave both names, never none.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from recording import Operation

Loss = Literal["everything", "nothing", "some"]
"""Of what is not synced: everything, as a disk that is never idle; nothing, as a kill; some."""


@dataclass
class _Node:
    """A file or a folder, on the disk and as the running program sees it."""

    is_folder: bool = False
    content: bytearray = field(default_factory=bytearray)  # synced
    writes: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: cut there
    names: dict[str, _Node] = field(default_factory=dict)  # synced
    changes: list[dict[str, _Node | None]] = field(default_factory=list)
    present: dict[str, _Node] = field(default_factory=dict)  # names as the program sees them

    def change(self, names: dict[str, _Node | None]) -> None:
        """Add and remove names, all or none of them."""
        self.changes.append(names)
        _update(self.present, names)

    def sync(self) -> None:
        for write in self.writes:
            _write(self.content, *write)
        for names in self.changes:
            _update(self.names, names)
        self.writes, self.changes = [], []


@dataclass(frozen=True, eq=False)
class _Move:
    """A file that got a name in another folder: it has one of the two."""

    node: _Node
    old: str
    target: _Node


class Disk:
    """A disk that operations are applied to, one by one."""

    def __init__(self) -> None:
        self._root = _Node(is_folder=True)
        self._by_inode: dict[int, _Node] = {}
        self._moves: list[_Move] = []  # to other folders that were not synced since

    def apply(self, operation: Operation) -> None:
        """Do what the program did."""
        paths = [PurePosixPath(path) for path in operation.paths]
        match operation.kind:
            case "D" if paths[0] == PurePosixPath("."):
                self._by_inode[operation.inode] = self._root
            case "C" | "D":
                node = self._by_inode[operation.inode] = _Node(operation.kind == "D")
                self._folder(paths[0]).change({paths[0].name: node})
            case "W":
                self._by_inode[operation.inode].writes.append((operation.offset, operation.data))
            case "T":
                self._by_inode[operation.inode].writes.append((operation.offset, None))
            case "R":
                old, new = paths
                folder, target = self._folder(old), self._folder(new)
                node = folder.present[old.name]
                if folder is target:
                    folder.change({old.name: None, new.name: node})
                else:
                    self._moves.append(_Move(node, str(old), target))
                    target.change({new.name: node})
                    folder.change({old.name: None})
            case "U":
                folder = self._folder(paths[0])
                gone = folder.present.get(paths[0].name)  # of sockets only the end is recorded
                self._moves = [move for move in self._moves if move.node is not gone]
                folder.change({paths[0].name: None})
            case "S":
                node = self._by_inode[operation.inode]
                node.sync()
                self._moves = [move for move in self._moves if move.target is not node]

    def after_cut(self, loss: Loss, seed: int) -> dict[str, bytes | None]:
        """Return the content of each file, and None for each folder, by path."""
        found: dict[str, bytes | None] = {}
        choices, placed = random.Random(seed), set[int]()
        self._collect(self._root, "", loss, choices, found, placed)
        for move in self._moves:
            if id(move.node) not in placed:
                found[move.old] = _content(move.node, loss, choices)
        return found

    def _collect(
        self,
        folder: _Node,
        prefix: str,
        loss: Loss,
        choices: random.Random,
        found: dict[str, bytes | None],
        placed: set[int],
    ) -> None:
        names = dict(folder.names)
        for change in _some(folder.changes, loss, choices):
            _update(names, change)
        for name, node in sorted(names.items()):
            if node.is_folder:
                found[prefix + name] = None
                self._collect(node, f"{prefix}{name}/", loss, choices, found, placed)
            else:
                placed.add(id(node))
                found[prefix + name] = _content(node, loss, choices)

    def _folder(self, path: PurePosixPath) -> _Node:
        node = self._root
        for name in path.parts[:-1]:
            node = node.present[name]
        return node


def put(files: dict[str, bytes | None], folder: Path) -> None:
    """Write the files into an empty folder."""
    for path, content in files.items():
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


def _content(node: _Node, loss: Loss, choices: random.Random) -> bytes:
    content = bytearray(node.content)
    if loss == "some" and choices.random() < 0.2:
        loss = "everything"  # of this file
    elif loss == "some" and choices.random() < 0.2:
        loss = "nothing"
    if loss != "some":
        for write in node.writes if loss == "nothing" else []:
            _write(content, *write)
        return bytes(content)
    block = choices.choice((512, 4096))
    whole = bytearray(node.content)
    for offset, data in node.writes:
        _write(whole, offset, data)
        if data is None:
            if choices.random() < 0.5:
                _write(content, offset, None)
            continue
        for start in range(offset - offset % block, offset + len(data), block):
            first, last = max(start, offset), min(start + block, offset + len(data))
            if choices.random() < 0.5:
                _write(content, first, data[first - offset : last - offset])
    if len(whole) > len(content) and choices.random() < 0.5:
        content.extend(bytes(len(whole) - len(content)))  # the size got through, the data did not
    return bytes(content)


def _some(
    changes: list[dict[str, _Node | None]], loss: Loss, choices: random.Random
) -> list[dict[str, _Node | None]]:
    """Return the changes of a folder that got through: the first ones, or any."""
    if loss != "some":
        return changes if loss == "nothing" else []
    if choices.random() < 0.7:
        return changes[: choices.randint(0, len(changes))]
    return [change for change in changes if choices.random() < 0.5]


def _update(names: dict[str, _Node], changes: dict[str, _Node | None]) -> None:
    for name, node in changes.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _write(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        content.extend(bytes(max(0, offset - len(content))))
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data
