"""Commands that look and change nothing: inspect, operators, report."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from evolve.cli.arguments import RunFolder, Trust
from evolve.cli.told import hinted, told

commands = typer.Typer()


@commands.command(epilog="Example: evolve inspect torchvision:resnet18 --depth 1")
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
                    shapes=[_shape(text) for text in shape or []] or opened.shapes,
                    operator=operator,
                    measure=latency,
                    records=opened.records,
                )
        if as_json:
            typer.echo(json.dumps(facts.as_json(), indent=2))
        else:
            Console().print(sites_view(facts) if operator else inspection_view(facts, depth))


@commands.command(epilog="Example: evolve operators --plugin my_package.my_operators")
def operators(
    plugin: Annotated[list[str] | None, typer.Option(help="Import path of a plugin to list too.")] = None,
) -> None:
    """List the mutation operators with their options and declarations."""
    with told():
        from rich.console import Console

        from evolve.plugins import load_plugins
        from evolve.report.operators import operator_list

        load_plugins(plugin or [])
        Console().print(operator_list())


@commands.command(epilog="Example: evolve report runs/quickstart")
def report(folder: RunFolder) -> None:
    """Show a run: its curves, its mutations with their reasons, its parameters over time."""
    with told():
        from rich.console import Console

        from evolve.evolver.judged import judged
        from evolve.population.folder import is_search
        from evolve.report.terminal import run_report

        if is_search(folder):
            from evolve.report.search_report import search_report

            Console().print(search_report(folder))
            return
        read = judged(folder)
        Console().print(run_report(folder, read.modes, read.monitor.metric if read.monitor else None))


def _shape(text: str) -> tuple[int, ...]:
    """Reads "2,3,224,224"."""
    from evolve.config import ConfigError, Fault, Place

    sizes = [size.strip() for size in text.split(",")]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        message = f"--shape {text} is not a shape; write sizes separated by commas, batch first: 2,3,224,224."
        raise ConfigError([Fault((), Place("command line"), message)])
    return tuple(map(int, sizes))
