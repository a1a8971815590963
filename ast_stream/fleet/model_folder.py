"""The models of a box that follows roll-outs: a folder for each, named by its hash, and two links.

`current` is the model in use, `previous` the one to roll back to; a missing link means the model
that the configuration names. Links are replaced atomically and synced, so that after any kill or
power cut the box has a complete model.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ast_stream.errors import AstStreamError, WireError
from ast_stream.messages.rollout import (
    MAX_MANIFEST_BYTES,
    PIECE_BYTES,
    CheckpointManifest,
    ManifestFile,
)
from ast_stream.runtime.files import (
    DamagedFileError,
    make_folder,
    make_way,
    read_bounded,
    reason_of,
    replace_file,
    sync,
)
from ast_stream.settings.chosen_model import CURRENT, PREVIOUS, folder_name, hash_of_folder

MANIFEST = "manifest.json"
KEPT = 2  # old models, for rolling back
_INCOMING = "incoming"
_OF_A_CHECKPOINT = re.compile(
    r"(config|preprocessor_config|ast_stream)\.json|frames\.safetensors|README\.md"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|[A-Za-z0-9_-]+\.csv"
)
_MODE = 0o750
_FILE_MODE = 0o640

logger = logging.getLogger(__name__)


class DamagedModelError(AstStreamError):
    """The files of a model differ from its manifest."""


class ModelFolder:
    """The models in `state_dir/models`; only one process may change them.

    Args:
        path: the folder; created at the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def current(self) -> str | None:
        """Content hash of the model in use; None: the model that the configuration names."""
        return self._linked(CURRENT)

    @property
    def previous(self) -> str | None:
        """Content hash of the model to roll back to; None: the one that the configuration names."""
        return self._linked(PREVIOUS)

    def path_of(self, content: str) -> Path:
        """Return the folder of a model, whether or not it exists."""
        return self.path / folder_name(content)

    def holds(self, content: str) -> bool:
        """Return whether a model was installed completely."""
        return self.path_of(content).is_dir()

    def incoming(self, content: str) -> Path:
        """Return the folder for downloading a model; other unfinished downloads are deleted."""
        place = self.path / _INCOMING / folder_name(content)
        make_folder(self.path, _MODE)
        make_folder(place.parent, _MODE)
        for other in place.parent.iterdir():
            if other != place:
                _remove(other)
        make_folder(place, _MODE)
        return place

    def accept(self, manifest: CheckpointManifest) -> Path:
        """Install a downloaded model, after checking every file again.

        Raises:
            DamagedModelError: a file differs from the manifest.
            OSError: the disk cannot be written.
        """
        place, target = self.incoming(manifest.content), self.path_of(manifest.content)
        replace_file(place / MANIFEST, manifest.encode(), is_synced=True, mode=_FILE_MODE)
        check_files(place, manifest)
        sync(place)
        _remove(target)
        os.replace(place, target)
        sync(self.path)
        return target

    def manifest(self, content: str) -> CheckpointManifest:
        """Return the manifest of an installed model.

        Raises:
            DamagedModelError: it cannot be read.
        """
        try:
            body = read_bounded(self.path_of(content) / MANIFEST, MAX_MANIFEST_BYTES)
            return CheckpointManifest.decode(body, content)
        except (OSError, DamagedFileError, WireError) as error:
            reason = reason_of(error)
            raise DamagedModelError(f"{self.path_of(content)}: {reason}") from error

    def check(self, content: str) -> CheckpointManifest:
        """Return the manifest of an installed model, after checking every file.

        Raises:
            DamagedModelError: the files differ from the manifest.
        """
        manifest = self.manifest(content)
        check_files(self.path_of(content), manifest)
        return manifest

    def activate(self, content: str | None) -> None:
        """Switch to a model, and remember the previous one; None: the one of the configuration.

        Raises:
            OSError: the disk cannot be written; the previous model stays in use.
        """
        before = self.current
        if before != content:
            make_folder(self.path, _MODE)
            self._link(PREVIOUS, before)
            self._link(CURRENT, content)

    def restore(self, content: str | None) -> None:
        """Switch back to an earlier model; `previous` stays as it is.

        Raises:
            OSError: the disk cannot be written.
        """
        self._link(CURRENT, content)

    def purge(self) -> None:
        """Delete old models, except the newest `KEPT` besides the one in use."""
        needed = {self.current, self.previous}
        found = [path for path in self._models() if hash_of_folder(path.name) not in needed]
        room = KEPT - (self.previous is not None)
        for path in sorted(found, key=_age, reverse=True)[max(0, room) :]:
            _remove(path)

    def forget(self, content: str) -> None:
        """Delete a model that cannot be used, and its unfinished download."""
        if content not in (self.current, self.previous):
            _remove(self.path_of(content))
            _remove(self.path / _INCOMING / folder_name(content))

    def _models(self) -> Iterator[Path]:
        with suppress(OSError):
            yield from (path for path in self.path.iterdir() if hash_of_folder(path.name))

    def _linked(self, name: str) -> str | None:
        try:
            return hash_of_folder(os.readlink(self.path / name))
        except OSError:
            return None

    def _link(self, name: str, content: str | None) -> None:
        link = self.path / name
        if content is None:
            link.unlink(missing_ok=True)
        else:
            unfinished = link.with_name(f".{name}.unfinished")
            make_way(unfinished)
            os.symlink(folder_name(content), unfinished)
            os.replace(unfinished, link)
        if self.path.is_dir():
            sync(self.path)


