"""The command that searches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evolve.cli.arguments import Overrides, Resume, WrongLine, check_file
from evolve.cli.suggestions import missing
from evolve.cli.told import told

if TYPE_CHECKING:
    from evolve.population.evolving import Search
    from evolve.population.starting import Parts

commands = typer.Typer()


@commands.command(epilog="Example: evolve search configs/search_quickstart.yaml search.budget.evaluations=40")
def search(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="A YAML configuration with a section `search`.", callback=check_file),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Resume, typer.Option(help="auto: go on with the search in output.dir where there is one; never: refuse it.")
    ] = Resume.never,
    status: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Show how the search in this folder stands, and do nothing else.")
    ] = None,
) -> None:
    """Evolve a population of architectures; children inherit their parents' weights."""
    with told():
        if status is not None:
            show_status(status)
            return
        if file is None:
            raise WrongLine(missing("FILE", "search", overrides or [], "Or --status RUN shows how one stands."))
        from evolve.population.config import load_search
        from evolve.population.folder import is_search
        from evolve.population.saved_search import check_changes, saved_search
        from evolve.population.starting import begin, go_on, parts_of

        config = load_search(file, overrides or [])
        folder = Path(config.output.dir)
        if resume is Resume.auto and is_search(folder):
            check_changes(saved_search(folder, trust=True), config, str(file))
            parts = parts_of(config)
            run_search(parts, go_on(parts, folder))
        else:
            parts = parts_of(config)
            run_search(parts, begin(parts, folder, overwrite=config.output.overwrite))


def resume_search(folder: Path, overrides: list[str], *, trust: bool) -> None:
    """Goes on with the search in a folder."""
    from evolve.population.saved_search import saved_search
    from evolve.population.starting import go_on, parts_of

    parts = parts_of(saved_search(folder, overrides, trust=trust))
    run_search(parts, go_on(parts, folder))


def run_search(parts: Parts, running: Search) -> None:
    """Runs a search and says how it goes and how it ended."""
    from evolve.population.results import finish
    from evolve.report.printable import printable
    from evolve.report.search_ending import closing_lines, opening_lines
    from evolve.report.search_progress import SearchProgress

    typer.echo(printable("\n".join(opening_lines(running))))
    with SearchProgress(running) as progress:
        running.callbacks = [*running.callbacks, progress]
        finished = running.run()
    result = finish(running, parts.config, finished)
    typer.echo(printable("\n".join(closing_lines(running, result))))
    if finished and not result.best:
        raise typer.Exit(1)
    if running.signal is not None:
        raise typer.Exit(128 + running.signal)


def show_status(folder: Path) -> None:
    """Prints how the search in a folder stands."""
    from rich.console import Console

    from evolve.report.search_status import search_status

    Console().print(search_status(folder))
