"""`python -m evolve`: the command line."""

from __future__ import annotations

from evolve.cli import app

app(prog_name="evolve")