def describe_files(folder: Path, model: str) -> CheckpointManifest:
    """Return the manifest of a checkpoint in a folder; files of no checkpoint are left out.

    Args:
        model: hash of the checkpoint.

    Raises:
        OSError: a file cannot be read.
        ValueError: it has no safetensors weights, or is too large.
    """
    files = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.is_file() and _OF_A_CHECKPOINT.fullmatch(path.name):
            digest, pieces = _digests(path)
            size = path.stat().st_size
            files.append(
                ManifestFile(name=path.name, size=size, digest=digest, pieces=list(pieces))
            )
    if not any(file.name.startswith("model") for file in files):
        raise ValueError("expected weights as model.safetensors, got none")
    return CheckpointManifest(model=model, files=files)


def check_files(folder: Path, manifest: CheckpointManifest) -> None:
    """Compare every file with the manifest.

    Raises:
        DamagedModelError: a file is missing or different, or is not in the manifest.
        OSError: a file cannot be read.
    """
    expected = {file.name for file in manifest.files} | {MANIFEST}
    if others := sorted({path.name for path in folder.iterdir()} - expected):
        raise DamagedModelError(f"{folder}: expected nothing but the checkpoint, got {others[0]}")
    for file in manifest.files:
        path = folder / file.name
        if path.is_symlink() or not path.is_file():
            raise DamagedModelError(f"{path}: expected a file, got none")
        if path.stat().st_size != file.size or _digests(path)[0] != file.digest:
            raise DamagedModelError(f"{path}: is not what the manifest of the checkpoint says")


def write_piece(folder: Path, file: ManifestFile, index: int, piece: bytes) -> None:
    """Write a piece of a file, synced, if its hash agrees with the manifest.

    Raises:
        DamagedModelError: it does not.
        OSError: the disk cannot be written.
    """
    if hashlib.sha256(piece).hexdigest() != file.pieces[index]:
        raise DamagedModelError(f"{file.name}: piece {index} is damaged")
    fd = os.open(
        folder / file.name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE
    )
    try:
        written = 0
        while written < len(piece):
            written += os.pwrite(fd, piece[written:], index * PIECE_BYTES + written)
        os.fsync(fd)
    finally:
        os.close(fd)


def missing_pieces(folder: Path, file: ManifestFile) -> list[int]:
    """Return the indices of the pieces of a file that are missing or damaged."""
    try:
        with (folder / file.name).open("rb") as opened:
            return [
                index
                for index, digest in enumerate(file.pieces)
                if hashlib.sha256(opened.read(PIECE_BYTES)).hexdigest() != digest
            ]
    except OSError:
        return list(range(len(file.pieces)))


def _digests(path: Path) -> tuple[str, list[str]]:
    """Return the SHA-256 of a file, and of each of its pieces."""
    whole, pieces = hashlib.sha256(), []
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            whole.update(piece)
            pieces.append(hashlib.sha256(piece).hexdigest())
    return whole.hexdigest(), pieces


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
