"""The model that a centre has chosen for this box: links in the folder of models.

`settings.load` reads these links with every configuration, so that all processes and commands use
the model in force. The configuration file itself is never written.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from ast_stream.settings.schema import Settings

CURRENT, PREVIOUS = "current", "previous"
_PREFIX = "sha256-"
_FOLDER = re.compile(r"sha256-[0-9a-f]{64}\Z")


def models_folder(settings: Settings) -> Path:
    """Return where models that the centre has chosen are."""
    return Path(settings.state_dir) / "models"


def folder_name(content: str) -> str:
    """Return the name of the folder of a model.

    >>> folder_name("sha256:" + 64 * "0")[:12]
    'sha256-00000'
    """
    return content.replace("sha256:", _PREFIX)


def hash_of_folder(name: str) -> str | None:
    """Return the content hash that a folder is named by; None: it is no model."""
    return f"sha256:{name.removeprefix(_PREFIX)}" if _FOLDER.match(name) else None


def chosen_model(settings: Settings, link: str = CURRENT) -> Path | None:
    """Return the folder of the model that the centre has chosen.

    None: nothing is chosen or it is not there, or the box does not follow; then the model is the
    one that the configuration names.
    """
    if not settings.fleet.models.follow:
        return None
    with suppress(OSError):
        name = os.readlink(models_folder(settings) / link)
        folder = models_folder(settings) / name
        if hash_of_folder(name) and folder.is_dir():
            return folder
    return None


def with_chosen_model(settings: Settings) -> Settings:
    """Return the settings with the checkpoint that is in force."""
    folder = chosen_model(settings)
    return settings if folder is None else with_checkpoint(settings, str(folder))


def with_checkpoint(settings: Settings, checkpoint: str) -> Settings:
    """Return the settings with another checkpoint."""
    model = settings.model.model_copy(update={"checkpoint": checkpoint})
    return settings.model_copy(update={"model": model})
