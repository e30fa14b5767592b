"""`autolrs pfn train`: fit the network of the curve model `pfn` anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

USER_ERROR: Final = 1
RESUMABLE: Final = 3

app = typer.Typer(help="The network of the curve model `pfn`.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `train` a command of its own: a single one would be called by the group's name."""


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="YAML file: a path, or small.yaml or large.yaml, which are shipped.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and the weights.")] = Path("pfn"),
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop, resumable, after this time.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
) -> None:
    """Train the network on draws from its prior.

    One thread makes the same weights of the same config and library versions, interrupted or not.
    """
    import torch

    from autolrs.curves.pfn.training import Config
    from autolrs.curves.pfn.training import train as run
    from autolrs.errors import AutoLRSError

    torch.set_num_threads(1)  # the order of sums, and with it the weights, depends on it
    try:
        weights = run(Config.load(config), out, minutes=minutes, resume=resume, log=_log)
    except AutoLRSError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USER_ERROR) from None
    if weights is None:
        raise typer.Exit(RESUMABLE)
    typer.echo(weights)


def _log(line: str) -> None:
    typer.echo(line, err=True)
