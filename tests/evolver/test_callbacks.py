"""Callbacks of an Evolver's run, in Python and in YAML."""

import json

import pytest
from helpers.runs import make
from typer.testing import CliRunner

from evolve import Evolver
from evolve.cli import app
from evolve.errors import EvolveError
from evolve.training import events as e


def test_the_stream_of_a_run_in_its_order(tmp_path):
    heard = []
    run = make(tmp_path / "run", callbacks=[heard.append])
    run.run()
    kinds = [type(event).__name__ for event in heard]
    assert kinds[0] == "RunBegun"
    assert kinds[-2:] == ["CheckpointSaved", "RunFinished"]
    steps = [event for event in heard if isinstance(event, e.StepMade)]
    assert [event.step for event in steps] == list(range(1, 19))
    assert [event.epoch_step for event in steps] == [*range(1, 7)] * 3
    assert [event.record for event in heard if isinstance(event, e.MutationTried)] == run.lineage.records
    assert [event.metrics for event in heard if isinstance(event, e.EpochEnded)][:-1] == run.history[:-1]
    losses = [line["val_loss"] for line in run.history]
    best = [event.value for event in heard if isinstance(event, e.BestImproved)]
    assert best == [loss for i, loss in enumerate(losses) if loss == min(losses[: i + 1])]
    saved = [event.step for event in heard if isinstance(event, e.CheckpointSaved)]
    assert saved == [6, 12, 18]
    assert heard[-1].finished
    assert heard[0].run is run


def test_a_callback_may_ask_the_run_to_stop(tmp_path):
    def stop(event):
        if isinstance(event, e.StepMade) and event.step == 8:
            event.run.stop()

    run = make(tmp_path / "run", callbacks=[stop])
    result = run.run()
    assert (result.finished, result.signal, run.state.step) == (False, None, 8)
    assert make(tmp_path / "run").restore().run().finished


def test_a_callback_that_fails_is_named(tmp_path):
    def broken(event):
        raise KeyError("lost")

    with pytest.raises(EvolveError, match=r"broken failed on RunBegun: KeyError: 'lost'"):
        make(tmp_path / "run", callbacks=[broken]).run()


class Patience:
    """Stops when the loss has not improved for two epochs."""

    def __init__(self, epochs=2):
        self.epochs, self.waited = epochs, 0

    def __call__(self, event):
        if isinstance(event, e.EpochEnded):
            self.waited += 1
        if isinstance(event, e.BestImproved):
            self.waited = 0

    def state_dict(self):
        return {"waited": self.waited}

    def load_state_dict(self, state):
        self.waited = state["waited"]


def test_what_a_callback_remembers_is_saved(tmp_path):
    callback = Patience()
    make(tmp_path / "run", callbacks=[callback]).run()
    callback.waited = 7
    make(tmp_path / "more", callbacks=[callback]).run()
    resumed = Patience()
    make(tmp_path / "more", callbacks=[resumed]).restore()
    assert resumed.waited == callback.waited != 0


class Counted:
    """Another one that remembers a number under the same key."""

    def __init__(self, count=0):
        self.count = count

    def __call__(self, event):
        pass

    def state_dict(self):
        return {"waited": self.count}

    def load_state_dict(self, state):
        self.count = state["waited"]


def test_each_callback_gets_back_its_own_whatever_else_there_is():
    """A rank without loggers, or a run that goes on with others, has callbacks in other places."""
    saved = e.EventStream([Counted(1), print, Patience(), Counted(2)])
    saved.callbacks[2].waited = 3
    remembered = json.loads(json.dumps(saved.state()))
    patience, first, second, third = Patience(), Counted(), Counted(), Counted(9)
    e.EventStream([patience, first, second, third]).load_state(remembered)
    assert (patience.waited, first.count, second.count, third.count) == (3, 1, 2, 9)
    patience = Patience()
    e.EventStream([lambda event: None, patience]).load_state(remembered)
    assert patience.waited == 3
    patience = Patience()
    e.EventStream([print, patience]).load_state([None, {"waited": 4}])  # as it was written once
    assert patience.waited == 4


MODULE = """
import json
from evolve.training.events import RunFinished, StepMade

class Count:
    def __init__(self, file):
        self.file, self.steps = file, 0
    def __call__(self, event):
        self.steps += isinstance(event, StepMade)
        if isinstance(event, RunFinished):
            open(self.file, "w").write(json.dumps(self.steps))

def first(event):
    if isinstance(event, StepMade) and event.step == 1:
        open("first.json", "w").write("1")
"""

YAML = """
model: {name: small_resnet, options: {num_classes: 10, in_channels: 1}}
data: {name: digits, batch_size: 256}
training: {epochs: 1, device: cpu}
callbacks:
  - my_callbacks:first
  - {name: my_callbacks:Count, options: {file: count.json}}
"""


def test_callbacks_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_callbacks.py").write_text(MODULE)
    (tmp_path / "run.yaml").write_text(YAML)
    result = CliRunner().invoke(app, ["run", "run.yaml"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "count.json").read_text()) == 6
    assert (tmp_path / "first.json").exists()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("my_callbacks:missing", "has no 'missing'"),
        ("{name: my_callbacks:first, options: {file: x}}", "takes no options"),
        ("{name: my_callbacks:Count, options: {path: x}}", "path"),
        ("{name: my_callbacks:Count}", "file"),
    ],
)
def test_callbacks_that_cannot_be_made(tmp_path, monkeypatch, entry, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_callbacks.py").write_text(MODULE)
    (tmp_path / "run.yaml").write_text(YAML.replace("my_callbacks:first", entry))
    result = CliRunner().invoke(app, ["run", "run.yaml"])
    assert result.exit_code in (1, 2)
    assert words in result.output
    assert "Traceback" not in result.output


def test_the_evolver_takes_callbacks_from_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_callbacks.py").write_text(MODULE)
    (tmp_path / "run.yaml").write_text(YAML)
    evolver = Evolver.from_config("run.yaml")
    assert [e.callback_name(callback) for callback in evolver.events.callbacks] == ["first", "Count"]


@pytest.mark.parametrize(
    ("entry", "place", "words"),
    [
        ("nope", "callbacks[0].name", "neither a known name nor an import path"),
        ("my_callbacks:missing", "callbacks[0].name", "has no 'missing'"),
        ("{name: my_callbacks:first, options: {file: x}}", "callbacks[0].options", "takes no options"),
        ("{name: my_callbacks:Count, options: {path: x, file: y}}", "callbacks[0].options.path", "unknown option"),
    ],
)
def test_validate_finds_what_is_wrong_with_callbacks(tmp_path, monkeypatch, entry, place, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_callbacks.py").write_text(MODULE)
    (tmp_path / "run.yaml").write_text(YAML.replace("my_callbacks:first", entry))
    result = CliRunner().invoke(app, ["validate", "run.yaml"])
    assert result.exit_code == 2
    assert f"run.yaml:6: {place}: " in result.output
    assert words in result.output
