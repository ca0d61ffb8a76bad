"""The page as a whole: everything in one file, and nothing of a run folder is more than text in it."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps  # writes "<", ">", "&" and quotes as escapes
from markupsafe import Markup

from evolve import __version__
from evolve.report.page.comparison import comparison
from evolve.report.page.detail import Detail
from evolve.report.page.run_part import run_part
from evolve.report.page.search_part import search_part
from evolve.report.printable import printable
from evolve.report.run_data import RunData

MOST_BYTES = 1_000_000
_HERE = Path(__file__).parent


def report_page(subjects: Sequence[RunData | Path]) -> str:
    """Returns a page of runs and searches: HTML that asks for no other file and runs no script but its own.

    Where there is too much for a megabyte, it shows less: first of the attempts, candidates and individuals.

    Args:
        subjects: Runs as they were read, and folders of searches.

    Raises:
        EvolveError: If a folder holds no search.
    """
    detail = Detail()
    while True:
        page = _rendered(subjects, detail)
        if len(page.encode()) <= MOST_BYTES or detail == detail.less():
            return page
        detail = detail.less()


def _rendered(subjects: Sequence[RunData | Path], detail: Detail) -> str:
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    parts = [run_part(one, detail) if isinstance(one, RunData) else search_part(one, detail) for one in subjects]
    runs = [one for one in subjects if isinstance(one, RunData)]
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=parts[0]["name"] if len(parts) == 1 else ", ".join(part["name"] for part in parts[:4]),
            parts=parts,
            comparison=comparison(parts, runs, detail) if len(parts) > 1 else None,
            version=__version__,
            css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
            js=Markup(script),
            script_hash=Markup(f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"),
        )
    )


def _environment() -> Environment:
    """Templates that escape everything; what steers a terminal or turns text round is written out before."""
    made = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    made.filters["tojson"] = lambda value: htmlsafe_json_dumps(_plain(value), separators=(",", ":"))
    return made


def _plain(value: Any) -> Any:
    """JSON values as a browser reads them: no NaN, and text that obeys nothing."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {printable(str(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
