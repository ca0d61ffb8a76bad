"""The command line. What a command needs is imported inside it, so that help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from evolve import __version__
from evolve.cli import examining, exporting, looking, looking_back, making, runs, searching
from evolve.cli.group import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    epilog="To complete words in your shell: evolve --install-completion. Example: evolve run configs/quickstart.yaml",
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


for part in (making, runs, searching, looking, looking_back, exporting, examining):
    app.registered_commands += part.commands.registered_commands
