"""Lets the GPU of a real worker fail, at the edge where the hardware would say so.

Python imports this at the start of each process that has this folder on its path. A worker whose
environment names a file in `CHAOS_GPU` then raises, wherever it runs the model, the error that is
in the file: "memory" or "access" for as long as it is there, with "once" before it a single time.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_PATCHED = "ast_stream.model.runners"
_PATH = os.environ.get("CHAOS_GPU", "")


def _fail_if_asked() -> None:
    try:
        with open(_PATH) as file:
            words = file.read().split()
    except OSError:  # it is not there, or there are no descriptors left
        return
    if "once" in words:
        os.unlink(_PATH)
    import torch

    if "memory" in words:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.44 "
            "GiB of which 3.12 MiB is free."
        )
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _failing(run: Callable[..., Any]) -> Callable[..., Any]:
    def run_or_fail(*args: Any) -> Any:
        _fail_if_asked()
        return run(*args)

    return run_or_fail


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _PATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        loader = spec.loader
        assert loader is not None
        run_module = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run_module(module)
            methods = ("logits", "frame_logits")
            runners = [
                each for each in vars(module).values() if all(hasattr(each, at) for at in methods)
            ]
            assert runners, f"{name} has no runner"
            for runner in runners:
                for method in methods:
                    setattr(runner, method, _failing(getattr(runner, method)))

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _PATH and "worker" in sys.orig_argv:
    sys.meta_path.insert(0, _Finder())
