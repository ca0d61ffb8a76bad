"""`evolve inspect`: the facts it finds, the text and the JSON it prints, what it says to bad input; latencies."""

import io
import itertools
import json
import random
import re
from collections import Counter

import pytest
import torch
from helpers.fingerprints import fingerprint
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import evolve
from evolve.cli import app
from evolve.errors import NotApplicable
from evolve.operators import MutationOperator, OperatorOptions, operators
from evolve.report.inspect import inspect_model
from evolve.report.inspect_view import inspection_view, sites_view
from evolve.report.names import compact, short
from evolve.report.tree import module_tree
from evolve.structure import latency as latency_module
from evolve.structure.latency import latency
from evolve.testing.zoo import ZOO

MODELS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, width), nn.Linear(3, width), nn.Linear(width, 2)

    def forward(self, a, b):
        return self.out(self.left(a) + self.right(b))

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.embed(x))

class Loud(Tokens):
    def __init__(self):
        super().__init__()
        print("made")

    def forward(self, x):
        print("called")
        return super().forward(x)

three = 3
"""


def run(*args, columns=100):
    return CliRunner().invoke(app, ["inspect", *args], env={"COLUMNS": str(columns)})


def as_json(*args):
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def text(renderable, width=100):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Models of the user's own in the folder that the command runs in."""
    (tmp_path / "inspected_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "inspected_models"


@pytest.fixture(scope="module")
def simple():
    return as_json("simple_cnn")


# The facts


def test_keys_are_those_that_are_documented(simple):
    assert list(simple) == [
        *("version", "model", "device", "dtype", "inputs", "modules", "groups", "pins", "unreached", "operators"),
        "mutations",
    ]
    assert list(simple["modules"][0]) == [
        *("name", "class_name", "calls", "inputs", "outputs", "parameters", "flops", "activation_bytes", "latency_ms"),
        "inserted",
    ]
    assert list(simple["groups"][0]) == ["name", "size", "inner", "widening", "reason", "places"]
    assert list(simple["pins"][0]) == ["name", "size", "reason", "places"]
    assert list(simple["groups"][0]["places"][0]) == ["name", "axis", "length", "reads"]
    assert list(simple["operators"][0]) == ["name", "preserves", "sites", "objection"]


def test_modules_with_shapes_and_costs(simple):
    modules = {module["name"]: module for module in simple["modules"]}
    assert list(modules) == [name for name, _ in evolve.build_model("simple_cnn").named_modules()]
    assert simple["inputs"] == [[2, 3, 32, 32]]
    convolution = modules["features.4"]
    assert (convolution["class_name"], convolution["calls"]) == ("Conv2d", 1)
    assert convolution["inputs"] == [[2, 32, 16, 16]]
    assert convolution["outputs"] == [[2, 64, 16, 16]]
    assert convolution["parameters"] == 32 * 64 * 9 + 64
    assert convolution["flops"] == 2 * 32 * 64 * 9 * 16 * 16
    assert convolution["activation_bytes"] == 64 * 16 * 16 * 4
    assert modules[""]["parameters"] == sum(p.numel() for p in evolve.build_model("simple_cnn").parameters())
    assert modules[""]["flops"] == sum(m["flops"] for n, m in modules.items() if n in ("features", "classifier"))
    assert modules[""]["latency_ms"] is None


def test_groups_and_pins(simple):
    groups = {group["name"]: group for group in simple["groups"]}
    assert {name: group["size"] for name, group in groups.items()} == {
        "features.0": 32,
        "features.4": 64,
        "features.8": 128,
        "classifier.1": 256,
    }
    assert {group["widening"] for group in groups.values()} == {"any_copy"}
    last = groups["features.8"]["places"]
    assert {"name": "features.8.weight", "axis": 0, "length": 128, "reads": False} in last
    assert {"name": "classifier.1.weight", "axis": 1, "length": 8192, "reads": True} in last
    pins = {(pin["places"][0]["name"], pin["places"][0]["axis"]): pin["reason"] for pin in simple["pins"]}
    assert pins["features.0.weight", 1] == "an axis of the model's input"
    assert pins["classifier.4.weight", 0] == "an axis of the model's output"
    assert Counter(pins.values())["a spatial size"] == 7  # of three kernels two each; one of the two of the map


def test_widening_says_whole_copies_or_none_and_why():
    torch.manual_seed(0)
    model = ZOO["grouped_queries"].build()
    facts = inspect_model(model, "decoder", shapes=[(4, 6)])
    found = {group.name: group for group in facts.groups}
    assert (found["embed"].size, found["embed"].widening) == (16, "whole_copies")
    assert "mean" in found["embed"].reason or "norm" in found["embed"].reason
    assert (found["gate"].size, found["gate"].widening, found["gate"].reason) == (24, "any_copy", "")
    mixing = nn.Sequential(nn.Linear(3, 6), nn.Softmax(-1), nn.Linear(6, 2))
    (group,) = inspect_model(mixing, "mixing").groups
    assert (group.name, group.widening) == ("0", "none")
    assert "softmax" in group.reason
    assert f"   6  not exactly       0 ({group.reason})" in text(inspection_view(inspect_model(mixing, "mixing")))


def test_sites_are_those_that_evolve_names(simple):
    model = evolve.build_model("simple_cnn")
    found = {operator["name"]: operator for operator in simple["operators"]}
    assert list(found) == operators.names()
    for name, operator in found.items():
        assert operator["sites"] == evolve.sites(model, name), name
        assert operator["objection"] == ""
    assert (found["widen"]["preserves"], found["narrow"]["preserves"]) == ("exact", "no")


def test_what_is_not_called_and_what_is_called_twice():
    torch.manual_seed(0)
    facts = inspect_model(ZOO["control_flow"].build(), "flow", shapes=[(4, 6)])
    modules = {module.name: module for module in facts.modules}
    assert facts.unreached == ["unused.weight", "unused.bias"]
    assert (modules["unused"].calls, modules["unused"].outputs, modules["unused"].flops) == (0, [], 0)
    twice = nn.Sequential(layer := nn.Linear(3, 3), nn.ReLU(), layer)
    (called,) = [module for module in inspect_model(twice, "twice").modules if module.name == "0"]
    assert (called.calls, called.flops, called.parameters) == (2, 2 * 2 * 9, 12)
    lines = text(inspection_view(facts))
    assert any(re.search(r"unused Linear +not called +6 +· +·", line) for line in lines)
    at = next(number for number, line in enumerate(lines) if "this input does not reach it" in line)
    assert lines[at].split()[0] == "2"
    assert lines[at + 1].strip() == "unused.weight, unused.bias"


def test_a_container_that_is_not_called_costs_what_its_children_cost():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    facts = inspect_model(Listed(), "listed", measure=True)
    modules = {module.name: module for module in facts.modules}
    assert modules["layers"].calls == 0
    assert modules["layers"].flops == modules[""].flops == 2 * 2 * 16
    assert modules["layers"].activation_bytes == 2 * 16
    assert modules["layers"].latency_ms == modules["layers.0"].latency_ms + modules["layers.1"].latency_ms


def test_the_model_and_the_generators_are_left_as_they_were():
    class Drawing(MutationOperator):
        def plan(self, model, site, probe):
            return {"drawn": float(torch.rand(()))}

        def apply(self, model, site, plan):
            raise AssertionError

    torch.manual_seed(0)
    model = ZOO["chain"].build().train()
    before = fingerprint(model)
    operators.register("drawing_here")(Drawing)
    try:
        facts = inspect_model(model, "chain", measure=True)
    finally:
        operators.unregister("drawing_here")
    assert "features.0" in next(found for found in facts.operators if found.name == "drawing_here").sites
    assert fingerprint(model) == before


def test_inputs_take_the_type_of_the_model():
    facts = inspect_model(nn.Linear(3, 2).double(), "linear", shapes=[(4, 3)])
    assert (facts.dtype, facts.device, facts.inputs) == ("float64", "cpu", [(4, 3)])
    assert facts.modules[0].activation_bytes == 2 * 8


def test_an_operator_that_fails_or_needs_options_is_shown_with_the_reason():
    class Broken(MutationOperator):
        name = "broken_here"

        def plan(self, model, site, probe):
            raise ValueError("no such luck")

        def apply(self, model, site, plan):
            raise AssertionError

    class Needy(Broken):
        name = "needy_here"

        class Options(OperatorOptions):
            rank: int

    operators.register("broken_here")(Broken)
    operators.register("needy_here")(Needy)
    try:
        facts = inspect_model(nn.Linear(3, 2), "linear")
    finally:
        operators.unregister("broken_here")
        operators.unregister("needy_here")
    found = {operator.name: operator for operator in facts.operators}
    assert len(found) == len(operators.names()) + 2
    assert found["needy_here"].preserves == "depends on options"
    assert "rank" in found["needy_here"].objection
    model = nn.Sequential(nn.Linear(3, 2))
    operators.register("broken_here")(Broken)
    try:
        broken = inspect_model(model, "chain", operator="broken_here").operators[0]
    finally:
        operators.unregister("broken_here")
    assert broken.objection == "It fails: ValueError: no such luck"
    assert broken.sites == []


def test_meta_shows_the_same_without_values(simple):
    found = as_json("simple_cnn", "--device", "meta")
    assert found.pop("device") == "meta"
    assert found == {key: value for key, value in simple.items() if key != "device"}


# The text


@pytest.mark.parametrize("width", [80, 120])
def test_text_keeps_within_the_terminal(width):
    result = run("simple_cnn", columns=width)
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert max(map(len, lines)) <= width
    assert "│ ├ 4 Conv2d             N×32×16×16 → N×64×16×16   18.5K  9.44M  65.5KB" in lines  # noqa: RUF001
    assert "What can change: 4 groups of channels, units or heads" in lines
    pins = lines.index("What cannot: 10 pinned")
    assert [line for line in lines[pins:] if re.match(r" ?\d+  a", line)] == [
        "8  a spatial size",
        "1  an axis of the model's input",
        "1  an axis of the model's output",
    ]
    kept = lines.index("  32  any copy          features.0")
    assert lines[kept + 1].strip() == "features.{0,1} → features.4"
    assert any(re.match(r"kernel +kept +3  features\.\{0,4,8\}", line) for line in lines)
    assert "What was done" not in result.stdout


def test_blocks_that_repeat_are_told_once():
    def block():
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    model = nn.Sequential(*(block() for _ in range(4)), nn.Linear(8, 2))
    lines = text(module_tree(inspect_model(model, "stack")))
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "stack Sequential",
        "├ 0 Sequential",
        "│ ├ 0 Linear",
        "│ └ 1 ReLU",
        "├ {1…3} Sequential",
        "└ 4 Linear",
    ]
    assert lines[5].split()[3:] == ["3", "more", "as", "above", "216", "384", "192B"]
    assert len(text(module_tree(inspect_model(model, "stack"), depth=1))) == 5
    assert len(text(module_tree(inspect_model(model, "stack"), depth=0))) == 2


