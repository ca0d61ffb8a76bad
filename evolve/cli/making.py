"""The command that makes a project to begin with: init."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from evolve.cli.arguments import WrongLine
from evolve.cli.told import told

commands = typer.Typer()

_FILES = ("config.yaml", "own_parts.py", "test_own_parts.py")


@commands.command(epilog="Example: evolve init my_project")
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to write; it is made if it is not there.")
    ] = Path(),
) -> None:
    """Write a project to begin with: a commented configuration, and a model, data and an operator of your own."""
    there = [name for name in _FILES if (folder / name).exists()]
    if there:
        raise WrongLine(
            f"'{folder}' has {', '.join(there)} already, and nothing is written over. Name a new folder, such as "
            "'evolve init my_project'."
        )
    with told():
        folder.mkdir(parents=True, exist_ok=True)
        skeleton = files("evolve.cli").joinpath("skeleton")
        for name in _FILES:
            source = skeleton.joinpath(name if name.endswith(".yaml") else f"{name}.txt")
            (folder / name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8", newline="\n")
        typer.echo("\n".join(_lines(folder)))


def _lines(folder: Path) -> list[str]:
    go = [] if folder == Path() else [f"  cd {folder}"]
    return [
        f"Wrote {', '.join(_FILES)} to {folder.resolve()}.",
        *go,
        "  evolve validate config.yaml",
        "  evolve run config.yaml",
        "  evolve report runs/first",
        "  python -m pytest test_own_parts.py  # the operator keeps the contract; needs pytest",
    ]
