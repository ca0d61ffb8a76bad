"""The command line: help, version, and a word instead of a traceback for whatever is typed."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.yaml_files import GOOD
from typer.testing import CliRunner

import evolve
from evolve.cli import app

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files of all kinds that are no run and no configuration."""
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(GOOD)
    Path("empty.yaml").write_text("")
    Path("binary.yaml").write_bytes(bytes(range(256)) * 4)
    Path("zero.yaml").write_bytes(b"\0" * 100)
    Path("list.yaml").write_text("- 1\n- 2\n")
    Path("text.yaml").write_text("just words")
    Path("deep.yaml").write_text("a: " + "[" * 500)
    Path("numbers.yaml").write_text("model: 3\ndata: 4\ntraining: [1]\nevolution: x\nplugins: 7\n")
    Path("nulls.yaml").write_text("model:\ndata:\ntraining:\nevolution:\noutput:\n")
    Path("folder").mkdir()
    Path("broken_run/checkpoints/step-00000001").mkdir(parents=True)
    Path("broken_run/lineage.jsonl").write_bytes(b"\xff\xfe{}[\n")
    Path("broken_run/metrics.jsonl").write_text("{")
    Path("broken_run/config.yaml").write_bytes(b"\xff")
    Path("not_a_model.py").write_text("x = 3\ndef f():\n    return 3\ndef g(*, a):\n    raise ValueError('no')\n")
    Path("link.yaml").symlink_to("nowhere.yaml")
    return tmp_path


FILES = ["empty", "binary", "zero", "list", "text", "deep", "numbers", "nulls", "missing", "link"]
OVERRIDES = ["a.b", "=3", "training.epochs=", "training.epochs", ".=1", "..=1", "a..b=1", "=", "", "training=3",
             "model.name=[1]", "training.epochs=[", "training.epochs={a: 1", "evolution.operators.x.name=3",
             "evolution.operators.-1.name=3", "training.epochs=\x00", "training.epochs=!!python/object:os.system",
             "training.epochs=1e999", "training.epochs=.nan", "training.seed=99999999999999999999", "plugins=[none]",
             "evolution.operators=3", "data=null", "model=null", "a=1", "training.epochs=\ud800"]  # fmt: skip


def told(*arguments):
    """Runs a command that has to fail with a word; returns what it says."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code in (1, 2), (arguments, result.output, result.exception)
    assert isinstance(result.exception, SystemExit), (arguments, result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.strip(), arguments
    return result.stderr


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_configuration(command, name, folder):
    assert f"{name}.yaml" in told(command, f"{name}.yaml")


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides_that_are_none(override, folder):
    told("validate", "good.yaml", override)
    assert "command line" in told("run", "good.yaml", override) or override in ("data=null", "model=null")


@pytest.mark.parametrize("command", ["run", "validate", "resume", "report"])
@pytest.mark.parametrize(
    "path", ["", "folder", "broken_run", "good.yaml/x", "no/such", "a\0b", "x" * 300, "~", "\ud800"]
)
def test_paths_that_lead_nowhere(command, path, folder):
    told(command, path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["smal_cnn"], ["torchvision:resnet19"], ["torchvision:"], [":"], ["."], ["a.b.c"], ["no.such:Thing"],
        ["not_a_model:x"], ["not_a_model:f"], ["not_a_model:g"], ["not_a_model:g", "--option", "a=1"], ["os:getcwd"],
        ["folder"], ["broken_run"], ["good.yaml/x"], ["binary.yaml"], [""], ["simple_cnn", "--option", "a.b"],
        ["simple_cnn", "--option", "=3"], ["simple_cnn", "--option", "image_size=2"], ["simple_cnn", "--shape", "x"],
        ["simple_cnn", "--shape", "0,3"], ["simple_cnn", "--shape", "2,3,2"], ["simple_cnn", "--operator", "widenn"],
        ["simple_cnn", "--device", "gpu"], ["simple_cnn", "--depth", "-1"], ["simple_cnn", "--option", "num_classes=x"],
        ["simple_cnn", "--option", "num_classes=-1"], ["a\0b"], ["mlp"],
    ],
)  # fmt: skip
def test_inspect(arguments, folder):
    told("inspect", *arguments)


def test_plugins_that_are_none(folder):
    assert "no_such" in told("operators", "--plugin", "no_such")
    told("operators", "--plugin", "")


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_a_file_that_may_not_be_read(folder):
    secret = Path("secret.yaml")
    secret.write_text(GOOD)
    secret.chmod(0)
    try:
        secret.read_text()
    except PermissionError:
        assert "cannot be read" in told("validate", "secret.yaml")


@pytest.mark.parametrize(("typed", "meant"), [("rn", "run"), ("inspct", "inspect"), ("operator", "operators")])
def test_a_typo_of_a_command_is_suggested(typed, meant):
    assert f"Did you mean 'evolve {meant}'" in told(typed)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: evolve {command}" in result.stdout


def test_version_and_module():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"evolve {evolve.__version__}\n"
    command = [sys.executable, "-m", "evolve"]
    shown = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    assert shown == f"evolve {evolve.__version__}\n"
    usage = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "Usage: evolve [OPTIONS] COMMAND" in usage
