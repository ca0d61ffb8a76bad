"""A wrong command line: one line that says what was probably meant, and exit code 2."""

import json
import os
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evolve.cli import app
from evolve.cli.suggestions import ALIASES, SETTINGS, kind_of, spaced_settings
from evolve.evolver.run_config import RunConfig

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]
RUN = "model: mlp\noutput:\n  dir: runs/first  # of the run\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A configuration of a run and of a search, a run and a search that were started."""
    monkeypatch.chdir(tmp_path)
    Path("conf.yaml").write_text(RUN)
    Path("hunt.yaml").write_text("model: mlp\nsearch: {budget: {evaluations: 3}}\n")
    Path("configs").mkdir()
    Path("configs/quickstart.yaml").write_text(RUN)
    Path("my_operators.py").write_text("x = 1\n")
    for name, part in (("first", "lineage.jsonl"), ("second", "lineage.jsonl"), ("hunted", "archive.sqlite")):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, part).write_text("x")
    os.utime("runs/second", (2e9, 2e9))  # the newest
    Path("runs/first/config.yaml").write_text(RUN)
    Path("runs/first/checkpoints/step-00000001").mkdir(parents=True)
    return tmp_path


TABLE = [
    # A command that is none.
    ("rn conf.yaml", "run conf.yaml"),
    ("reprot runs/first", "report runs/first"),
    ("train conf.yaml training.epochs=3", "run conf.yaml training.epochs=3"),
    ("continue runs/first", "resume runs/first"),
    ("compare runs/first runs/second", "diff runs/first runs/second"),
    ("conf.yaml", "run conf.yaml"),
    ("conf.yaml training.epochs=3", "run conf.yaml training.epochs=3"),
    ("hunt.yaml", "search hunt.yaml"),
    ("runs/first", "report runs/first"),
    ("help run", "run --help"),
    ("version", "--version"),
    # An option that is none.
    ("--versoin", "--version"),
    ("run conf.yaml --resum auto", "run conf.yaml --resume auto"),
    ("inspect mlp --dept=1", "inspect mlp --depth=1"),
    ("run conf.yaml --training.epochs=3", "run conf.yaml training.epochs=3"),
    ("run conf.yaml --training.epochs 3", "run conf.yaml training.epochs=3"),
    ("run conf.yaml --epochs 3 training.seed=1", "run conf.yaml training.epochs=3 training.seed=1"),
    ("run --lr 0.1 conf.yaml", "run conf.yaml optimizer.options.lr=0.1"),
    # Settings with spaces, or in the wrong place; two files.
    ("run conf.yaml training.epochs = 3", "run conf.yaml training.epochs=3"),
    ("run conf.yaml training.epochs= 3", "run conf.yaml training.epochs=3"),
    ("run conf.yaml training.epochs =3 a=1", "run conf.yaml training.epochs=3 a=1"),
    ("run training.epochs=3 conf.yaml", "run conf.yaml training.epochs=3"),
    ("run conf.yaml hunt.yaml", "run conf.yaml"),
    # Something that is missing.
    ("run", "run conf.yaml"),
    ("search", "search conf.yaml"),
    ("explain runs/first", "explain runs/first 0"),
    ("diff runs/first", "diff runs/first@base runs/first"),
    # A file that is not there, or is something else.
    ("run conf.yml", "run conf.yaml"),
    ("run conf", "run conf.yaml"),
    ("run cnof.yaml", "run conf.yaml"),
    ("run quickstart.yaml", "run configs/quickstart.yaml"),
    ("run runs/first", "resume runs/first"),
    ("run runs/hunted", "resume runs/hunted"),
    ("search runs/hunted", "resume runs/hunted"),
    ("validate runs/first", "validate runs/first/config.yaml"),
    ("run configs", "run configs/quickstart.yaml"),
    ("run hunt.yaml", "search hunt.yaml"),
    ("search conf.yaml", "run conf.yaml"),
    # A run that is not there, or is something else.
    ("report runs/frist", "report runs/first"),
    ("report runs/first runs/secnd", "report runs/second"),
    ("report", "report runs/second"),
    ("resume first", "resume runs/first"),
    ("resume conf.yaml", "run conf.yaml --resume auto"),
    ("resume hunt.yaml", "search hunt.yaml --resume auto"),
    ("report conf.yaml", "report runs/first"),
    ("report hunt.yaml", "search hunt.yaml"),
    ("resume runs/first/checkpoints/step-00000001", "resume runs/first"),
]


