"""Models of timm and transformers by name, built from a configuration alone."""

import socket

import pytest
import torch

from evolve import load_config
from evolve.config import ConfigError
from evolve.errors import EvolveError, UnknownNameError
from evolve.loading import open_model
from evolve.models import build_model, find_model, libraries
from evolve.models.libraries import usual_shape

BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 30}


@pytest.fixture(autouse=True)
def _without_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("A model was to be downloaded.")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_timm():
    pytest.importorskip("timm")
    model = build_model("timm:resnet18", num_classes=5, in_chans=1)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    assert usual_shape("timm:vit_tiny_patch16_224") == (3, 224, 224)
    assert open_model("timm:resnet18").shapes == [(2, 3, 224, 224)]
    with pytest.raises(UnknownNameError, match=r"Unknown timm model 'resnt18'\. Did you mean 'resnet18'"):
        find_model("timm:resnt18")
    with pytest.raises(EvolveError, match=r"'checkpoint_path' is no option.*model\.weights"):
        build_model("timm:resnet18", checkpoint_path="weights.pt")


def test_huggingface():
    pytest.importorskip("transformers")
    tokens = torch.randint(30, (2, 5))
    plain = build_model("huggingface:bert", **BERT)
    assert plain(tokens).last_hidden_state.shape == (2, 5, 16)
    model = build_model("huggingface:bert", head="SequenceClassification", num_labels=3, **BERT)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model(tokens).logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            "{name: 'huggingface:bert', options: {hidden_sise: 8}}",
            ["options.hidden_sise", "Did you mean 'hidden_size'"],
        ),
        ("{name: 'huggingface:bert', options: {head: CTC}}", ["model.options.head", "expected", "MaskedLM"]),
        ("'huggingface:brt'", ["model.name", "Unknown model type 'brt'", "Did you mean 'bert'"]),
    ],
)
def test_faults_of_a_huggingface_model_name_the_key(tmp_path, model, words):
    pytest.importorskip("transformers")
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {model}\ndata: digits\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(("name", "package"), [("timm:resnet18", "timm"), ("huggingface:bert", "transformers")])
def test_a_package_that_is_not_there_is_told_with_what_to_install(tmp_path, monkeypatch, name, package):
    def missing(wanted):
        raise ImportError(f"No module named '{wanted}'")

    monkeypatch.setattr(libraries.importlib, "import_module", missing)
    file = tmp_path / "run.yaml"
    file.write_text(f"model: '{name}'\ndata: digits\n")
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        load_config(file)
