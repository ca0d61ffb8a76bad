"""`evolve diff`: layers, costs and outputs of two models, against what is counted by hand."""

import json

import pytest
import torch
from helpers.cli_runs import invoke, succeeds, write_config
from torch import nn

import evolve
from evolve.data import build_data
from evolve.report.diff import Shown, diff_models
from evolve.report.names import sizes
from evolve.structure.analysis import analyse
from evolve.structure.comparing import compare_layers, layers_of

# An mlp of 16 inputs, 4 hidden units and 3 classes: Linear(16, 4), Linear(4, 3). The mutation makes 6 units of the 4.
PLAIN = 16 * 4 + 4 + 4 * 3 + 3
WIDER = 16 * 6 + 6 + 6 * 3 + 3
WIDEN = {
    "schedule": {"name": "at", "options": {"epochs": [1]}},
    "policy": {"name": "round_robin"},
    "operators": [{"name": "widen", "options": {"factor": 1.5}}],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that trains alone, and one that makes a layer wider after its first epoch."""
    folder = tmp_path_factory.mktemp("runs")
    for name, evolution in (("plain", {}), ("wider", WIDEN)):
        output = {"dir": str(folder / name), "keep": 9}
        succeeds("run", write_config(folder, name=f"{name}.yaml", evolution=evolution, output=output))
    return folder


def diff(*words):
    return json.loads(succeeds("diff", *words, "--json"))


def test_two_runs_against_a_count_by_hand(runs):
    found = diff(runs / "plain@last", runs / "wider@last")
    assert (PLAIN, WIDER) == (83, 123)
    assert (found["one"]["parameters"], found["two"]["parameters"]) == (PLAIN, WIDER)
    assert found["one"]["flops"] == 2 * (16 * 4 + 4 * 3)
    assert found["two"]["flops"] == 2 * (16 * 6 + 6 * 3)
    assert [(one["kind"], one["before"]["shapes"], one["after"]["shapes"]) for one in found["layers"]] == [
        ("changed", {"weight": [4, 16], "bias": [4]}, {"weight": [6, 16], "bias": [6]}),
        ("changed", {"weight": [3, 4], "bias": [3]}, {"weight": [3, 6], "bias": [3]}),
    ]
    assert [one["after"]["parameters"] - one["before"]["parameters"] for one in found["layers"]] == [34, 6]
    assert [one["after"]["flops"] - one["before"]["flops"] for one in found["layers"]] == [64, 12]
    assert found["same"] == 2  # what flattens, and the activation


def test_outputs_are_compared_on_the_probe_batch_of_the_run(runs):
    found = diff(runs / "plain@last", runs / "wider@last")
    assert found["batch"] == "the run's probe batch"
    assert found["inputs"] == [[8, 1, 4, 4]]
    options = {"samples": 32, "shape": [1, 4, 4], "num_classes": 3}
    x = build_data("fake", batch_size=8, seed=0, options=options).train.examples(8)[0]
    with torch.no_grad():
        one, two = (evolve.load(runs / name, which="last")(x) for name in ("plain", "wider"))
    assert found["max_abs_diff"] == pytest.approx(float((one - two).abs().max()))
    assert found["max_abs_diff"] > 0


def test_a_run_differs_from_itself_in_nothing(runs):
    found = diff(runs / "wider", runs / "wider")
    assert (found["layers"], found["max_abs_diff"]) == ([], 0.0)


def test_epochs_and_the_base_model(runs):
    assert diff(runs / "wider@1", runs / "wider@2")["two"]["parameters"] == WIDER
    assert "epoch 1, step 4, 0 mutations" in diff(runs / "wider@1", runs / "wider@2")["one"]["what"]
    base = diff(runs / "wider@base", runs / "wider@last")
    assert base["one"]["parameters"] == PLAIN
    assert base["max_abs_diff"] is None
    assert "drawn just now" in base["why_not"]


def test_a_checkpoint_by_its_folder_and_a_configuration(runs):
    newest = max((runs / "wider/checkpoints").iterdir())
    assert diff(newest, runs / "wider@last")["layers"] == []
    assert diff(runs / "plain.yaml", runs / "plain@last")["layers"] == []


def test_the_view_names_what_changed(runs):
    text = succeeds("diff", runs / "plain@last", runs / "wider@last")
    assert "Layers: 2 changed; 2 the same" in text
    assert "+40 (+48.2%)" in text
    assert f"weight {sizes((4, 16))} → {sizes((6, 16))}" in " ".join(text.split())


@pytest.mark.parametrize(("asked", "told"), [("wider@7", "epoch 7"), ("wider@newest", "best, last, base")])
def test_what_is_not_there(runs, asked, told):
    result = invoke("diff", runs / asked, runs / "plain")
    assert result.exit_code != 0
    assert told in " ".join(result.output.split())


def test_layers_that_are_added_and_removed():
    one = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    two = nn.Sequential(nn.Linear(2, 2, bias=False), nn.GELU(), nn.Dropout(0.5))
    changes = compare_layers(layers_of(one), layers_of(two))
    assert [(change.name, change.kind) for change in changes] == [("0", "changed"), ("1", "changed"), ("2", "added")]
    assert [c.name for c in compare_layers(layers_of(two), layers_of(one)) if c.kind == "removed"] == ["2"]


def test_flops_of_layers_add_up_also_where_a_block_hangs_at_one():
    model = evolve.build_model("simple_cnn", num_classes=10)
    x = torch.randn(2, 3, 32, 32)
    before = analyse(model, x).flops({})
    ok, message = evolve.mutate(model, "residual", site="features.0", example_inputs=x)
    assert ok, message
    ok, message = evolve.mutate(model, "deepen", site="features.2", example_inputs=x)
    assert ok, message
    analysis = analyse(model, x)
    assert sum(layer.flops for layer in layers_of(model, analysis).values()) == analysis.flops({}) > before


def test_models_that_take_other_inputs_are_not_compared():
    one, two = nn.Linear(4, 2), nn.Linear(5, 2)
    found = diff_models(Shown(one, "one"), Shown(two, "two"), torch.randn(3, 4), "noise")
    assert found.max_abs_diff is None
    assert "two" in found.why_not
    assert (found.one.flops, found.two.flops) == (16, None)
    other = diff_models(Shown(one, "one"), Shown(nn.Linear(4, 3), "three"), torch.randn(3, 4), "noise")
    assert "(3, 2)" in other.why_not
    assert "(3, 3)" in other.why_not
