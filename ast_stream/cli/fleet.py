"""`ast-stream fleet`: the status of all boxes, model checks, roll-outs and pools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.cli.fleet_pool import pool
from ast_stream.cli.fleet_rollout import app as rollout_app
from ast_stream.cli.fleet_status import status
from ast_stream.cli.options import config_option
from ast_stream.cli.output import say
from ast_stream.errors import CheckpointError, ConfigError
from ast_stream.settings.chosen_model import with_checkpoint
from ast_stream.settings.load import LoadedSettings, examine_file
from ast_stream.settings.workers import loaded_of_worker, worker_names

app = typer.Typer(no_args_is_help=True, epilog="Example: ast-stream fleet status")
app.command("status")(status)
app.command("pool")(pool)
app.add_typer(rollout_app, name="rollout", help="Let boxes use another model, one first.")


@app.command("check")
def check(
    checkpoint: Annotated[str, typer.Argument(help="The checkpoint, as `model.checkpoint`.")],
    config: Annotated[Path, config_option("The configuration of the box.")],
    model: Annotated[
        str | None, typer.Option(metavar="HASH", help="The hash that the model must have.")
    ] = None,
) -> None:
    """Say whether a box could use a checkpoint: exit 0 if so, else say why not.

    The model is loaded on the CPU, passes its self-check, and is held against the classes, windows,
    rules, verifiers and the cascade of the configuration. A box that follows the centre does the
    same before it uses a model.

    Example: ast-stream fleet check runs/barks/checkpoint -c configs/default.yaml
    """
    loaded, problems = examine_file(config)
    if loaded is None or problems:
        raise ConfigError(problems)
    loaded = replace(loaded, settings=with_checkpoint(loaded.settings, checkpoint))
    found = check_checkpoint(loaded, model)
    say(f"{checkpoint}: fits {config}, model {found}")


def check_checkpoint(loaded: LoadedSettings, expected: str | None) -> str:
    """Return the hash of a checkpoint that fits a configuration in every way.

    Raises:
        AstStreamError: it does not.
    """
    # here: what these import takes seconds, and `status` needs none of it
    import torch

    from ast_stream.cli.check_config import describe_checkpoint
    from ast_stream.detect.cascade import load_cascade
    from ast_stream.detect.verifiers import load_verifiers
    from ast_stream.model.selfcheck import self_check
    from ast_stream.model.tagger import load_tagger
    from ast_stream.settings.check import check_against_model, check_cascade

    torch.set_num_threads(1)  # beside workers that must not wait
    settings = loaded.settings
    model = settings.model.model_copy(
        update={"device": "cpu", "precision": "fp32", "attention": "math"}
    )
    tagger = load_tagger(model.checkpoint, "cpu", "fp32", "math", model.window_s)
    if expected is not None and tagger.hash != expected:
        raise CheckpointError(
            f"{model.checkpoint}: expected the model {expected}, got {tagger.hash}"
        )
    describe_checkpoint(loaded)
    for name in worker_names(settings):
        own = loaded_of_worker(loaded, name)
        check_against_model(
            own,
            tagger.labels,
            hop_s=model.hop_s,
            window_s=tagger.window_s,
            frame_s=tagger.frame_s,
        )
    load_verifiers(model, tagger.hash, tagger.labels)
    cascade = load_cascade(model, lambda n_windows, seconds: None)
    if cascade is not None:
        small = cascade.tagger
        check_cascade(loaded, tagger.labels, small.labels, small.window_s)
    self_check(tagger)
    return str(tagger.hash)
