"""What the README and the page on runs say is true: code runs, YAML is valid, the files they name are there."""

import html
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers.pages import ROOT, blocks

import evolve
from evolve.cli import app
from evolve.operators import operators
from evolve.population.config import load_search

README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNS = (ROOT / "docs/runs.md").read_text(encoding="utf-8")
OPERATORS = (ROOT / "docs/operators/README.md").read_text(encoding="utf-8")
PICTURE = (ROOT / "docs/images/quickstart.svg").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """An empty folder to run in; operators that a block registers are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(operators.names())
    yield
    for name in set(operators.names()) - before:
        sys.modules.pop(operators.get(name).__module__, None)  # whoever imports it next registers it again
        operators.unregister(name)


def run(code: str) -> dict:
    names = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    return names


def python(word: str, page: str = README) -> str:
    found = [block for block in blocks(page, "python") if word in block]
    assert len(found) == 1
    return found[0]


def test_the_first_example():
    names = run(python("for step in range"))
    assert names["ok"], names["message"]
    assert sum(p.numel() for p in names["model"].parameters()) == 2_194_442


def test_the_evolver_example(capsys):
    names = run(python("Evolver("))
    assert names["result"].finished
    assert names["result"].applied == 3
    assert names["result"].refused == 0
    assert (Path("runs/mine") / "lineage.jsonl").is_file()


def test_loading(capsys):
    settings = ["training.epochs=4", "output.dir=runs/quickstart"]
    app(["run", str(ROOT / "configs/quickstart.yaml"), *settings], standalone_mode=False)
    names = run(python("evolve.load(", RUNS))
    base = evolve.build_model("small_resnet", num_classes=10, in_channels=1, width=16)
    assert sum(p.numel() for p in names["model"].parameters()) > sum(p.numel() for p in base.parameters())
    assert not names["model"].training


def test_saving_by_hand():
    names = run(python("evolve.save(", RUNS))
    assert names["records"][0].message == names["result"].record.message
    assert len(names["optimizer"].param_groups[0]["params"]) == len(list(names["model"].parameters())) > 4


def test_wider_and_narrower():
    torch.manual_seed(0)
    names = run(python('"widen"', OPERATORS))
    assert names["ok"], names["message"]
    assert sum(p.numel() for p in names["model"].parameters()) == 11_689_512


def test_no_python_block_is_left_out():
    assert [len(blocks(page, "python")) for page in (README, RUNS, OPERATORS)] == [2, 2, 1]


def test_every_operator_is_in_the_table():
    built_in = [name for name in operators.names() if operators.get(name).__module__.startswith("evolve.")]
    assert sorted(re.findall(r"^\| \[`(\w+)`\]", README, flags=re.MULTILINE)) == sorted(built_in)


def test_the_picture_is_of_the_quickstart():
    config = evolve.load_config(ROOT / "configs/quickstart.yaml")
    lines = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)", PICTURE)]
    assert lines[0] == f"$ {blocks(README, 'sh')[0].splitlines()[0].split(' && ')[1]}"
    assert len([line for line in lines if line.startswith("epoch")]) == config.training.epochs
    mutations = [found.groups() for line in lines if (found := re.match(r"  \+ (\w+) at '([\w.]+)'", line))]
    offered = [(operator.name, site) for operator in config.evolution.operators for site in operator.sites]
    assert set(mutations) <= set(offered)
    assert {operator for operator, _ in mutations} == {operator.name for operator in config.evolution.operators}
    assert f"Mutations           {len(mutations)} applied, 0 refused" in lines


def test_the_yaml_is_valid():
    (text,) = blocks(RUNS, "yaml")
    Path("page.yaml").write_text(text, encoding="utf-8")
    config = evolve.load_config("page.yaml")
    assert [operator.name for operator in config.evolution.operators] == ["deepen", "widen", "residual"]


def test_every_config_named_is_there_and_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    named = set(re.findall(r"configs/\w+\.yaml", RUNS))
    assert named == {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    for name in named:
        (load_search if "search" in name else evolve.load_config)(name)


def test_every_command_named_is_there():
    known = {command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"^evolve (\w+)", README + RUNS, flags=re.MULTILINE)) <= known


def test_the_quick_start_is_two_lines():
    assert blocks(README, "sh")[0].splitlines() == [
        "pip install . && evolve run configs/quickstart.yaml",
        'pip install ".[test]" && pytest',
    ]
