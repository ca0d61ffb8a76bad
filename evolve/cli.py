"""The command line. What a command needs is imported inside it, so that help is quick."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evolve import __version__
from evolve.errors import EvolveError

if TYPE_CHECKING:
    from evolve.evolver.going_on import Start
    from evolve.evolver.run_config import RunConfig

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


@app.command(epilog="Example: evolve run configs/quickstart.yaml training.epochs=3")
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A YAML configuration.")],
    overrides: Overrides = None,
    resume: Annotated[
        Resume, typer.Option(help="auto: go on with the run in output.dir where there is one; never: refuse it.")
    ] = Resume.never,
    seeds: Annotated[
        str | None, typer.Option(help="Run each of these seeds in a folder of its own: 0..4, or 0,3,7.")
    ] = None,
) -> None:
    """Train and evolve the model that a YAML file describes."""
    with _told():
        from evolve.evolver.going_on import begin, begin_or_go_on
        from evolve.evolver.run_config import load_config
        from evolve.evolver.seeds import is_over

        told = overrides or []
        config, go_on = load_config(file, told), resume is Resume.auto
        start = partial(begin_or_go_on, file=file, overrides=told) if go_on else begin
        if seeds is None:
            _train(start(config))
        else:
            over = partial(is_over, file=file, overrides=told) if go_on else None
            _train_seeds(config, seeds, told, start, over)


@app.command(epilog="Example: evolve resume runs/quickstart training.epochs=30")
def resume(folder: RunFolder, overrides: Overrides = None, trust: Trust = False) -> None:
    """Continue a stopped run as if it had never stopped, or train a finished one longer."""
    with _told():
        from evolve.evolver.going_on import take_up

        start = take_up(folder, overrides or [], trust=trust)
        if not start.goes_on and start.evolver.world.first:
            typer.echo(f"'{folder}' has no checkpoint yet: the run starts from the beginning.")
        _train(start)


@app.command(epilog="Example: evolve validate configs/quickstart.yaml")
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A YAML configuration.")],
    overrides: Overrides = None,
) -> None:
    """Check a YAML file without running it."""
    with _told():
        from evolve.evolver.run_config import load_config

        load_config(file, overrides or [])
        typer.echo(f"{file}: valid.")


@app.command(epilog="Example: evolve inspect torchvision:resnet18 --depth 1")
def inspect(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model's name (gpt, torchvision:resnet50, timm:..., package.module:Class), a YAML configuration, or "
            "a run folder.",
        ),
    ],
    option: Annotated[
        list[str] | None, typer.Option(help="An argument of the model: num_classes=5. Repeatable.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="Shape of the example input, batch first: 2,3,224,224. Once per argument.")
    ] = None,
    depth: Annotated[int | None, typer.Option(min=0, help="Levels of the tree to show.")] = None,
    operator: Annotated[str | None, typer.Option(help="Show every site of this operator alone.")] = None,
    device: Annotated[
        str, typer.Option(help="Where to build and run it: auto, cpu, cuda, mps; meta takes no memory.")
    ] = "cpu",
    latency: Annotated[bool, typer.Option("--latency", help="Measure how long each module takes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    trust: Trust = False,
) -> None:
    """Show a model's structure and costs, what can change in it, and what cannot and why."""
    with _told():
        from rich.console import Console

        from evolve.loading import open_model
        from evolve.report.inspect import inspect_model
        from evolve.report.inspect_view import inspection_view, sites_view
        from evolve.runtime.device import resolve_device

        with redirect_stdout(sys.stderr):  # what a user's model prints is not part of the answer
            opened = open_model(target, option or [], device=resolve_device(device), trust=trust)
            with _hinted("If its input is the reason, give the shape: --shape 2,3,224,224."):
                facts = inspect_model(
                    opened.model,
                    target,
                    shapes=[_shape(text) for text in shape or []] or opened.shapes,
                    operator=operator,
                    measure=latency,
                    records=opened.records,
                )
        if as_json:
            typer.echo(json.dumps(facts.as_json(), indent=2))
        else:
            Console().print(sites_view(facts) if operator else inspection_view(facts, depth))


@app.command(epilog="Example: evolve operators --plugin my_package.my_operators")
def operators(
    plugin: Annotated[list[str] | None, typer.Option(help="Import path of a plugin to list too.")] = None,
) -> None:
    """List the mutation operators with their options and declarations."""
    with _told():
        from rich.console import Console

        from evolve.plugins import load_plugins
        from evolve.report.operators import operator_list

        load_plugins(plugin or [])
        Console().print(operator_list())


@app.command(epilog="Example: evolve report runs/quickstart")
def report(folder: RunFolder) -> None:
    """Show a run: its curves, its mutations with their reasons, its parameters over time."""
    with _told():
        from rich.console import Console

        from evolve.evolver.judged import judged
        from evolve.report.terminal import run_report

        read = judged(folder)
        Console().print(run_report(folder, read.modes, read.monitor.metric if read.monitor else None))


@app.command(epilog="Example: evolve schema > evolve.schema.json")
def schema() -> None:
    """Print the JSON schema of a configuration, for editors."""
    with _told():
        from evolve.evolver.run_config import RunConfig

        typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))


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


def _shape(text: str) -> tuple[int, ...]:
    """Reads "2,3,224,224"."""
    from evolve.config import ConfigError, Fault, Place

    sizes = [size.strip() for size in text.split(",")]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        message = f"--shape {text} is not a shape; write sizes separated by commas, batch first: 2,3,224,224."
        raise ConfigError([Fault((), Place("command line"), message)])
    return tuple(map(int, sizes))


@contextmanager
def _hinted(hint: str) -> Iterator[None]:
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


@contextmanager
def _told() -> Iterator[None]:
    """Turns what evolve raises on purpose into a message and an exit code: 2 for what was asked, 1 for the rest."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    from evolve.config import ConfigError
    from evolve.errors import DataError, MisfitError
    from evolve.report.printable import printable

    try:
        yield
    except ConfigError as error:
        typer.echo(printable(str(error)), err=True)
        raise typer.Exit(2) from None
    except EvolveError as error:
        typer.echo(printable(f"Error: {error}"), err=True)
        raise typer.Exit(2 if isinstance(error, DataError | MisfitError) else 1) from None
    except OSError as error:  # a full disk, a folder that may not be written, a file that is none
        typer.echo(printable(f"Error: {error}"), err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
