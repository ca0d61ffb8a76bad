"""The documentation is true: its code runs, its links lead somewhere, no configuration key or option is left out."""

import re
from typing import Literal, get_args, get_origin

import pytest
import yaml
from helpers.pages import ROOT, blocks
from pydantic import BaseModel

from evolve.evolver.run_config import RunConfig
from evolve.operators import operators
from evolve.policies import policies
from evolve.population.algorithms import algorithms
from evolve.population.config import SearchConfig
from evolve.population.executors import executors
from evolve.schedules import schedules
from evolve.scores import scores
from evolve.training.loggers import loggers

DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
CONFIGURATION = (DOCS / "configuration.md").read_text(encoding="utf-8")
BUILT_IN = [name for name in operators.names() if operators.get(name).__module__.startswith("evolve.")]


def card(name: str) -> str:
    """The page of an operator."""
    return (DOCS / "operators" / f"{name}.md").read_text(encoding="utf-8")


def run(code: list[str], page: str) -> None:
    """Runs the blocks of a page in one namespace; operators that they register are forgotten afterwards."""
    before = set(operators.names())
    names = {"__name__": "page"}
    try:
        for block in code:
            exec(compile(block, page, "exec"), names)
    finally:
        for name in set(operators.names()) - before:
            operators.unregister(name)


def sections(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections(part)]


def keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted paths of all keys of a section and of those within it."""
    found = []
    for name, field in section.model_fields.items():
        found.append(f"{prefix}{name}")
        for inner in sections(field.annotation):
            found += keys(inner, f"{prefix}{name}.")
    return found


def table_rows(text: str) -> set[str]:
    """What stands in backquotes in the first column of the tables."""
    return {word for line in text.splitlines() if line.startswith("|") for word in re.findall(r"`([^`]+)`", line)[:1]}


NAMED_IN_SEARCHES = ("search.algorithm", "search.executor", "search.space")


@pytest.mark.parametrize("key", [*keys(RunConfig), *(key for key in keys(SearchConfig) if key.startswith("search."))])
def test_every_key_is_described(key):
    rows = table_rows(CONFIGURATION)
    parent, _, leaf = key.rpartition(".")
    if parent in ("evolution.operators", "evolution.limits"):
        part = CONFIGURATION.partition(f"`{parent}`:")[2].partition("\n\n|")[2].partition("\n\n")[0]
        assert leaf in table_rows("|" + part)
    elif parent in ("search.operators", "search.limits"):  # as in a run
        assert parent in rows
        assert key.replace("search.", "evolution.") in keys(RunConfig)
    elif parent in ("training.loss", "evolution.schedule", "evolution.policy", *NAMED_IN_SEARCHES):
        assert leaf in ("name", "options")  # described once, as named things
        assert parent in rows
    else:
        assert key in rows


def test_no_key_is_described_that_is_not_there():
    described = {row for row in table_rows(CONFIGURATION) if re.fullmatch(r"[a-z]+(_[a-z]+)?\.[a-z_]+", row)}
    assert described <= {*keys(RunConfig), *keys(SearchConfig)}


def test_a_search_has_no_section_that_is_not_described():
    described = {"search", *RunConfig.model_fields}
    assert set(SearchConfig.model_fields) <= described
    shared = set(SearchConfig.model_fields) - {"search", "output", "lr_schedule", "model", "data"}
    assert all(SearchConfig.model_fields[key].annotation == RunConfig.model_fields[key].annotation for key in shared)


@pytest.mark.parametrize("registry", [schedules, policies, algorithms, executors], ids=lambda registry: registry.kind)
def test_every_built_in_option_is_described(registry):
    for name in registry.names():
        cls = registry.get(name)
        if cls.__module__.startswith("evolve."):
            rows = [line for line in CONFIGURATION.splitlines() if re.match(rf"\| `{name}` \|", line)]
            assert rows, f"{registry.kind} {name}"
            for option in cls.Options.model_fields:
                assert any(re.search(rf"\b{option}\b", row) for row in rows), f"{registry.kind} {name}: {option}"


def option_rows(text: str) -> dict[str, list[str]]:
    """The cells of each row of the table whose first heading is "option", by option."""
    (table,) = re.findall(r"^\| option \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    return {row[0].strip("`"): row for row in rows}


def choices(annotation: object) -> list[str]:
    """The values that an option can be given by name."""
    own = list(get_args(annotation)) if get_origin(annotation) is Literal else []
    return own + [value for part in get_args(annotation) if not isinstance(part, str) for value in choices(part)]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_operator_has_a_card_with_all_its_options(name):
    fields = operators.get(name).Options.model_fields
    rows = option_rows(card(name))
    assert list(rows) == list(fields)
    for option, field in fields.items():
        _, kind, default, meaning = rows[option]
        assert yaml.safe_load(default.strip("`")) == field.get_default(call_default_factory=True), option
        assert kind
        assert meaning
        for choice in choices(field.annotation):
            assert f"`{choice}`" in kind, f"{option}: {choice}"


def test_every_card_is_of_an_operator_and_in_the_index():
    pages = {path.stem for path in (DOCS / "operators").glob("*.md")}
    assert pages == {"README", *BUILT_IN}
    index = card("README")
    assert all(f"| [`{name}`]({name}.md) |" in index for name in BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_code_of_a_card_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = blocks(card(name), "python")
    assert code
    assert all("assert" in block for block in code)
    run(code, f"docs/operators/{name}.md")


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), target


def test_the_code_of_the_plugin_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = blocks((DOCS / "plugins.md").read_text(encoding="utf-8"), "python")
    assert len(code) == 5
    run(code, "docs/plugins.md")


def test_the_code_of_the_policies_page_runs():
    code = blocks((DOCS / "policies.md").read_text(encoding="utf-8"), "python")
    assert len(code) == 2
    run(code, "docs/policies.md")
    policies.unregister("cheapest")


def test_the_code_of_the_search_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, search, algorithm, check = blocks((DOCS / "search.md").read_text(encoding="utf-8"), "python")
    (tmp_path / "my_algorithms.py").write_text(algorithm)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        run([search, check], "docs/search.md")  # the first block loads what the commands above it have made
    finally:
        algorithms.unregister("newest_or_best")


@pytest.mark.parametrize("page", ["loggers", "optimizers"])
def test_the_code_of_the_page_runs(page):
    run(blocks((DOCS / f"{page}.md").read_text(encoding="utf-8"), "python"), f"docs/{page}.md")
    loggers.unregister("shout")


@pytest.mark.parametrize(
    ("page", "library"), [("lightning", "lightning"), ("huggingface", "transformers"), ("accelerate", "accelerate")]
)
def test_the_code_of_the_integrations_runs(page, library, tmp_path, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    run(blocks((DOCS / f"{page}.md").read_text(encoding="utf-8"), "python"), f"docs/{page}.md")


@pytest.mark.parametrize("name", list(scores))
def test_every_score_is_on_the_policies_page(name):
    assert f"| `{name}` |" in (DOCS / "policies.md").read_text(encoding="utf-8")


def test_every_room_is_on_the_architecture_page():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "evolve"
    rooms = [path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    for room in rooms:
        name = room.name if room.suffix else f"{room.name}/"
        assert name in page, name
