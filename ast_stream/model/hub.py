"""Checkpoints from the Hugging Face Hub, through the optional package huggingface_hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ast_stream.errors import CheckpointError
from ast_stream.settings.model import HUB_ID

_SMALL_FILES = [
    "config.json",
    "preprocessor_config.json",
    "ast_stream.json",
    "frames.safetensors",
    "README.md",
]
# one after the other, until the first of a row is there; the others of it belong to it
_WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)


def is_hub_id(reference: str) -> bool:
    """Return whether `reference` has the form `organisation/name`."""
    return HUB_ID.match(reference) is not None


def download(hub_id: str, directory: Path | None = None) -> Path:
    """Return a folder with the checkpoint's files: `directory`, or the shared cache if None.

    Honours HF_HUB_OFFLINE, HF_HOME and HF_TOKEN as huggingface_hub does.

    Raises:
        CheckpointError: the extra is not installed, or the checkpoint cannot be had.
    """
    hub = _import_hub(hub_id)
    for weights in _WEIGHTS:
        try:
            folder = Path(
                hub.snapshot_download(
                    hub_id, allow_patterns=[*_SMALL_FILES, *weights], local_dir=directory
                )
            )
        except Exception as error:  # of several HTTP libraries, without a common class
            reason = str(error).split("\n")[0].strip()
            raise CheckpointError(
                f"{hub_id}: cannot be fetched from the Hugging Face Hub, and is not in its cache: "
                f"{type(error).__name__}: {reason}"
            ) from error
        if (folder / weights[0]).exists():
            return folder
    expected = " or ".join(first for first, *_ in _WEIGHTS)
    raise CheckpointError(f"{hub_id}: expected {expected} in the repository, got none")


def cached() -> Iterator[tuple[str, Path]]:
    """Yield id and folder of each repository in the shared cache that may be an AST.

    Raises:
        CheckpointError: the extra is not installed.
    """
    hub = _import_hub("the hub's cache")
    from huggingface_hub import constants

    if not Path(constants.HF_HUB_CACHE).is_dir():  # scanning brings a client for the network
        return
    try:
        repositories = hub.scan_cache_dir().repos
    except hub.errors.CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda found: str(found.repo_id)):
        for revision in repository.revisions:
            if (
                repository.repo_type == "model"
                and (revision.snapshot_path / "config.json").exists()
            ):
                yield repository.repo_id, revision.snapshot_path


def _import_hub(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            f"{what}: needs huggingface_hub; install it with `pip install 'ast-stream[hub]'`"
        ) from error
    return huggingface_hub
