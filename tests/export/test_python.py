"""Plain PyTorch source of evolved models: the same outputs, no evolve, nothing for a linter to find."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.exports import loaded_without_evolve
from torch import nn

import evolve
from evolve.errors import MisfitError
from evolve.testing import zoo

IMAGES = (2, 3, 8, 8)
CASES = {
    "cnn": (
        ("simple_cnn", {"image_size": 8, "num_classes": 4}),
        IMAGES,
        [
            ("widen", "features.4", {}),
            ("residual", "features", {}),
            ("residual", "features.4:7", {}),
            ("deepen", "features.8", {}),
            ("attention", "features.5", {}),
            ("swap", "features.2", {}),
            ("residual", "evolved.deepen_0.conv1", {}),
            ("kernel", "features.0", {}),
            ("remove", "features.9", {"preserves": "no"}),
        ],
    ),
    "unet": (("unet", {"width": 4, "depth": 1}), IMAGES, [("branch", "down.0", {}), ("dropout", "bottom", {})]),
    "gpt": (
        ("gpt", {"width": 8, "depth": 2, "heads": 2, "context": 6, "vocab_size": 11}),
        (2, 6),
        [
            ("stack", "blocks.0", {}),
            ("widen", "blocks.1.mlp.0", {}),
            ("attention", "blocks.2", {}),
            ("residual", "head", {}),
        ],
    ),
    "chain": (
        ("zoo_models.images:Chain", {}),
        IMAGES,
        [("narrow", "features.0", {"factor": 0.5}), ("branch", "features.4", {}), ("dropout", "features", {})],
    ),
    "named_alike": (("zoo_models.images:Residual", {}), IMAGES, [("deepen", "body.0", {}), ("widen", "stem", {})]),
    "deeper": (
        ("zoo_models.images:staged", {}),
        IMAGES,
        [("residual", "2:4", {}), ("stack", "*", {}), ("widen", "4.conv1", {}), ("stack", "2", {})],
    ),
    "shallower": (("zoo_models.images:staged", {}), IMAGES, [("stack", "3", {}), ("remove", "2", {"preserves": "no"})]),
    "past": (
        ("zoo_models.tokens:Causal", {}),
        (2, 3, 8),
        [("kernel", "near", {}), ("branch", "head", {}), ("attention", "far", {}), ("deepen", "near", {})],
    ),
    "tied": (
        ("zoo_models.tokens:Transformer", {}),
        (2, 6),
        [("widen", "block.linear1", {}), ("swap", "block.norm1", {}), ("branch", "head", {})],
    ),
    "two_names": (("zoo_models.vectors:Shared", {}), (2, 6), [("widen", "first", {}), ("deepen", "out", {})]),
    "parametrised": (("zoo_models.images:Parametrised", {}), IMAGES, [("residual", "mid", {}), ("widen", "mid", {})]),
}


def batch(shape):
    torch.manual_seed(1)
    return torch.randn(shape) if len(shape) != 2 or shape[1] != 6 else torch.arange(12).reshape(shape) % 11


def awake(model):
    """Moves the weights, so that no gate is zero: a block that was left out would be seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A package of models that are not evolve's, and all cases exported beside it."""
    folder = tmp_path_factory.mktemp("exports")
    package = folder / "zoo_models"
    package.mkdir()
    for name in ("images", "tokens", "vectors"):
        shutil.copy(Path(zoo.__file__).with_name(f"{name}.py"), package)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def found(folder):
    for name, ((builder, options), shape, mutations) in CASES.items():
        torch.manual_seed(0)
        model = evolve.build_model(builder, **options)
        x = batch(shape) if not name.startswith("two_names") else torch.randn(shape)
        for operator, site, settings in mutations:
            evolve.mutate(model, operator, site=site, example_inputs=x, strict=True, **settings)
        awake(model).eval()
        exported = evolve.export_model(
            model, to="python", output=folder / name, built_by=builder, build_options=options, example_inputs=x
        )
        assert exported.max_abs_diff <= 1e-6
        with torch.no_grad():
            torch.save(((x,), model(x)), folder / f"{name}.pt")
    return loaded_without_evolve(folder)


