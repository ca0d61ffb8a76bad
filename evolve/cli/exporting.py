"""The command that takes a model out of evolve: export."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from evolve.cli.arguments import RunFolder, Trust, shape_of
from evolve.cli.told import hinted, told

commands = typer.Typer()


class Format(str, Enum):
    """What `--to` takes."""

    state_dict = "state_dict"
    safetensors = "safetensors"
    python = "python"
    torch_export = "torch_export"
    onnx = "onnx"
    huggingface = "huggingface"


@commands.command(epilog="Example: evolve export runs/quickstart --to python --output exported")
def export(
    folder: RunFolder,
    to: Annotated[Format, typer.Option(metavar="FORMAT", help=f"{', '.join(Format.__members__)}: see docs/export.md.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder that does not exist yet.")],
    which: Annotated[
        str, typer.Option(help="The checkpoint: best, last, or the number of an epoch that was kept.")
    ] = "best",
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Shape of an input to trace and compare on, batch first: 2,3,224,224. Once per argument."),
    ] = None,
    trust: Trust = False,
) -> None:
    """Write an evolved model so that it does without evolve: as source, weights or a graph."""
    with told(2):
        from evolve.export.api import export_model

        with redirect_stdout(sys.stderr), hinted("If its input is the reason, give the shape: --shape 2,3,224,224."):
            exported = export_model(
                folder,
                to=to.value,
                output=output,
                which=_which(which),
                shapes=[shape_of(text) for text in shape or []],
                trust=trust,
            )
        typer.echo(f"Wrote epoch {exported.epoch} of {folder} to {output}: {', '.join(exported.files)}.")
        if to is Format.python:
            typer.echo(f"How to load it, and what it needs: {output / 'README.md'}.")
        if exported.max_abs_diff is not None:
            typer.echo(f"max|Δ| = {exported.max_abs_diff:.3g} of its outputs against the evolved model's.")
        elif to.value not in ("state_dict", "safetensors"):
            typer.echo("Its outputs were not compared: no input is known that the model takes. Give one with --shape.")


def _which(text: str) -> Literal["best", "last"] | int:
    """Reads "best", "last", "3" or "epoch 3"."""
    number = text.removeprefix("epoch").strip(" -=")
    return int(number) if number.isdecimal() else cast("Literal['best', 'last']", text)  # what else it is, is told