def test_a_long_name_gives_way_to_the_figures():
    model = nn.ModuleDict({"a_name_of_more_than_thirty_letters": nn.Linear(8, 8), "b": nn.Linear(8, 2)})
    model.forward = lambda x: model["b"](model["a_name_of_more_than_thirty_letters"](x))
    lines = text(module_tree(inspect_model(model, "long")), width=60)
    assert len(lines) == 4
    assert lines[2].startswith("├ a_name_of_more_than")
    assert lines[2].split("…")[1].split() == ["N×8", "72", "128", "32B"]  # noqa: RUF001


def test_groups_alike_share_a_line_and_others_do_not():
    model = evolve.build_model("torchvision:resnet18", num_classes=10)
    lines = text(inspection_view(inspect_model(model, "resnet", shapes=[(2, 3, 32, 32)])))
    assert "  64  any copy          layer1.{0,1}.conv1" in lines
    assert " 128  any copy          layer2.{0,1}.conv1" in lines
    assert " 128  any copy          layer2.0.conv2" in lines
    assert "40  a spatial size" in lines
    at = lines.index("40  a spatial size")
    assert lines[at + 1].split() == [
        "conv1.weight[{2,3}],",
        "layer{1…4}.{0,1}.conv{1,2}.weight[{2,3}],",
    ]
    assert lines[at + 2].strip() == "layer{2…4}.0.downsample.0.weight[{2,3}]"


