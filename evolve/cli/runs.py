"""Commands that train: run, resume; and what is said of their configuration: validate, schema."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from evolve.cli.arguments import File, Overrides, Resume, RunFolder, Trust
from evolve.cli.told import told

if TYPE_CHECKING:
    from evolve.evolver.going_on import Start
    from evolve.evolver.run_config import RunConfig

commands = typer.Typer()


@commands.command(epilog="Example: evolve run configs/quickstart.yaml training.epochs=3")
def run(
    file: File,
    overrides: Overrides = None,
    resume: Annotated[
        Resume, typer.Option(help="auto: go on with the run in output.dir where there is one; never: refuse it.")
    ] = Resume.never,
    seeds: Annotated[
        str | None, typer.Option(help="Run each of these seeds in a folder of its own: 0..4, or 0,3,7.")
    ] = None,
) -> None:
    """Train and evolve the model that a YAML file describes."""
    with told():
        from evolve.evolver.going_on import begin, begin_or_go_on
        from evolve.evolver.run_config import load_config
        from evolve.evolver.seeds import is_over

        asked = overrides or []
        config, go_on = load_config(file, asked), resume is Resume.auto
        start = partial(begin_or_go_on, file=file, overrides=asked) if go_on else begin
        if seeds is None:
            _train(start(config))
        else:
            over = partial(is_over, file=file, overrides=asked) if go_on else None
            _train_seeds(config, seeds, asked, start, over)


@commands.command(epilog="Example: evolve resume runs/quickstart training.epochs=30")
def resume(folder: RunFolder, overrides: Overrides = None, trust: Trust = False) -> None:
    """Continue a stopped run or search as if it had never stopped, or a finished one for longer."""
    with told():
        from evolve.cli.searching import resume_search
        from evolve.evolver.going_on import take_up
        from evolve.population.folder import is_search

        if is_search(folder):
            resume_search(folder, overrides or [], trust=trust)
            return
        start = take_up(folder, overrides or [], trust=trust)
        if not start.goes_on and start.evolver.world.first:
            typer.echo(f"'{folder}' has no checkpoint yet: the run starts from the beginning.")
        _train(start)


@commands.command(epilog="Example: evolve validate configs/quickstart.yaml")
def validate(
    file: File,
    overrides: Overrides = None,
) -> None:
    """Check a YAML file without running it: keys, names and types. Model and data meet when it runs."""
    with told():
        from evolve.config import load_yaml
        from evolve.errors import did_you_mean
        from evolve.evolver.run_config import RunConfig, load_config
        from evolve.population.config import load_search

        raw, _, _ = load_yaml(file)
        searches = any(did_you_mean(key, ["search"]) for key in raw if key not in RunConfig.model_fields)
        load = load_search if searches else load_config
        load(file, overrides or [])
        typer.echo(f"{file}: valid. Whether data and model are there and fit is seen when it runs.")


@commands.command(epilog="Example: evolve schema > evolve.schema.json")
def schema(
    search: Annotated[bool, typer.Option("--search", help="Of a search, instead of a run.")] = False,
) -> None:
    """Print the JSON schema of a configuration, for editors."""
    with told():
        from evolve.evolver.run_config import RunConfig
        from evolve.population.config import SearchConfig

        typer.echo(json.dumps((SearchConfig if search else RunConfig).model_json_schema(), indent=2))


def _train(start: Start) -> None:
    """Runs an Evolver and says how it ended."""
    from evolve.evolver.ending import closing_lines, opening_lines

    first = start.evolver.world.first
    if first:
        typer.echo("\n".join(opening_lines(start)))
    else:  # of several devices the first one says it all
        logging.getLogger("evolve").setLevel(logging.ERROR)
    result = start.evolver.run()
    if first:
        typer.echo("\n".join(closing_lines(start.evolver, result)))
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)


def _train_seeds(
    config: RunConfig,
    asked: str,
    overrides: list[str],
    start: Callable[[RunConfig], Start],
    over: Callable[[RunConfig], bool] | None,
) -> None:
    """Runs one seed after the other, and says what came of them all."""
    from evolve.distributed.joining import speaks
    from evolve.errors import NonFiniteLossError, NonFiniteModelError
    from evolve.evolver.seeds import check_seeds, of_seed, parse_seeds, summarize, summary_lines

    seeds, failed = parse_seeds(asked), {}
    check_seeds(config, seeds, overrides, go_on=over is not None)
    first = speaks()
    for number, seed in enumerate(seeds, 1):
        one = of_seed(config, seed)
        if first:
            typer.echo(f"\nSeed {seed} ({number} of {len(seeds)})")
        if over is not None and over(one):
            if first:
                typer.echo("It is finished already.")
            continue
        try:
            _train(start(one))
        except (NonFiniteLossError, NonFiniteModelError) as error:  # of this seed; the others may do
            failed[seed] = str(error)
            if first:
                typer.echo(f"Error: {error}", err=True)
    if first:
        typer.echo("\n".join(summary_lines(summarize(config, seeds, failed))))
    if failed:
        raise typer.Exit(1)
