"""Built-in models and how they are found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evolve.errors import EvolveError, UnknownNameError
from evolve.models import SimpleCNN, build_model, find_model, models, size_faults


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "shape", "params"),
    [
        ("simple_cnn", {}, (3, 32, 32), 2_193_674),
        ("simple_cnn", {"in_channels": 1, "image_size": 8}, (1, 8, 8), 227_018),
        ("small_resnet", {}, (3, 32, 32), 78_042),
        ("small_resnet", {"blocks": [3, 3, 3]}, (3, 32, 32), 272_474),
        ("small_resnet", {"in_channels": 1, "width": 4, "blocks": [2]}, (1, 8, 8), 702),
        ("mlp", {"in_features": 64, "hidden": [32, 16], "num_classes": 10}, (1, 8, 8), 2_778),
        ("mlp", {"in_features": 64, "hidden": [], "num_classes": 10}, (64,), 650),
    ],
)
def test_built_in_models_have_their_size_and_output(name, options, shape, params):
    model = build_model(name, **options)
    assert count(model) == params
    assert model(torch.randn(2, *shape)).shape == (2, 10)


def test_simple_cnn_features_shape_and_too_small_images():
    assert SimpleCNN().features(torch.randn(2, 3, 32, 32)).shape == (2, 128, 8, 8)
    with pytest.raises(EvolveError, match="at least 4, not 3"):
        SimpleCNN(image_size=3)


def test_small_resnet_refuses_empty_stages():
    with pytest.raises(EvolveError, match="has to be at least 1"):
        build_model("small_resnet", blocks=[1, 0])


def test_registry_names():
    assert {"mlp", "simple_cnn", "small_resnet"} <= set(models.names())


def test_torchvision_and_import_paths():
    pytest.importorskip("torchvision")
    assert count(build_model("torchvision:squeezenet1_1", num_classes=10)) == 727_626
    assert find_model("evolve.models.simple_cnn:SimpleCNN") is SimpleCNN
    assert find_model("evolve.models.SimpleCNN") is SimpleCNN


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simple_cn", "Unknown model 'simple_cn'. Did you mean 'simple_cnn'"),
        ("torchvision:resnet81", "Unknown torchvision model 'resnet81'. Did you mean 'resnet"),
        (
            "no_such_package.nets:Net",
            "cannot import 'no_such_package.nets' (ModuleNotFoundError: No module named 'no_such_package')",
        ),
        ("evolve.models:SimpleCN", "'evolve.models' has no 'SimpleCN'. Did you mean 'SimpleCNN'"),
        ("evolve.models:", "neither a known name nor an import path 'module:name'"),
        ("math:pi", "is part of Python itself"),
        ("helpers.misfits:FEATURES", "is a int, which cannot be called"),
    ],
)
def test_unknown_names_say_what_to_do(name, message):
    with pytest.raises(UnknownNameError) as caught:
        find_model(name)
    assert message in str(caught.value)


def test_wrong_options_and_results_are_told():
    with pytest.raises(EvolveError, match=r"Model 'simple_cnn': unknown option.*Did you mean 'num_classes'"):
        build_model("simple_cnn", num_clases=3)
    with pytest.raises(EvolveError, match=r"built a tuple, not an nn\.Module"):
        build_model("helpers.misfits:no_module")


@pytest.mark.parametrize(
    ("name", "options", "place"),
    [
        ("mlp", {"in_features": 4, "hidden": [8, 0], "num_classes": 2}, ("hidden", 1)),
        ("mlp", {"in_features": 0, "hidden": [], "num_classes": 2}, ("in_features",)),
        ("small_resnet", {"width": -1}, ("width",)),
        ("gpt", {"depth": 0}, ("depth",)),
        ("simple_cnn", {"num_classes": 0}, ("num_classes",)),
    ],
)
def test_sizes_below_1_are_faults_of_their_keys(name, options, place):
    ((path, message),) = size_faults(find_model(name), options)
    assert path == place
    assert message.startswith(f"'{place[0]}' has to be at least 1; found ")
    with pytest.raises(EvolveError, match="has to be at least 1"):
        build_model(name, **options)


def test_numbers_of_other_models_and_other_kinds_are_not_sizes():
    assert size_faults(find_model("simple_cnn"), {"dropout": 0}) == []
    assert size_faults(find_model("torch.nn:Dropout"), {"p": 0}) == []