def test_operators_with_the_same_sites_share_a_line():
    lines = text(inspection_view(inspect_model(evolve.build_model("simple_cnn"), "simple_cnn")))
    assert any(line.startswith("branch, deepen, residual  kept") for line in lines)


def test_one_operator_shows_every_site():
    facts = inspect_model(evolve.build_model("simple_cnn"), "simple_cnn", operator="widen")
    assert [operator.name for operator in facts.operators] == ["widen"]
    lines = text(sites_view(facts))
    at = lines.index("widen: 4 sites  kept")
    assert [line.split() for line in lines[at + 2 :]] == [
        ["features.0", "32"],
        ["features.4", "64"],
        ["features.8", "128"],
        ["classifier.1", "256"],
    ]
    result = run("simple_cnn", "--operator", "kernel")
    assert [line.split() for line in result.stdout.splitlines()[-3:]] == [
        ["features.0", "Conv2d"],
        ["features.4", "Conv2d"],
        ["features.8", "Conv2d"],
    ]


def test_compact_names_stand_for_all_of_them_and_no_other():
    assert compact(["conv1", "layer1.0.conv1", "layer1.1.conv1", "layer1.0.conv2", "layer1.1.conv2", "fc"]) == [
        "conv1",
        "layer1.{0,1}.conv{1,2}",
        "fc",
    ]
    assert compact(["a.0", "a.1", "a.2", "a.5"]) == ["a.{0…2,5}"]
    assert compact(["a.0.1", "a.1.0"]) == ["a.0.1", "a.1.0"]
    generator = random.Random(0)
    for _ in range(50):
        names = [f"{generator.choice('ab')}{generator.randrange(4)}.{generator.randrange(12)}" for _ in range(12)]
        assert sorted(name for term in compact(names) for name in expanded(term)) == sorted(set(names))


