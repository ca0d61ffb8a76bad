"""The documentation site leaves no page out, and its code runs. `.ci/run` builds it, with warnings as errors."""

import re

import pytest
from helpers.pages import ROOT, blocks

from evolve.schedules import schedules

DOCS = ROOT / "docs"
TOCTREE = re.compile(r"^```\{toctree\}\n(?::[^\n]*\n)*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def reached(page: str) -> set[str]:
    """Pages that the table of contents of a page leads to, and theirs."""
    found = {page}
    for entries in TOCTREE.findall((DOCS / f"{page}.md").read_text(encoding="utf-8")):
        for entry in entries.split():
            for path in (DOCS / page).parent.glob(f"{entry}.md"):
                found |= reached(path.relative_to(DOCS).with_suffix("").as_posix())
    return found


def test_every_page_is_in_the_table_of_contents():
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}
    assert pages - reached("index") == {"search"}  # which the page `population` shows: Sphinx has one of that name


@pytest.mark.parametrize("page", ["index", "concepts", "schedules"])
def test_the_code_of_the_page_runs(page):
    code = blocks((DOCS / f"{page}.md").read_text(encoding="utf-8"), "python")
    assert "assert" in code[-1]
    names = {"__name__": page}
    for block in code:
        exec(compile(block, f"docs/{page}.md", "exec"), names)
    schedules.unregister("marks")


def test_what_the_reliability_page_names_is_there():
    page = (DOCS / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/.]+)`", page))
    assert len(named) > 5
    assert all((ROOT / path).exists() for path in named)
