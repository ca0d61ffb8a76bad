"""Arguments that several commands take."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings that override the file's, such as training.epochs=3.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Import the code that the run names: its model, data, loss and plugins."),
]


class Resume(str, Enum):
    """Whether `evolve run` goes on with the run that its folder holds."""

    never = "never"
    auto = "auto"


def shape_of(text: str) -> tuple[int, ...]:
    """Reads "2,3,224,224"."""
    from evolve.config import ConfigError, Fault, Place

    sizes = [size.strip() for size in text.split(",")]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        message = f"--shape {text} is not a shape; write sizes separated by commas, batch first: 2,3,224,224."
        raise ConfigError([Fault((), Place("command line"), message)])
    return tuple(map(int, sizes))
