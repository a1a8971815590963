"""Which machine boots for the tests: a container, a virtual machine, or what this machine can have.

`make test` boots a container or skips; `make machines` chooses by MACHINE=container, vm or any.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import container
import pytest
import virtual_machine
from machine import Machine
from service_box import Box
from virtual_mic import SINK, virtual_mic

CHOSEN = os.environ.get("MACHINE")
_HOUR_S = 3600
_KINDS = {
    "container": (container.Container, container.missing_parts, container.obstacle),
    "vm": (
        virtual_machine.VirtualMachine,
        virtual_machine.missing_parts,
        virtual_machine.obstacle,
    ),
}

when_asked = pytest.mark.skipif(
    CHOSEN is None, reason="takes minutes: make machines MACHINE=container, vm or any"
)


def limit_s(seconds: float) -> pytest.MarkDecorator:
    """Return the limit of a test that takes `seconds` in a container, with the boot before it."""
    return pytest.mark.timeout(seconds if CHOSEN in (None, "container") else 3 * _HOUR_S)


def _machine_class() -> type[Machine]:
    """Return what can be booted here; skip where nothing can. In CI a missing program fails."""
    reasons = []
    for name in ("container", "vm") if CHOSEN == "any" else (CHOSEN or "container",):
        kind, missing_parts, obstacle = _KINDS[name]
        missing = missing_parts()
        if missing is not None and os.environ.get("CI") == "true":
            pytest.fail(missing)
        reason = obstacle() or missing
        if reason is None:
            return kind
        reasons.append(f"{name}: {reason}")
    if CHOSEN is None:
        reasons.append("a virtual machine: make machines MACHINE=vm")
    pytest.skip("; ".join(reasons))


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Give a machine on which the how-to on services was followed."""
    machine = _machine_class()(tmp_path_factory.mktemp("box"))
    with virtual_mic() as mic:
        mic.folder.chmod(0o755)
        mic.pactl("load-module", "module-sine", f"sink={SINK}", "frequency=60")  # a room hums
        try:
            machine.build()
            machine.lend_microphone(mic.folder)
            machine.boot()
            running = Box(machine)
            running.follow_how_to(0)
            running.receive_hooks()
            yield running
        finally:
            machine.close()