@pytest.mark.parametrize("name", CASES)
def test_the_same_without_evolve(found, name):
    apart, moved, scripted = found[name]
    assert apart <= 1e-6
    assert moved > 0
    assert scripted == (name not in ("parametrised", "tied"))


def test_a_linter_finds_nothing(found, folder):
    files = [folder / name / "model.py" for name in CASES]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert not any("evolve." in file.read_text() or "import evolve" in file.read_text() for file in files)


def test_what_is_read(found, folder):
    text = (folder / "named_alike" / "model.py").read_text()
    assert "from zoo_models.images import Residual as BaseResidual" in text
    assert "model.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)" in text
    assert "nn.Conv2d(3, 32, 5, padding=2)," in (folder / "cnn" / "model.py").read_text()
    assert "model.head.layer.weight = model.embed.weight" in (folder / "gpt" / "model.py").read_text()


class Local(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.first = layer

    def forward(self, x):
        return self.first(x)


def test_what_cannot_be_built_is_refused_before_anything_is_written(tmp_path):
    class Inner(nn.Linear):
        pass

    x = torch.randn(2, 4)
    with pytest.raises(MisfitError, match=r"inside a function.*Move it to a module"):
        evolve.export_model(Inner(4, 3), to="python", output=tmp_path / "one", example_inputs=x)
    with pytest.raises(MisfitError, match=r"layer.*built_by="):
        evolve.export_model(Local(nn.Linear(4, 3)), to="python", output=tmp_path / "one", example_inputs=x)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_passed_stays_as_it_is(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).train()
    evolve.mutate(model, "deepen", site="0", example_inputs=torch.randn(2, 4), strict=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evolve.export_model(model, to="python", output=tmp_path / "out")
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "Residual(" in (tmp_path / "out" / "model.py").read_text()


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(4, 8), nn.Linear(8, 3)
        self.scales = nn.ParameterList([torch.rand(8), torch.rand(8)])
        self.named = nn.ParameterDict({"a-b": torch.rand(8)})

    def forward(self, x):
        return self.out(self.first(x) * self.scales[0] + self.scales[1] * self.named["a-b"])


def test_parameters_in_lists_and_dicts(tmp_path):
    model = Scaled()
    model.scales[1].requires_grad_(False)
    model.named["a-b"] = model.scales[0]
    exported = evolve.export_model(model, to="python", output=tmp_path / "out", example_inputs=torch.randn(2, 4))
    assert exported.max_abs_diff == 0
    text = (tmp_path / "out" / "model.py").read_text()
    assert "model.scales[1].requires_grad_(False)" in text
    assert 'model.named["a-b"] = model.scales[0]' in text


def test_a_model_that_does_not_take_the_batch_in_train_mode(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    evolve.mutate(model, "widen", site="0", example_inputs=torch.randn(2, 4), strict=True)
    exported = evolve.export_model(model, to="python", output=tmp_path / "out", example_inputs=torch.randn(1, 4))
    assert exported.max_abs_diff == 0


class OnGpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = evolve.build_model("gpt", width=8, depth=1, heads=2, context=6, vocab_size=11)

    def forward(self, tokens):
        return self.body(tokens)


def test_a_built_in_model_in_one_of_ones_own_is_changed_and_not_written_out(tmp_path):
    model, x = OnGpt(), batch((2, 6))
    evolve.mutate(model, "widen", site="body.blocks.0.attention.qkv", factor=2.0, example_inputs=x, strict=True)
    exported = evolve.export_model(model, to="python", output=tmp_path / "out", built_by=OnGpt, example_inputs=x)
    assert exported.max_abs_diff <= 1e-6
    assert "model.body.blocks[0].attention.heads = 4" in (tmp_path / "out" / "model.py").read_text()


Odd = type('Odd"""\nraise SystemExit\n"""', (Local,), {})


def odd(out=3):
    return Odd(nn.Linear(4, out))


def test_the_name_of_a_class_is_no_source(tmp_path):
    exported = evolve.export_model(
        odd(), to="python", output=tmp_path / "out", built_by=odd, example_inputs=torch.randn(2, 4)
    )
    assert exported.max_abs_diff == 0
    assert "SystemExit" not in (tmp_path / "out" / "model.py").read_text()
