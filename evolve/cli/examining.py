"""The command that looks at the environment: doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evolve.cli.told import told

commands = typer.Typer()

_STYLES = {"ok": "green", "missing": "yellow", "broken": "bold red"}


@commands.command(epilog="Example: evolve doctor")
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False) -> None:
    """Check that evolve works here: versions, devices, extras, plugins, disk, a small mutation. Exit code 1 if not."""
    with told():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        from evolve.report.doctor import as_json as values
        from evolve.report.doctor import examine
        from evolve.report.printable import one_line

        findings = examine(Path.cwd())
        if as_json:
            typer.echo(json.dumps(values(findings), indent=2))
        else:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
            for finding in findings:
                state = Text(finding.state, style=_STYLES[finding.state])
                table.add_row(state, Text(finding.name), Text(one_line(finding.text)))
            Console().print(table)
        broken = [finding.name for finding in findings if finding.state == "broken"]
        if broken:
            typer.echo(f"Broken: {', '.join(broken)}.", err=True)
            raise typer.Exit(1)
