"""A run folder says with what a run was trained and what its model was, before and after."""

import json

import torch
from helpers.small_runs import evolver, net
from torch import nn

from evolve.training.architecture import Architecture, module_lines, total
from evolve.training.environment import Environment
from evolve.training.folder import read_file

EVOLUTION = {
    "schedule": {"name": "at", "options": {"steps": [5]}},
    "operators": [{"name": "widen", "sites": ["0"], "options": {"factor": 2.0}}],
}


def architecture(folder):
    return read_file(folder / "architecture.json", Architecture)


def test_modules_are_listed_with_their_settings():
    first, linear, relu, last = module_lines(net())
    assert (first.name, first.kind, first.params) == ("", "Sequential", 0)
    assert (linear.name, linear.kind, linear.params) == ("0", "Linear", 8 * 6 + 6)
    assert linear.settings == "in_features=8, out_features=6, bias=True"
    assert (relu.kind, relu.params) == ("ReLU", 0)
    assert total([first, linear, relu, last]) == 8 * 6 + 6 + 6 * 3 + 3


def test_shared_parameters_count_once():
    layer = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = layer.weight
    assert [line.params for line in module_lines(nn.Sequential(layer, tied))] == [0, 20, 4]


def test_a_module_that_cannot_describe_itself_is_listed_without():
    class Silent(nn.Linear):
        def extra_repr(self):
            raise AttributeError("nobody asked before")

    assert module_lines(Silent(2, 2))[0].settings == ""


def test_a_run_notes_model_and_machine(tmp_path):
    run = evolver(tmp_path / "run", EVOLUTION, epochs=2)
    run.run()
    found = architecture(tmp_path / "run")
    assert [line.settings for line in found.first if line.name == "0"] == ["in_features=8, out_features=6, bias=True"]
    assert [line.settings for line in found.last if line.name == "0"] == ["in_features=8, out_features=12, bias=True"]
    assert [timed.step for timed in found.latency] == [0, 10]  # and none for an epoch that changed nothing
    assert all(timed.seconds > 0 for timed in found.latency)
    (session,) = read_file(tmp_path / "run" / "environment.json", Environment).sessions
    assert session.versions["torch"] == torch.__version__
    assert (session.step, session.devices, session.processes) == (0, ["cpu"], 1)


def test_a_resumed_run_keeps_what_it_began_with(tmp_path):
    later = {**EVOLUTION, "schedule": {"name": "at", "options": {"steps": [7]}}}
    evolver(tmp_path / "run", later, epochs=1).run()
    before = architecture(tmp_path / "run")
    evolver(tmp_path / "run", later, epochs=3).restore().run()
    found = architecture(tmp_path / "run")
    assert found.first == before.first
    assert total(found.last) > total(found.first)
    assert [session.step for session in read_file(tmp_path / "run" / "environment.json", Environment).sessions] == [
        0,
        5,
    ]


def test_what_an_older_run_did_not_note_is_not_made_up(tmp_path):
    evolver(tmp_path / "run", epochs=1).run()
    (tmp_path / "run" / "architecture.json").write_text("{")
    evolver(tmp_path / "run", epochs=2).restore().run()
    found = json.loads((tmp_path / "run" / "architecture.json").read_text())
    assert found["first"] is None
    assert found["last"][0]["kind"] == "Sequential"


def test_going_back_forgets_later_latencies():
    model, inputs = net(), torch.randn(2, 8)
    found = Architecture().now(model, inputs, 0)
    model[0] = nn.Linear(8, 6, bias=False)
    wider = found.now(model, inputs, 10)
    assert [timed.step for timed in wider.latency] == [0, 10]
    assert wider.now(model, inputs, 20) is wider
    assert [timed.step for timed in wider.now(net(), inputs, 5).latency] == [0, 5]
