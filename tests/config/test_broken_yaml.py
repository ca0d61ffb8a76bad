"""Every fault of a file is reported at once, with its line and a way out, and nothing is written."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.yaml_files import GOOD, edit
from typer.testing import CliRunner

from evolve.cli import app

# text, then what the report has to say: (line, words...) for each fault
BROKEN = {
    "unknown section": (edit("plugins: []", "plugin: []"), [(23, "plugin: unknown key", "Did you mean 'plugins'?")]),
    "unknown key in model": (
        edit("  name: small_resnet", "  name: small_resnet\n  widht: 3"),
        [(3, "model.widht", "Known here: name, options")],
    ),
    "indented too far": (
        edit("  name: small_resnet", "  name: small_resnet\n    width: 3"),
        [(3, "a colon stands where a value goes on: indent this line as its neighbours are")],
    ),
    "unknown key in data": (
        edit("batch_size: 32", "batchsize: 32"),
        [(6, "data.batchsize", "Did you mean 'batch_size'?")],
    ),
    "unknown key in optimizer": (
        edit("  options: {lr: 0.05}", "  option: {lr: 0.05}"),
        [(9, "optimizer.option", "Did you mean 'options'?")],
    ),
    "unknown key in lr_schedule": (
        edit("interval: step", "intervall: step"),
        [(10, "lr_schedule.intervall", "Did you mean 'interval'?")],
    ),
    "unknown key in training": (
        edit("epochs: 1\n  device", "epoch: 1\n  device"),
        [(12, "training.epoch", "Did you mean 'epochs'?")],
    ),
    "unknown key in evolution": (edit("  policy:", "  polcy:"), [(16, "evolution.polcy", "Did you mean 'policy'?")]),
    "unknown key in an operator": (
        edit("sites: [stage2]", "site: stage2"),
        [(18, "evolution.operators[0].site", "Did you mean 'sites'?")],
    ),
    "unknown key in limits": (
        edit("{params: 300000}", "{parms: 300000}"),
        [(20, "evolution.limits.parms", "Did you mean 'params'?")],
    ),
    "unknown key in output": (edit("  dir: RUN", "  dri: RUN"), [(22, "output.dri", "Did you mean 'dir'?")]),
    "unknown model": (edit("small_resnet", "smal_resnet"), [(2, "model.name", "Did you mean 'small_resnet'?")]),
    "unknown torchvision model": (
        edit("small_resnet", "torchvision:resnet19"),
        [(2, "model.name", "Unknown torchvision model", "Did you mean")],
    ),
    "model that cannot be imported": (
        edit("small_resnet", "no.such:Model"),
        [(2, "model.name", "cannot import 'no.such'")],
    ),
    "unknown model option": (
        edit("num_classes: 10", "num_clases: 10"),
        [(3, "model.options.num_clases", "Did you mean 'num_classes'?")],
    ),
    "unknown data": (edit("name: digits", "name: digit"), [(5, "data.name", "Did you mean 'digits'?")]),
    "unknown data option": (
        edit("  batch_size: 32", "  options: {val_fracton: 0.1}"),
        [(6, "data.options.val_fracton", "Did you mean 'val_fraction'?")],
    ),
    "missing data option": (edit("name: digits", "name: image_folder"), [(4, "data.options", "'root' is missing")]),
    "option that evolve gives": (
        edit("  batch_size: 32", "  options: {batch_size: 3}"),
        [(6, "set by evolve")],
    ),
    "unknown optimizer": (edit("name: SGD", "name: sgd"), [(8, "optimizer.name", "Unknown optimizer 'sgd'", "SGD")]),
    "unknown optimizer option": (
        edit("{lr: 0.05}", "{lr: 0.05, momentun: 0.9}"),
        [(9, "optimizer.options.momentun", "Did you mean 'momentum'?")],
    ),
    "unknown lr schedule": (edit("OneCycleLR", "OneCycle"), [(10, "lr_schedule.name", "Did you mean 'OneCycleLR'?")]),
    "missing lr schedule option": (
        edit("options: {max_lr: 0.1}", "options: {}"),
        [(10, "lr_schedule.options", "'max_lr' is missing")],
    ),
    "wrong choice": (edit("interval: step", "interval: steps"), [(10, "'step' or 'epoch'", "Did you mean 'step'?")]),
    "unknown schedule": (edit("name: every", "name: evry"), [(15, "evolution.schedule.name", "Did you mean 'every'?")]),
    "schedule without a period": (edit("options: {epochs: 1}}", "options: {}}"), [(15, "either 'epochs' or 'steps'")]),
    "unknown policy": (
        edit("round_robin", "roundrobin"),
        [(16, "evolution.policy.name", "Did you mean 'round_robin'?")],
    ),
    "a step of a policy that is not among the operators": (
        edit("{name: round_robin}", "{name: fixed, options: {steps: [{operator: deepn}]}}"),
        [(16, "evolution.policy.options.steps[0].operator", "not in evolution.operators", "Did you mean 'deepen'?")],
    ),
    "unknown operator": (
        edit("name: deepen", "name: depen"),
        [(19, "evolution.operators[1].name", "Did you mean 'deepen'?")],
    ),
    "unknown operator option": (
        edit("{init: zero}", "{innit: zero}"),
        [(18, "evolution.operators[0].options.innit", "Did you mean 'init'?")],
    ),
    "wrong operator option": (
        edit("{init: zero}", "{init: ones}"),
        [(18, "evolution.operators[0].options.init", "'zero', 'identity' or 'random'", "'ones'")],
    ),
    "schedule without operators": (
        GOOD[: GOOD.index("  operators")] + GOOD[GOOD.index("  limits") :],
        [(14, "evolution.operators", "[{name: residual}]")],
    ),
    "text for a number": (
        edit("batch_size: 32", 'batch_size: "32"'),
        [(6, "data.batch_size", "a whole number", "Leave out the quotes")],
    ),
    "truth for a number": (
        edit("epochs: 1\n  device", "epochs: true\n  device"),
        [(12, "training.epochs", "a whole number", "true")],
    ),
    "on for true": (edit("  batch_size: 32", "  augment: on"), [(6, "data.augment", "true or false", "'on'")]),
    "octal": (edit("batch_size: 32", "batch_size: 010"), [(6, "data.batch_size", "010 could mean 10")]),
    "out of range": (edit("batch_size: 32", "batch_size: 0"), [(6, "data.batch_size", "at least 1")]),
    "negative limit": (edit("params: 300000", "params: -1"), [(20, "evolution.limits.params", "greater than 0")]),
    "nothing where something is needed": (edit("  name: digits", "  name:"), [(5, "data.name", "text", "null")]),
    "missing section": (GOOD[GOOD.index("data:") :], [(1, "model: is missing")]),
    "a list for a mapping": (edit("output:\n  dir: RUN", "output: [RUN]"), [(21, "output", "a mapping")]),
    "duplicate keys": (
        edit("  batch_size: 32", "  batch_size: 32\n  batch_size: 64"),
        [(7, "data.batch_size", "line 6")],
    ),
    "duplicate sections": (GOOD + "data: {name: fake}\n", [(24, "data", "line 4")]),
    "bad plugin": (
        edit("plugins: []", "plugins: [no_such_plugin]"),
        [(23, "plugins[0]", "cannot import 'no_such_plugin'")],
    ),
    "plugin that fails": (edit("plugins: []", "plugins: [failing_plugin]"), [(23, "plugins[0]", "ZeroDivisionError")]),
    "a key that is a number": (edit("  batch_size: 32", "  3: 32"), [(6, "data", "the key 3 is not text")]),
    "a tab": (edit("  batch_size", "\tbatch_size"), [(6, "tab")]),
    "an unclosed bracket": (edit("{params: 300000}", "{params: 300000"), [(21, "expected")]),
    "python tag": (edit("small_resnet", "!!python/object:os.system x"), [(2, "tag", "not allowed")]),
    "no mapping": ("- just\n- a list\n", [(1, "has to be a mapping")]),
    "empty": ("", [(None, "is empty")]),
    "non-UTF-8": (GOOD.encode().replace(b"# ", b"") + b"# caf\xe9\n", [(24, "is not UTF-8")]),
    "many at once": (
        edit("batch_size: 32", "batch_size: 010\n  batch_siz: 3")
        .replace("name: SGD", "name: SDG")
        .replace("init: zero", "init: 0"),
        [(6, "010"), (7, "Did you mean 'batch_size'?"), (9, "Did you mean 'SGD'?"), (19, "options.init")],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("command", ["validate", "run"])
def test_broken(name, command, tmp_path, monkeypatch):
    text, expected = BROKEN[name]
    monkeypatch.chdir(tmp_path)
    Path("failing_plugin.py").write_text("1 / 0\n")
    file = Path("config.yaml")
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in str(p))
    result = CliRunner().invoke(app, [command, "config.yaml"])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    head, *lines = result.stderr.splitlines()
    assert head == f"{len(expected)} fault{'s' if len(expected) > 1 else ''} in config.yaml:"
    assert len(lines) == len(expected), result.stderr
    for line, (number, *words) in zip(lines, expected, strict=True):
        assert line.startswith(f"  config.yaml:{number}: " if number else "  config.yaml: "), line
        for word in words:
            assert word in line, line
    assert sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in str(p)) == before


def test_there_are_forty():
    assert len(BROKEN) >= 40


def test_missing_file_and_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text(GOOD)
    result = CliRunner().invoke(app, ["run", "quikstart.yaml"])
    assert result.exit_code == 2
    assert "There is no file 'quikstart.yaml'. Did you mean 'evolve run quickstart.yaml'?" in result.stderr
    result = CliRunner().invoke(app, ["run", str(tmp_path)])
    assert result.exit_code == 2
    assert "is a folder" in result.stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epoch=3", ["command line: training.epoch: unknown key", "Did you mean 'epochs'?"]),
        ("training.epochs=many", ["command line: training.epochs: has to be a whole number", "'many'"]),
        ("training.epochs", ["is not a setting; write key=value, such as training.epochs=3"]),
        ("evolution.operators.7.name=deepen", ["there is no entry 7; the list has 2"]),
        ("training.epochs.deep=3", ["'epochs' is 1, which has no 'deep'"]),
        ("optimizer.options.lr=[1", ["command line", "optimizer.options.lr"]),
    ],
)
def test_broken_overrides(override, words, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(GOOD)
    result = CliRunner().invoke(app, ["validate", str(file), override])
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr


def test_the_good_file_is_valid(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(GOOD)
    result = CliRunner().invoke(
        app, ["validate", str(file), "training.epochs=3", "evolution.operators.1.options.ratio=1e-1"]
    )
    assert (result.exit_code, result.stderr) == (0, "")


def test_no_traceback_from_the_real_command(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(GOOD.replace("SGD", "SGDD"))
    code = [sys.executable, "-m", "evolve", "run", str(file)]
    result = subprocess.run(code, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "Did you mean 'SGD'?" in result.stderr
