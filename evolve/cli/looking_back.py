"""Commands that look back on runs: diff, explain, replay."""

from __future__ import annotations

import json
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from evolve.cli.arguments import RunFolder, Trust
from evolve.cli.told import told

if TYPE_CHECKING:
    from evolve.evolver.rewound import Rewound

commands = typer.Typer()

Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]
_MODEL = (
    "A run folder (its best epoch), RUN@last, RUN@3 (the end of an epoch), RUN@base (before all mutations), the folder "
    "of a checkpoint, a YAML file, or a model's name."
)
_LAYERS = 40  # that are shown unless all are asked for


@commands.command(epilog="Example: evolve diff runs/quickstart@base runs/quickstart")
def diff(
    one: Annotated[str, typer.Argument(metavar="A", help=_MODEL)],
    two: Annotated[str, typer.Argument(metavar="B", help="Likewise.")],
    every: Annotated[bool, typer.Option("--all", help="Show every layer that differs.")] = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Compare two models: layers added, removed and changed, parameters, FLOPs, and how far the outputs are apart."""
    with told():
        from rich.console import Console

        from evolve.loading import open_model, probe_batch
        from evolve.report.diff import Shown, diff_models
        from evolve.report.diff_view import diff_view

        with redirect_stdout(sys.stderr):  # what a user's model prints is not part of the answer
            opened = [open_model(target, trust=trust, which="best") for target in (one, two)]
            source = next((found for found in opened if found.checkpoint), None)
            source = source or next((found for found in opened if found.shapes), opened[0])
            batch, where = probe_batch(source, trust=trust)
            shown = [
                Shown(
                    found.model, name, found.what, f"{name} has weights that were drawn just now" if found.drawn else ""
                )
                for found, name in zip(opened, (one, two), strict=True)
            ]
            found = diff_models(shown[0], shown[1], batch, where)
        if as_json:
            typer.echo(json.dumps(found.as_json(), indent=2))
        else:
            Console().print(diff_view(found, None if every else _LAYERS))


class _Numbered(TyperCommand):
    """Takes negative numbers for arguments: no option is called so."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the words of a command line."""
        numbers = [word for word in args if re.fullmatch(r"-\d+", word)]
        rest = [word for word in args if word not in numbers]
        return super().parse_args(ctx, [*rest, "--", *numbers] if numbers and "--" not in args else args)


@commands.command(cls=_Numbered, epilog="Example: evolve explain runs/quickstart 2")
def explain(
    folder: RunFolder,
    number: Annotated[
        int, typer.Argument(metavar="N", help="Number of the mutation, as in `evolve report`; negative from the end.")
    ],
    as_json: Json = False,
) -> None:
    """Show why a mutation was made: what triggered it, what else was considered, what it was to bring and what it did.

    Only what the run wrote down is shown: nothing is trained, loaded or worked out anew.
    """
    with told():
        from rich.console import Console

        from evolve.evolver.judged import judged
        from evolve.loading import of_search
        from evolve.report.explain import explain as explained
        from evolve.report.explain_view import explanation_view

        run = of_search(folder)
        monitor = judged(run).monitor
        why = explained(run, number, monitor.metric if monitor else None)
        if as_json:
            typer.echo(json.dumps(why.as_json(), indent=2))
        else:
            Console().print(explanation_view(why))


@commands.command(epilog="Example: evolve replay runs/quickstart --until 2 --output runs/after_2")
def replay(
    folder: RunFolder,
    until: Annotated[
        str,
        typer.Option(metavar="N|base", help="The last mutation to make, as numbered in `evolve report`; base: none."),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the model as a run folder that `evolve.load` takes.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Show, or write, the model as it was after mutation N.

    Where a checkpoint was kept between that mutation and the next one, the newest of them gives the trained weights,
    and `evolve resume` can go on from what is written. Otherwise the architecture is rebuilt and its weights are drawn
    anew: the answer says so. A run keeps more checkpoints with a larger output.keep.
    """
    with told():
        from evolve.evolver.rewound import rewind, write_rewound
        from evolve.loading import of_search
        from evolve.report.printable import printable

        if until != "base" and not until.isdecimal():
            raise typer.BadParameter(f"{until!r} is not the number of a mutation, or base.", param_hint="--until")
        run = of_search(folder)
        found = rewind(run, None if until == "base" else int(until))
        lines = _said(run, found)
        if output is not None:
            write_rewound(found, output, trust=trust)
            more = f" To go on from there: evolve resume {output}" if found.trained else ""
            lines.append(f"Written to {output}. To load it: evolve.load({str(output)!r}).{more}")
        else:
            lines.append("Nothing was written: give --output DIR for that.")
        typer.echo(printable("\n".join(lines)))


def _said(run: Path, found: Rewound) -> list[str]:
    """What the model was after its last mutation, and where its weights come from."""
    applied = found.applied
    after = _after(found.until)
    size = "" if found.parameters is None else f", {found.parameters:,} parameters"
    lines = [f"{run} {after}: {len(applied)} applied{size}"]
    lines += [f"  {record.index}: {record.operator} at '{record.site}': {record.message}" for record in applied]
    if found.trained is not None:
        content = found.trained.content
        where = found.trained.path.relative_to(run)
        lines.append(f"Weights: trained, of {where} (epoch {content.epoch}, step {content.step:,}).")
    else:
        lines.append(
            f"Weights: drawn anew, not trained: no checkpoint was kept from then. The run has some from "
            f"{' and '.join(map(_after, found.kept))}; it keeps more with a larger output.keep."
        )
    return lines


def _after(number: int | None) -> str:
    return "before all mutations" if number is None else f"after mutation {number}"
