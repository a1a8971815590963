"""Outputs are found by their type: a new one is its settings and its module."""

from __future__ import annotations

from importlib import import_module
from typing import get_args

from ast_stream.settings.forward import ForwardOutput


def test_each_type_of_output_has_a_module_of_its_name() -> None:
    union, _ = get_args(ForwardOutput)
    types = [get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(union)]
    assert sorted(types) == ["kafka", "mqtt", "nats"]
    for name in types:
        assert callable(import_module(f"ast_stream.forward.to_{name}").OUTPUT)
