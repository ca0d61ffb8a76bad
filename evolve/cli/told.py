"""What goes wrong, as messages and exit codes: no traceback for what evolve raises on purpose."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from evolve.errors import EvolveError


@contextmanager
def hinted(hint: str) -> Iterator[None]:
    """Adds what to do on the command line where a model does not run."""
    from evolve.errors import NotApplicable

    try:
        yield
    except NotApplicable as error:
        raise NotApplicable(f"{str(error).rstrip('.')}. {hint}") from error


class _Formatter(logging.Formatter):
    """Shows what is logged of a file, without letting it steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        from evolve.report.printable import printable

        return printable(super().format(record))


class _ToStderr(logging.Handler):
    """Writes to whatever stderr is by then: a live display puts something there that keeps the lines above it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
        except (OSError, ValueError):  # it is closed
            self.handleError(record)


@contextmanager
def told(rest: int = 1) -> Iterator[None]:
    """Turns what evolve raises on purpose into a message and an exit code: 2 for what was asked, else `rest`."""
    handler = _ToStderr()
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    from evolve.config import ConfigError
    from evolve.errors import DataError, MisfitError, UnknownNameError
    from evolve.report.printable import printable

    try:
        yield
    except ConfigError as error:
        typer.echo(printable(str(error)), err=True)
        raise typer.Exit(2) from None
    except EvolveError as error:
        typer.echo(printable(f"Error: {error}"), err=True)
        raise typer.Exit(2 if isinstance(error, DataError | MisfitError | UnknownNameError) else rest) from None
    except OSError as error:  # a full disk, a folder that may not be written, a file that is none
        typer.echo(printable(f"Error: {error}"), err=True)
        raise typer.Exit(1) from None
