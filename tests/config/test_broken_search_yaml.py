"""Every fault of a search file is reported at once, with its line and a way out, and nothing is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evolve.cli import app
from evolve.config import ConfigError
from evolve.evolver.run_config import load_config
from evolve.population.config import SearchConfig

GOOD = """\
model:
  name: mlp
  options: {in_features: 16, num_classes: 3, hidden: [8, 8]}
data:
  name: fake
  options: {samples: 32, shape: [1, 4, 4], num_classes: 3}
optimizer: {name: SGD, options: {lr: 0.1}}
lr_schedule: CosineAnnealingLR
training:
  steps: 2
  device: cpu
search:
  algorithm: {name: elitist, options: {population: 3}}
  operators:
    - {name: widen, options: {factor: 1.5}}
    - narrow
  objectives: [{metric: val_accuracy}]
  budget: {evaluations: 4}
  limits: {params: 300000}
  halving: {factor: 3, rungs: 1}
  executor: {name: processes, options: {workers: 2}}
output:
  dir: RUN
plugins: []
"""
SPACE = "search:\n  space: {}\n  budget: {{evaluations: 4}}\n"
LETTERS = "evolve.testing.toy_spaces:Letters"


def edit(*changes):
    text = GOOD
    for old, new in changes:
        assert GOOD.count(old) == 1, old
        text = text.replace(old, new)
    return text


def without(first, last):
    """The good file without the lines from one that begins so to before another that does."""
    return GOOD[: GOOD.index(first)] + GOOD[GOOD.index(last) :]


# text, then what the report has to say: (line, words...) for each fault
BROKEN = {
    "unknown section": (edit(("plugins: []", "plugin: []")), [(24, "plugin: unknown key", "Did you mean 'plugins'?")]),
    "the section of a run": (edit(("output:", "evolution: {}\noutput:")), [(22, "evolution: unknown key")]),
    "a misspelled search": (
        edit(("search:\n", "serach:\n")),
        [(1, "search: is missing"), (12, "serach", "Did you mean 'search'?")],
    ),
    "unknown key in search": (
        edit(("  budget:", "  exeutor: ray\n  budget:")),
        [(18, "search.exeutor: unknown key", "Did you mean 'executor'?")],
    ),
    "unknown key in algorithm": (
        edit(("options: {population: 3}}", "option: {population: 3}}")),
        [(13, "search.algorithm.option", "Did you mean 'options'?")],
    ),
    "unknown key in an operator": (
        edit(("{name: widen, options", "{name: widen, site: a, options")),
        [(15, "search.operators[0].site", "Did you mean 'sites'?")],
    ),
    "unknown key in an objective": (
        edit(("{metric: val_accuracy}", "{metric: val_accuracy, mod: max}")),
        [(17, "search.objectives[0].mod", "Did you mean 'mode'?")],
    ),
    "unknown key in budget": (
        edit(("{evaluations: 4}", "{evaluation: 4}")),
        [(18, "search.budget.evaluation", "Did you mean 'evaluations'?")],
    ),
    "unknown key in limits": (
        edit(("{params: 300000}", "{parms: 300000}")),
        [(19, "search.limits.parms", "Did you mean 'params'?")],
    ),
    "unknown key in halving": (edit(("rungs: 1", "rung: 1")), [(20, "search.halving.rung", "Did you mean 'rungs'?")]),
    "unknown key in executor": (
        edit(("options: {workers: 2}", "optoins: {workers: 2}")),
        [(21, "search.executor.optoins", "Did you mean 'options'?")],
    ),
    "unknown key in output": (edit(("  dir: RUN", "  dri: RUN")), [(23, "output.dri", "Did you mean 'dir'?")]),
    "unknown key in space": (
        "search:\n  space: {name: " + f'"{LETTERS}", option: 3' + "}\n  budget: {steps: 4}\n",
        [(2, "search.space.option", "Did you mean 'options'?")],
    ),
    "no budget": (without("  budget", "  limits"), [(12, "search.budget: is missing")]),
    "an empty budget": (edit(("{evaluations: 4}", "{}")), [(18, "search.budget", "none is given", "evaluations")]),
    "two budgets": (
        edit(("{evaluations: 4}", "{evaluations: 4, seconds: 3}")),
        [(18, "search.budget", "evaluations and seconds are given: give one")],
    ),
    "a budget of nothing": (edit(("evaluations: 4", "evaluations: 0")), [(18, "budget.evaluations", "at least 1")]),
    "unknown algorithm": (
        edit(("name: elitist", "name: elitst")),
        [(13, "search.algorithm.name", "Did you mean 'elitist'?", "nsga2")],
    ),
    "unknown executor": (
        edit(("name: processes", "name: proceses")),
        [(21, "search.executor.name", "Did you mean 'processes'?")],
    ),
    "unknown operator": (
        edit(("name: widen", "name: wden")),
        [(15, "search.operators[0].name", "Did you mean 'widen'?")],
    ),
    "unknown operator without options": (
        edit(("- narrow", "- narow")),
        [(16, "search.operators[1].name", "Did you mean 'narrow'?")],
    ),
    "wrong operator option": (
        edit(("{factor: 1.5}", "{factor: 0.5}")),
        [(15, "search.operators[0].options.factor", "greater than 1")],
    ),
    "nobody lives": (
        edit(("population: 3", "population: 0")),
        [(13, "search.algorithm.options.population", "greater than 0", "0")],
    ),
    "text for a number": (
        edit(("population: 3", 'tournament: "3"')),
        [(13, "search.algorithm.options.tournament", "a whole number", "Leave out the quotes")],
    ),
    "an option of another algorithm": (
        edit(("population: 3", "sample: 3")),
        [(13, "search.algorithm.options.sample", "Known here: population, tournament")],
    ),
    "no workers": (
        edit(("workers: 2", "workers: 0")),
        [(21, "search.executor.options.workers", "greater than 0")],
    ),
    "an option of another executor": (
        edit(("name: processes", "name: in_process")),
        [(21, "search.executor.options.workers: unknown key")],
    ),
    "a negative share of a core": (
        edit(("processes, options: {workers: 2}", "ray, options: {cpus: -0.5}")),
        [(21, "search.executor.options.cpus", "at least 0")],
    ),
    "halving by one": (edit(("factor: 3", "factor: 1")), [(20, "search.halving.factor", "at least 2")]),
    "halving beside an algorithm that trains on": (
        edit(("name: elitist", "name: population_based")),
        [(20, "search.halving", "'population_based'", "leave this out")],
    ),
    "an objective that is not measured": (
        edit(("metric: val_accuracy", "metric: val_acuracy")),
        [(17, "search.objectives[0].metric", "is not measured", "Did you mean 'val_accuracy'?", "its `mode`")],
    ),
    "an objective on the test data": (
        edit(("{metric: val_accuracy}", "test_accuracy")),
        [(17, "search.objectives[0]", "no metric on held-out data")],
    ),
    "a doubled objective": (
        edit(("[{metric: val_accuracy}]", "[params, val_loss, params]"), ("elitist", "nsga2")),
        [(17, "search.objectives[2]", "'params' is there twice")],
    ),
    "several objectives for an algorithm of one": (
        edit(("[{metric: val_accuracy}]", "[val_accuracy, params]")),
        [(17, "search.objectives", "'elitist' seeks one objective", "map_elites, nsga2")],
    ),
    "no objectives": (edit(("[{metric: val_accuracy}]", "[]")), [(17, "search.objectives", "a list of at least 1")]),
    "a wrong mode": (
        edit(("{metric: val_accuracy}", "{metric: val_accuracy, mode: maximum}")),
        [(17, "search.objectives[0].mode", "'min' or 'max'", "Did you mean 'max'?")],
    ),
    "a monitor that is not measured": (
        edit(("  device: cpu", "  monitor: {metric: val_f1}")).replace("  objectives: [{metric: val_accuracy}]\n", ""),
        [(11, "training.monitor.metric", "'val_f1' is not measured")],
    ),
    "patience": (
        edit(("  device: cpu", "  patience: 3")),
        [(11, "training.patience", "whole budget: leave this out")],
    ),
    "a schedule that waits": (
        edit(("CosineAnnealingLR", "{name: ReduceLROnPlateau, interval: epoch}")),
        [(8, "lr_schedule.name", "no use in a child's short training")],
    ),
    "missing model": (without("model:", "data:"), [(1, "model: is missing")]),
    "missing data": (without("data:", "optimizer:"), [(1, "data: is missing")]),
    "missing operators": (without("  operators:", "  objectives:"), [(12, "search.operators", "[widen, residual]")]),
    "nothing but a budget": (
        "search:\n  budget: {evaluations: 0}\n",
        [
            (1, "model: is missing"),
            (1, "data: is missing"),
            (1, "search.operators: is empty"),
            (2, "search.budget.evaluations", "at least 1"),
        ],
    ),
    "a negative limit": (edit(("params: 300000", "params: -1")), [(19, "search.limits.params", "greater than 0")]),
    "a negative timeout": (
        edit(("  halving:", "  timeout: -3\n  halving:")),
        [(20, "search.timeout", "greater than 0")],
    ),
    "nothing but the end": (edit(("  halving:", "  again: 1.0\n  halving:")), [(20, "search.again", "less than 1")]),
    "a wrong choice": (
        edit(("  halving:", "  rates: adaptve\n  halving:")),
        [(20, "search.rates", "'equal' or 'adaptive'", "Did you mean 'adaptive'?")],
    ),
    "a space beside a model": (
        edit(("  operators:", f'  space: "{LETTERS}"\n  operators:'), ("val_accuracy", "fitness")),
        [
            (1, "model: the space stands for it"),
            (4, "data: the space stands for it"),
            (15, "search.operators: the space stands for it"),
        ],
    ),
    "a space that cannot be imported": (
        SPACE.format("no.such:Space"),
        [(2, "search.space.name", "cannot import 'no.such'")],
    ),
    "an unknown space": (SPACE.format("nosuch"), [(2, "search.space.name", "Unknown search space 'nosuch'")]),
    "a space that is none": (
        SPACE.format("evolve.population.individual:Edit"),
        [(2, "search.space.name", "has to be a class that inherits from Space")],
    ),
    "a space that is not finished": (
        SPACE.format("evolve.population.space:Space"),
        [(2, "search.space.name", "it lacks code, draw, edits, evaluator, features")],
    ),
    "the space that is searched anyway": (SPACE.format("networks"), [(2, "search.space.name", "leave `space` out")]),
    "wrong options of a space": (
        SPACE.format('{name: "' + LETTERS + '", options: {x: 3}}'),
        [(2, "search.space.options.x: unknown key")],
    ),
    "a list for a mapping": (edit(("{evaluations: 4}", "[4]")), [(18, "search.budget", "a mapping")]),
    "bad plugin": (edit(("plugins: []", "plugins: [no_such]")), [(24, "plugins[0]", "cannot import 'no_such'")]),
    "many at once": (
        edit(
            ("name: mlp", "name: mpl"),
            ("name: SGD", "name: SDG"),
            ("CosineAnnealingLR", "ReduceLROnPlateau"),
            ("  device: cpu", "  patience: 3"),
            ("population: 3", "population: 0"),
            ("- narrow", "- narow"),
            ("{evaluations: 4}", "{}"),
            ("workers: 2", "worker: 2"),
        ),
        [
            (2, "Did you mean 'mlp'?"),
            (7, "Did you mean 'SGD'?"),
            (8, "lr_schedule.name"),
            (11, "training.patience"),
            (13, "population"),
            (16, "Did you mean 'narrow'?"),
            (18, "search.budget"),
            (21, "Did you mean 'workers'?"),
        ],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("command", ["validate", "search"])
def test_broken(name, command, tmp_path, monkeypatch):
    text, expected = BROKEN[name]
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(text)
    result = CliRunner().invoke(app, [command, "config.yaml"])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    head, *lines = result.stderr.splitlines()
    assert len(lines) == len(expected), result.stderr
    assert head == f"{len(expected)} fault{'s' if len(expected) > 1 else ''} in config.yaml:"
    for line, (number, *words) in zip(lines, expected, strict=True):
        assert line.startswith(f"  config.yaml:{number}: "), line
        for word in words:
            assert word in line, line
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_the_good_file_is_valid(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(GOOD)
    result = CliRunner().invoke(app, ["validate", str(file), "search.budget.seconds=3", "search.objectives=[val_loss]"])
    assert (result.exit_code, result.stderr) == (0, "")


def test_the_schema_has_every_section():
    schema = json.loads(CliRunner().invoke(app, ["schema", "--search"]).stdout)
    assert set(schema["properties"]) == set(SearchConfig.model_fields)
    assert schema["required"] == ["search"]


def test_a_run_and_a_search_are_not_mistaken_for_each_other(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(GOOD)
    result = CliRunner().invoke(app, ["run", str(file)])
    assert result.exit_code == 2
    assert f"config.yaml' describes a search. Did you mean 'evolve search {file}'?" in result.stderr
    with pytest.raises(ConfigError, match=r"config\.yaml:12: search: this file describes a search"):
        load_config(file)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.operators.0.sites=[nowhere]", "search.operators[0].sites[0]: 'widen' does not apply at 'nowhere'"),
        ("model.options.in_features=7", "mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_what_does_not_fit_the_model_is_told_before_anything_is_written(override, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(GOOD)
    result = CliRunner().invoke(app, ["search", "config.yaml", override])
    assert result.exit_code == 2
    assert words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_folder_that_is_no_search_keeps_what_it_has(tmp_path):
    file, models = tmp_path / "config.yaml", tmp_path / "models"
    file.write_text(GOOD)
    models.mkdir()
    result = CliRunner().invoke(app, ["search", str(file), f"output.dir={tmp_path}", "output.overwrite=true"])
    assert result.exit_code == 1
    assert "is not the folder of a search, and has a 'models' that would be lost" in result.stderr
    assert models.is_dir()


def test_a_device_that_is_not_there_is_refused_before_any_child(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(GOOD)
    overrides = [f"output.dir={tmp_path / 'run'}", "search.executor.options={workers: 1, devices: ['cuda:99']}"]
    result = CliRunner().invoke(app, ["search", str(file), *overrides])
    assert result.exit_code == 1
    assert "Error: Device 'cuda:99' is not available" in result.stderr


def test_no_traceback_from_the_real_command(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(GOOD.replace("elitist", "elitst"))
    code = [sys.executable, "-m", "evolve", "search", str(file)]
    result = subprocess.run(code, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "Did you mean 'elitist'?" in result.stderr
