"""Operators of the user's own: by import path, by entry point, as a class or a function, resumed and replayed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import evolve
from evolve.config import ConfigError
from evolve.errors import UnknownNameError
from evolve.evolver.evolver import Evolver
from evolve.evolver.run_config import load_config
from evolve.lineage import Lineage
from evolve.operators import operators
from evolve.testing import check_operator

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "own_model.yaml"


def test_the_example_runs_resumes_and_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = [f"output.dir={tmp_path / 'run'}", "training.epochs=7", "training.device=cpu"]
    run = Evolver.from_config(load_config(CONFIG, overrides))
    result = run.run()
    assert result.applied == 2
    applied = {record.operator for record in run.lineage}
    assert applied == {"damped_layer", "deepen"}
    for record in run.lineage:
        assert record.max_abs_diff == 0.0
    again = Evolver.from_config(load_config(tmp_path / "run" / "config.yaml")).restore()
    for one, other in zip(again.model.state_dict().items(), run.model.state_dict().items(), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])
    with pytest.raises(ConfigError, match="trust=True"):
        evolve.load(tmp_path / "run")
    model = evolve.load(tmp_path / "run", trust=True)
    x = run.val_data.example(5)
    with torch.no_grad():
        assert torch.equal(model(x), run.model.eval()(x))


def test_loading_without_the_plugin_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    run = Evolver.from_config(load_config(CONFIG, [f"output.dir={tmp_path / 'run'}", "training.epochs=4"]))
    run.run()
    records = Lineage.read(tmp_path / "run" / "lineage.jsonl")
    plugin = operators.get("damped_layer")
    if not any(r.operator == "damped_layer" for r in records):
        pytest.skip("the policy did not choose the plugin")
    operators.unregister("damped_layer")
    try:
        from examples.own_code import SpiralNet

        with pytest.raises(UnknownNameError, match=r"Unknown operator 'damped_layer'.*import or list its plugin"):
            evolve.replay(SpiralNet(), records)
    finally:
        operators.register("damped_layer")(plugin)


def test_the_example_operator_keeps_the_contract(monkeypatch):
    monkeypatch.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    import examples.own_code  # noqa: F401 - registers the operator

    check_operator("damped_layer")


@pytest.fixture
def register():
    names = []

    def decorate(name, preserves="no"):
        names.append(name)
        return evolve.operator(name, preserves=preserves)

    yield decorate
    for name in names:
        operators.unregister(name)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def test_a_function_gets_the_care_of_a_built_in_operator(register):
    @register("wider")
    def wider(model, site, context):
        """Makes the hidden layer of `net` wider."""
        more = context.options.get("more", 2)
        old = model[0]
        model[0] = nn.Linear(4, old.out_features + more)
        model[2] = nn.Linear(old.out_features + more, 3)
        return True, f"{more} units more."

    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    nn.functional.cross_entropy(model(torch.randn(6, 4)), torch.zeros(6, dtype=torch.long)).backward()
    optimizer.step()
    result = evolve.mutate(
        model, "wider", site="0", optimizer=optimizer, example_inputs=torch.randn(6, 4), seed=3, more=5
    )
    assert tuple(result) == (True, result.message)
    assert "5 units more." in result.message
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in held)
    copy = net()
    evolve.replay(copy, [result.record])
    for key, value in model.state_dict().items():
        assert torch.equal(copy.state_dict()[key], value), key  # same seed, same weights


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        ((False, "No room here."), "not_applicable", "No room here."),
        (None, "failed", "has to return (bool, str)"),
        ((True, "Said nothing of a change."), "rejected", "declares to preserve the function"),
    ],
)
def test_a_function_is_held_to_its_word(register, answer, status, words):
    @register("breaks_its_word", preserves="exact")
    def breaks_its_word(model, site, context):
        with torch.no_grad():
            model[0].weight.add_(1.0)
        return answer

    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = evolve.mutate(model, "breaks_its_word", site="0", example_inputs=torch.randn(6, 4))
    assert (result.status, result.success) == (status, False)
    assert words in result.message
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def installed(folder, code, *points):
    """Puts a package `someones_package` with entry points for operators into a folder."""
    package = folder / "someones_package"
    info = folder / "someones_package-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: someones-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[evolve.operators]", *points, ""]))


def run_with(folder, code):
    """Runs code in another process that has the package, and returns what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys; sys.path.insert(0, {str(folder)!r})\n{code}"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_an_installed_package_joins_by_its_entry_point(tmp_path):
    code = (
        "import evolve\n"
        "from evolve.operators import Change, MutationOperator\n"
        "class Nothing(MutationOperator):\n"
        "    'Changes nothing.'\n"
        "    name = 'nothing'\n    preserves = 'exact'\n"
        "    def apply(self, model, site, plan):\n        return Change('Nothing.', 0)\n"
        "@evolve.operator('function', preserves='exact')\n"
        "def anything(model, site, context):\n    return True, 'Done.'\n"
    )
    installed(tmp_path, code, "nothing = someones_package:Nothing", "function = someones_package:anything")
    answers = run_with(
        tmp_path,
        "import torch, evolve\nmodel = torch.nn.Sequential(torch.nn.Linear(2, 2))\n"
        "made = [evolve.mutate(model, name, site='0', example_inputs=torch.randn(3, 2))"
        " for name in ('nothing', 'function')]\n"
        "print(json.dumps([[one.success, one.message] for one in made]))",
    )
    assert answers == [[True, "Nothing. max|Δ| = 0."], [True, "Done. max|Δ| = 0."]]


def test_an_entry_point_that_is_no_operator_is_named(tmp_path):
    installed(
        tmp_path,
        "def anything(model, site, context): ...\n",
        "other = someones_package:anything", "broken = someones_package:nothing",
    )  # fmt: skip
    other, broken, states = run_with(
        tmp_path,
        "from pathlib import Path\nfrom evolve.errors import EvolveError\nfrom evolve.operators import operators\n"
        "from evolve.report.doctor import examine\n"
        "told = []\n"
        "for name in ('other', 'broken'):\n"
        "    try:\n        operators.get(name)\n"
        "    except EvolveError as error:\n        told.append(str(error))\n"
        "states = [one.state for one in examine(Path.cwd()) if one.name in ('plugin other', 'plugin broken')]\n"
        "print(json.dumps([*told, states]))",
    )
    assert "'other' of an installed package is no operator: someones_package:anything is no class" in other
    assert "'broken' of an installed package cannot be loaded from someones_package:nothing: AttributeError" in broken
    assert states == ["broken", "broken"]
