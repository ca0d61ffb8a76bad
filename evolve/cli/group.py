"""The group of all commands: it tells in one line what is wrong with a command line, and what was probably meant."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperGroup

from evolve.cli.arguments import WrongLine
from evolve.cli.suggestions import missing, unknown_command, unknown_option

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # of click, or of the one that typer brings


class Commands(TyperGroup):
    """Ends with exit code 2 where a command line is wrong; typer's own boxes tell less in more lines."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the command line."""
        if not kwargs.get("standalone_mode", True):
            return super().main(*args, **kwargs)
        given = args[0] if args else kwargs.get("args")
        words = sys.argv[1:] if given is None else list(given)
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except _UsageError as error:
            _tell(error, words)
            sys.exit(2)
        except typer.Abort:
            typer.echo("Aborted.", err=True)
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)

    def get_params(self, ctx: Any) -> Any:
        """Returns all options; those that install shell completion are told of below the help instead."""
        found = super().get_params(ctx)
        for one in found:
            one.hidden = one.hidden or one.name in ("install_completion", "show_completion")  # type: ignore[attr-defined]
        return found

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the command that the first word names."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            known = [name for name, command in self.commands.items() if not command.hidden]
            raise WrongLine(unknown_command(args, known))
        return super().resolve_command(ctx, args)


def _tell(error: Any, words: Sequence[str]) -> None:
    """Writes one line to stderr; the help where nothing was typed."""
    from evolve.report.printable import one_line

    if not words and error.ctx is not None:
        typer.echo(error.ctx.get_help(), err=True)
    else:
        typer.echo(f"Error: {one_line(_said(error, words))}", err=True)


def _said(error: Any, words: Sequence[str]) -> str:
    command = error.ctx.command if error.ctx is not None else None
    parameters = command.params if command is not None else []
    example = str(getattr(command, "epilog", None) or "evolve --help tells more.")
    kind, message = type(error).__name__, str(error.format_message()).rstrip(".")
    if kind == "NoSuchOption":
        options = [name for one in parameters for name in one.opts if name.startswith("--") and not one.hidden]
        settings = any(one.name == "overrides" for one in parameters)
        return unknown_option(error.option_name, words, [*options, "--help"], settings)
    if kind == "MissingParameter" and error.param is not None and error.param.param_type_name == "argument":
        given = [word for word in words[1:] if not word.startswith("-")]
        return missing(
            (error.param.metavar or error.param.name.upper()).rstrip("."), error.ctx.info_name, given, example
        )
    if isinstance(error, WrongLine):
        return str(error.message)
    return f"{_chosen(message)} {example}"


def _chosen(message: str) -> str:
    """Names the choice that was probably meant, where it is one of a few."""
    message = message.replace("Value error, ", "")
    found = re.search(r"'([^']*)' is not one of (.*)", message)
    close = get_close_matches(found[1], re.findall(r"'(.*?)'", found[2]), n=1) if found else []
    return f"{message}. Did you mean '{close[0]}'?" if close else f"{message}."
