"""Commands that look and change nothing: inspect, operators, report."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evolve.cli.arguments import Trust, check_runs, shape_of
from evolve.cli.told import hinted, told

if TYPE_CHECKING:
    from evolve.report.run_data import RunData

commands = typer.Typer()


@commands.command(epilog="Example: evolve inspect torchvision:resnet18 --depth 1")
def inspect(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model's name (gpt, torchvision:resnet50, timm:..., package.module:Class), a YAML configuration, "
            "a run folder, RUN@best, or RUN@3 (the end of an epoch).",
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
    with told():
        from rich.console import Console

        from evolve.loading import open_model
        from evolve.report.inspect import inspect_model
        from evolve.report.inspect_view import inspection_view, sites_view
        from evolve.runtime.device import resolve_device

        with redirect_stdout(sys.stderr):  # what a user's model prints is not part of the answer
            opened = open_model(target, option or [], device=resolve_device(device), trust=trust)
            with hinted("If its input is the reason, give the shape: --shape 2,3,224,224."):
                facts = inspect_model(
                    opened.model,
                    target,
                    shapes=[shape_of(text) for text in shape or []] or opened.shapes,
                    operator=operator,
                    measure=latency,
                    records=opened.records,
                )
        if as_json:
            typer.echo(json.dumps(facts.as_json(), indent=2))
        else:
            Console().print(sites_view(facts) if operator else inspection_view(facts, depth))


@commands.command(epilog="Example: evolve operators widen")
def operators(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Those to show; all if none.")] = None,
    plugin: Annotated[list[str] | None, typer.Option(help="Import path of a plugin to list too.")] = None,
) -> None:
    """List the mutation operators, or show some, with their options and declarations."""
    with told():
        from rich.console import Console

        from evolve.plugins import load_plugins
        from evolve.report.operators import operator_list

        load_plugins(plugin or [])
        Console().print(operator_list(names or ()))


@commands.command(epilog="Example: evolve report runs/quickstart --html report.html")
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of runs and searches, or a folder with such folders in it.",
            callback=check_runs,
        ),
    ],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page that needs nothing but this file.")
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the curves; needs matplotlib.")] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="The same, as a vector graphic.")] = None,
) -> None:
    """Show runs and searches: curves, mutations with their reasons, the front, families, costs over time."""
    with told():
        from rich.console import Console

        from evolve.report.run_data import RunData
        from evolve.report.search_report import search_report
        from evolve.report.several import several_report
        from evolve.report.terminal import run_report

        subjects = _read(folders)
        if html is not None:
            from evolve.report.page.page import report_page

            _write(html, report_page(subjects))
        for picture, ending in ((png, ".png"), (svg, ".svg")):
            if picture is not None:
                _draw(subjects, picture if picture.suffix == ending else Path(f"{picture}{ending}"))
        if (html, png, svg) != (None, None, None):
            return
        if len(subjects) > 1:
            Console().print(several_report(subjects))
            return
        only = subjects[0]
        Console().print(run_report(only) if isinstance(only, RunData) else search_report(only))


def _read(folders: list[Path]) -> list[RunData | Path]:
    """Reads the runs in folders; of a search its folder stands for it."""
    from evolve.evolver.judged import judged
    from evolve.report.run_data import is_run, read_run
    from evolve.report.subjects import subjects_in

    subjects: list[RunData | Path] = []
    for folder in subjects_in(folders):
        if is_run(folder):
            read = judged(folder)
            subjects.append(read_run(folder, read.modes, read.monitor.metric if read.monitor else None))
        else:
            subjects.append(folder)
    return subjects


def _draw(subjects: list[RunData | Path], file: Path) -> None:
    from evolve.errors import EvolveError
    from evolve.report.picture import draw_curves
    from evolve.report.run_data import RunData

    runs = [one for one in subjects if isinstance(one, RunData)]
    if not runs:
        raise EvolveError("Curves are of runs. For a search: --html, which shows its front and its families.")
    draw_curves(runs, file)
    _tell_written(file)


def _write(file: Path, text: str) -> None:
    from evolve.errors import EvolveError

    try:
        file.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise EvolveError(f"'{file}' cannot be written: {error}.") from error
    _tell_written(file)


def _tell_written(file: Path) -> None:
    from evolve.report.printable import printable

    typer.echo(printable(f"Wrote {file} ({file.stat().st_size / 1000:,.0f} kB)."))