def expanded(term):
    parts = re.split(r"(\{[^}]*\})", term)
    choices = [numbers(part[1:-1]) if part.startswith("{") else [part] for part in parts]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def numbers(braces):
    found = []
    for part in braces.split(","):
        first, _, last = part.partition("…")
        found += range(int(first), int(last or first) + 1)
    return map(str, found)


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "·"), (40, "40"), (999, "999"), (1024, "1.02K"), (999_700, "1M"), (11_689_512, "11.7M"), (0.0357, "0.0357")],
)
def test_short_numbers(number, words):
    assert short(number) == words


# What can be named


def test_import_paths_options_and_shapes(own):
    result = run(f"{own}:Two")
    assert result.exit_code == 1
    assert "No input is known that a Two runs on" in result.stderr
    assert "--shape" in result.stderr
    found = as_json(f"{own}:Two", "--option", "width=10", "--shape", "2,4", "--shape", "2,3")
    assert found["inputs"] == [[2, 4], [2, 3]]
    assert [(group["name"], group["size"]) for group in found["groups"]] == [("left", 10)]
    tokens = as_json(f"{own}.Tokens", "--shape", "3,7")
    assert tokens["modules"][0]["outputs"] == [[3, 7, 3]]


def test_what_a_model_prints_is_not_part_of_the_answer(own):
    assert as_json("inspected_models:Loud")["modules"][0]["parameters"] == 67
    result = run("inspected_models:Loud")
    assert "called" not in result.stdout
    assert "made\n" in result.stderr
    assert "called\n" in result.stderr


