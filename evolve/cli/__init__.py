"""The command line. What a command needs is imported inside it, so that help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from evolve import __version__
from evolve.cli import exporting, looking, looking_back, runs, searching

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"evolve {__version__}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Your PyTorch model changes its own architecture while it trains, and keeps what it has learned."""


for commands in (runs.commands, searching.commands, looking.commands, looking_back.commands, exporting.commands):
    app.registered_commands += commands.registered_commands
