"""The only import of torchaudio: its Python parts work even where its compiled part cannot load.

torchaudio's wheel is linked against CUDA. Beside a CPU-only torch the import raises OSError, beside
another CUDA version RuntimeError; the features need none of the compiled code. Import this module
before transformers, which imports torchaudio on its own.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any


@functools.cache
def import_torchaudio() -> Any:
    """Return the torchaudio package, with a stand-in for its compiled extension if need be.

    Raises:
        ImportError: torchaudio is not installed.
    """
    try:
        return importlib.import_module("torchaudio")
    except (OSError, RuntimeError) as error:
        cause = error
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]
    extension = _extension_stand_in(cause)
    sys.modules["torchaudio._extension"] = extension
    torchaudio = importlib.import_module("torchaudio")
    vars(torchaudio)["_extension"] = extension
    return torchaudio


def import_kaldi() -> Any:
    """Return `torchaudio.compliance.kaldi`."""
    import_torchaudio()
    return importlib.import_module("torchaudio.compliance.kaldi")


def has_compiled_part() -> bool:
    """Return whether torchaudio's compiled extension is loaded, or only its Python parts work."""
    return bool(import_torchaudio()._extension._IS_TORCHAUDIO_EXT_AVAILABLE)


def _extension_stand_in(cause: Exception) -> types.ModuleType:
    """Return a module with the names that torchaudio 2.11 reads from `torchaudio._extension`."""

    def fail_if_no_align(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def refuse(*_args: Any, **_kwargs: Any) -> Any:
            raise RuntimeError(
                f"{function.__name__} needs torchaudio's compiled extension"
            ) from cause

        return refuse

    module = types.ModuleType("torchaudio._extension")
    vars(module).update(
        __path__=[],
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        fail_if_no_align=fail_if_no_align,
        _check_cuda_version=lambda: None,
        _load_lib=lambda _lib: False,
    )
    return module