@pytest.mark.parametrize("more", ["", "search: {operators: [widen], budget: {evaluations: 9}}\n"])
def test_a_configuration_of_a_run_or_a_search(tmp_path, more):
    file = tmp_path / "config.yaml"
    file.write_text(f"model: {{name: simple_cnn, options: {{num_classes: 7}}}}\ndata: digits\n{more}")
    found = as_json(str(file), "--option", "in_channels=1")
    assert found["modules"][0]["outputs"] == [[2, 7]]
    assert found["inputs"] == [[2, 1, 32, 32]]


def test_a_run_folder_shows_the_evolved_model_and_what_was_inserted(tmp_path):
    config = {
        "model": {"name": "small_resnet", "options": {"num_classes": 10, "in_channels": 1, "width": 4}},
        "data": {"name": "digits", "batch_size": 64},
        "training": {"epochs": 2, "device": "cpu"},
        "evolution": {
            "schedule": {"name": "every", "options": {"epochs": 1}},
            "operators": [{"name": "deepen", "sites": ["stage2"]}],
        },
        "output": {"dir": str(tmp_path / "run")},
    }
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(config))
    assert CliRunner().invoke(app, ["run", str(file)]).exit_code == 0
    found = as_json(str(tmp_path / "run"))
    modules = {module["name"]: module for module in found["modules"]}
    assert found["inputs"][0][1:] == [1, 8, 8]  # as the data had it, not as the first layer would allow
    assert modules["stage2"]["inserted"] == ["evolved.deepen_0"]
    assert modules["evolved"]["flops"] == modules["evolved.deepen_0"]["flops"] > 0
    (record,) = found["mutations"]
    assert (record["operator"], record["site"], record["status"]) == ("deepen", "stage2", "applied")
    assert modules[""]["parameters"] == record["params_after"] > record["params_before"]
    lines = [line.rstrip() for line in run(str(tmp_path / "run"), columns=200).stdout.splitlines()]
    at = next(number for number, line in enumerate(lines) if line.startswith("├ stage2 "))
    assert lines[at + 1] == "│ + evolved.deepen_0"
    base, evolved = record["params_before"], record["params_after"]
    assert f"What was done: 1 mutation, {base:,} → {evolved:,} parameters" in lines
    assert lines[-1].startswith("  deepen at 'stage2': Inserted a residual")
    refused = run(str(tmp_path / "run"), "--option", "width=8")
    assert refused.exit_code == 1
    assert "is a run folder" in refused.stderr


def test_images_of_the_size_that_torchvision_uses():
    found = as_json("torchvision:squeezenet1_1", "--operator", "widen")
    assert found["inputs"] == [[2, 3, 224, 224]]
    assert [operator["name"] for operator in found["operators"]] == ["widen"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["simple_cn"], 2, ["'simple_cn'", "Did you mean 'simple_cnn'?", "run folder"]),
        (["runs/none"], 1, ["There is no file or folder 'runs/none'"]),
        (["none.yaml"], 2, ["none.yaml: there is no such file"]),
        (["inspected_models:Too"], 2, ["'inspected_models' has no 'Too'", "Did you mean 'Two'?"]),
        (["inspected_models:three"], 2, ["is a int, which cannot be called"]),
        (["builtins:dict"], 2, ["is part of Python itself and makes no model"]),
        (["torchvision:resnet19"], 2, ["Unknown torchvision model 'resnet19'", "Did you mean"]),
        (["."], 1, ["No whole checkpoint", "run folder"]),
        (["simple_cnn", "--option", "classes=3"], 1, ["unknown option 'classes'", "num_classes"]),
        (["simple_cnn", "--option", "num_classes"], 2, ["command line", "'num_classes' is not a setting"]),
        (["simple_cnn", "--option", "num_classes=[3"], 2, ["command line", "num_classes"]),
        (["simple_cnn", "--shape", "1x3"], 2, ["--shape 1x3 is not a shape", "2,3,224,224"]),
        (["simple_cnn", "--shape", "0,3"], 2, ["--shape 0,3 is not a shape"]),
        (["simple_cnn", "--shape", "2,4,32,32"], 1, ["fails on inputs of shape (2, 4, 32, 32)", "--shape"]),
        (["simple_cnn", "--operator", "wide"], 2, ["Unknown operator 'wide'", "Did you mean 'widen'?"]),
        (["simple_cnn", "--device", "nowhere"], 1, ["Device 'nowhere' is not available"]),
        (["simple_cnn", "--device", "meta", "--latency"], 1, ["meta device computes nothing"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0] in ("simple_cnn",) else None,
)
def test_bad_input_is_told(own, arguments, code, words):
    result = run(*arguments)
    assert result.exit_code == code
    assert isinstance(result.exception, SystemExit)
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""