def told(words):
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, SystemExit), (words, result.exception)
    assert result.exit_code == 2, (words, result.output)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize(("typed", "meant"), TABLE, ids=[typed for typed, _ in TABLE])
def test_the_right_line_is_suggested(typed, meant, folder):
    assert f"Did you mean 'evolve {meant}'?" in told(shlex.split(typed))


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("inspect simple_cnn --operator widne", "Did you mean 'widen'?"),
        ("operators widne", "Did you mean 'widen'?"),
        ("export runs/first --to pyton --output x", "Did you mean 'python'?"),
        ("inspect simple_cn", "Did you mean 'simple_cnn'?"),
        ("operators --plugin my_operator", "Did you mean 'my_operators'?"),
        ("run conf.yaml --resume yes", "'never', 'auto'"),
        ("explain runs/first x", "Example: evolve explain"),
        ("replay runs/first", "Example: evolve replay runs/quickstart --until 2"),
        ("nonsense", "evolve --help"),
    ],
)
def test_a_name_or_an_example_is_given(typed, hint, folder):
    assert hint in told(shlex.split(typed))


def test_what_is_right_is_let_through(folder):
    for words in (["run", "--help"], ["--version"], ["validate", "--help"]):
        assert CliRunner().invoke(app, words).exit_code == 0


def test_nothing_typed_shows_the_help(folder):
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "Usage: evolve" in result.output.replace("root", "evolve")


def test_what_is_suggested_exists():
    assert set(ALIASES.values()) <= set(COMMANDS)
    assert not set(ALIASES) & set(COMMANDS)
    known = json.dumps(RunConfig.model_json_schema())
    for setting in SETTINGS.values():
        section, key, *_ = setting.split(".")
        assert section in RunConfig.model_fields
        assert key in RunConfig.model_fields[section].annotation.model_fields, setting
        assert f'"{section}"' in known


@pytest.mark.parametrize("settings", [["a=1"], ["a=1", "b=2"], ["a", "b"], ["="], ["a="], [], ["a=x = y"]])
def test_settings_that_are_left_alone(settings):
    assert spaced_settings(settings) is None


def test_a_name_that_no_file_can_have_is_told_by_the_command(folder):
    for name in ("x" * 300, "a\0b"):
        assert CliRunner().invoke(app, ["run", name]).exit_code in (1, 2)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"model": "mlp", "search": {}}', "search"),
        ("model: mlp\nsearch:\n", "search"),
        ("model: mlp\ndata: x\n", "run"),
        ("model: mlp\nserach: {}\n", None),
        ("data: x\n", None),
        ("a: " + "[" * 5000, None),
        ("\0", None),
        ("", None),
        ("model: mlp\n" + "#" * 200_000, None),
    ],
)
def test_what_a_file_describes(text, kind, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    assert kind_of(tmp_path / "a.yaml") == kind


@pytest.mark.parametrize("words", ["report none", "resume none", "resume runs/first/other", "run zebra.yaml"])
def test_what_is_like_nothing_is_left_to_the_command(words, folder):
    Path("runs/first/other").mkdir()
    result = CliRunner().invoke(app, shlex.split(words))
    assert result.exit_code in (1, 2)
    assert "Did you mean" not in result.output


@pytest.mark.parametrize("text", ["\u202e", "\x08", "\u2028"])  # typer takes escape sequences out by itself
def test_what_was_typed_does_not_steer_the_terminal(text, folder):
    assert text not in told([f"{text}a"])
    assert text not in told(["run", "conf.yaml", f"--{text}"])
