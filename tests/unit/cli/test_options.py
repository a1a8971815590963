"""Groups of options: fields of a dataclass on the command line, one object in the command."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

import typer
from typer.testing import CliRunner

from ast_stream.cli.options import with_option_groups
from ast_stream.cli.train import RecipeOptions
from ast_stream.training.config import Overrides


@dataclass(frozen=True)
class ToneOptions:
    """A tone."""

    hertz: Annotated[float, typer.Option("--pitch", min=20)] = 440.0
    names: Annotated[list[str] | None, typer.Option("--name")] = None


@with_option_groups
def play(times: int, *, tone: ToneOptions, loud: bool = False) -> None:
    """Say what would be played."""
    typer.echo(f"{times} x {tone}, {loud}")


APP = typer.Typer()
APP.command()(play)


def test_options_of_a_group_arrive_as_one_object() -> None:
    args = ["3", "--pitch", "880", "--name", "a", "--name", "b", "--loud"]
    assert CliRunner().invoke(APP, args).stdout == (
        "3 x ToneOptions(hertz=880.0, names=['a', 'b']), True\n"
    )


def test_options_of_a_group_have_their_defaults_and_limits() -> None:
    assert (
        CliRunner().invoke(APP, ["1"]).stdout == "1 x ToneOptions(hertz=440.0, names=None), False\n"
    )
    refused = CliRunner().invoke(APP, ["1", "--pitch", "5"])
    assert refused.exit_code == 2
    assert "--pitch" in refused.stderr


def test_every_option_of_a_recipe_is_one_that_a_training_takes() -> None:
    names = {field.name for field in fields(RecipeOptions)} - {"preset", "start"}
    assert names <= set(Overrides.__annotations__)