# Latency


class Clock:
    """A clock that only moves when somebody says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Slow(nn.Module):
    """Takes so many seconds, one after the other in its calls."""

    def __init__(self, clock, *seconds):
        super().__init__()
        self.clock, self.seconds = clock, itertools.cycle(seconds)

    def forward(self, x):
        self.clock.now += next(self.seconds)
        return x


def test_latency_is_the_median_of_each_module(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency_module, "time", clock)
    twice = Slow(clock, 2.0)
    inner = nn.Sequential(Slow(clock, 3.0), twice)
    model = nn.ModuleDict({"inner": inner, "jumpy": Slow(clock, 1.0, 1.0, 1.0, 40.0), "idle": Slow(clock, 9.0)})
    model.forward = lambda x: twice(model["jumpy"](model["inner"](x)))
    found = latency(model, torch.zeros(1))
    assert found == {"inner": 5.0, "inner.0": 3.0, "inner.1": 4.0, "jumpy": 1.0, "": 8.0}


def test_latency_survives_what_a_forward_catches(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency_module, "time", clock)

    class Raising(nn.Module):
        def forward(self, x):
            clock.now += 5.0
            raise ValueError("not for me")

    class Catching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Raising(), Slow(clock, 1.0)

        def forward(self, x):
            try:
                return self.first(x)
            except ValueError:
                return self.second(x)

    assert latency(Catching(), torch.zeros(1)) == {"first": 5.0, "second": 1.0, "": 6.0}


def test_latency_waits_for_an_accelerator_before_it_reads_the_clock(monkeypatch):
    waited = []
    monkeypatch.setattr(latency_module, "devices_of", lambda model: [torch.device("cpu"), torch.device("cuda", 1)])
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    latency(nn.Linear(2, 2), torch.zeros(1, 2), repetitions=3)
    assert waited == [torch.device("cuda", 1)] * (2 * (2 + 3) + 2 * 3)  # each run of the whole, each of the layer


def test_latency_refuses_what_it_cannot_run():
    with pytest.raises(NotApplicable, match="meta device computes nothing"):
        latency(nn.Linear(2, 2, device="meta"))
    with pytest.raises(NotApplicable, match="fails where its latency is measured: RuntimeError"):
        latency(nn.Linear(2, 2), torch.zeros(1, 3))
    with pytest.raises(NotApplicable, match="No inputs are known"):
        latency(nn.Identity())


def test_latency_on_request(simple):
    found = as_json("simple_cnn", "--latency")
    modules = {module["name"]: module["latency_ms"] for module in found["modules"]}
    assert all(value > 0 for value in modules.values())
    assert {**found, "modules": None} == {**simple, "modules": None}
    header = next(line for line in run("simple_cnn", "--latency").stdout.splitlines() if line.startswith("module "))
    assert header.split() == ["module", "shape", "params", "FLOPs", "memory", "ms"]


def test_help_names_what_a_model_can_be():
    result = run("--help", columns=200)
    assert result.exit_code == 0
    for word in ("gpt", "torchvision:resnet50", "package.module:Class", "YAML", "run folder", "--json"):
        assert word in result.stdout
