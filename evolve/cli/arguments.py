"""Arguments that several commands take, looked at before anything slow is imported."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from evolve.cli.suggestions import meant, spaced_settings, wrong_file, wrong_run


class WrongLine(typer.BadParameter):
    """A command line that is none; its message says all there is to say."""

    def format_message(self) -> str:
        """Returns the message as it is."""
        return self.message


def _checked(context: typer.Context, path: Path | None, wrong: Callable[[Path, str], str | None]) -> Path | None:
    """Looks at a path; what cannot even be looked at is left to the command."""
    if path is None or context.resilient_parsing:
        return path
    try:
        found = wrong(path, context.info_name or "")
    except (OSError, ValueError):  # a name that is too long, or holds what no name may
        return path
    if found:
        raise WrongLine(found)
    return path


def check_file(context: typer.Context, path: Path | None) -> Path | None:
    """Refuses what is no YAML configuration where it is plain what was meant."""
    return _checked(context, path, wrong_file)


def check_run(context: typer.Context, path: Path | None) -> Path | None:
    """Refuses what is no run folder where it is plain what was meant."""
    return _checked(context, path, wrong_run)


def check_runs(context: typer.Context, paths: list[Path]) -> list[Path]:
    """Does so for several."""
    for path in paths:
        check_run(context, path)
    return paths


def _check_settings(context: typer.Context, settings: list[str] | None) -> list[str] | None:
    """Refuses settings with spaces around their `=`, and second files."""
    command, file = context.info_name or "", str(context.params.get("file") or context.params.get("folder") or "FILE")
    if settings and not context.resilient_parsing:
        if fixed := spaced_settings(settings):
            raise WrongLine(f"A setting is one word, without spaces. {meant(command, file, *fixed)}")
        if other := next((one for one in settings if one.endswith((".yaml", ".yml")) and "=" not in one), None):
            raise WrongLine(f"evolve {command} takes one file, and '{other}' is another. {meant(command, file)}")
    return settings


Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings that override the file's, such as training.epochs=3.", callback=_check_settings),
]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A YAML configuration.", callback=check_file)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.", callback=check_run)]
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
