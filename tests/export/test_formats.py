"""`evolve export`: the checkpoint that was asked for, in each format, and a word where that does not go."""

import copy

import pytest
import torch
from helpers.cli_runs import invoke, succeeds, write_config
from safetensors.torch import load_file

import evolve
from evolve.structure.inputs import as_inputs

EVOLUTION = {
    "schedule": {"name": "at", "options": {"steps": [1, 6]}},
    "operators": [{"name": "widen", "options": {"factor": 1.5}}, {"name": "residual"}],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    succeeds("run", write_config(folder, evolution=EVOLUTION))
    return folder / "run"


def exported(run, folder, to, *words):
    return succeeds("export", run, "--to", to, "--output", folder, *words)


def test_python(run, tmp_path):
    told = exported(run, tmp_path / "out", "python")
    assert "max|Δ| = 0" in told
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "model.py", "model.safetensors"]


def test_weights(run, tmp_path):
    wanted = evolve.load(run).state_dict()
    exported(run, tmp_path / "one", "state_dict")
    exported(run, tmp_path / "two", "safetensors")
    for found in (torch.load(tmp_path / "one/model.pt"), load_file(tmp_path / "two/model.safetensors")):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_checkpoint_that_was_asked_for(run, tmp_path):
    assert "epoch 1 of" in exported(run, tmp_path / "one", "safetensors", "--which", "epoch 1")
    assert "epoch 2 of" in exported(run, tmp_path / "last", "safetensors", "--which", "last")
    found = load_file(tmp_path / "one/model.safetensors")
    wanted = evolve.load(run, which=1).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_torch_export_takes_batches_of_any_size(run, tmp_path):
    exported(run, tmp_path / "out", "torch_export")
    model, x = evolve.load(run), torch.randn(5, 1, 4, 4)
    program = torch.export.load(tmp_path / "out/model.pt2").module()
    assert torch.equal(program(x), model(x))


def test_onnx(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    exported(run, tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
    model, x = evolve.load(run), torch.randn(5, 1, 4, 4)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["RUN", "--to", "pyton"], "'pyton' is not one of"),
        (["RUN", "--to", "python", "--which", "worst"], "'best', 'last' or the number"),
        (["RUN", "--to", "python", "--which", "9"], "no checkpoint of the end of epoch 9"),
        (["nowhere", "--to", "python"], "No whole checkpoint"),
        (["RUN", "--to", "huggingface"], "no model of transformers"),
        (["RUN", "--to", "onnx", "--shape", "2,5"], "of shape (2, 5)"),
    ],
)
def test_what_does_not_go_is_told(run, tmp_path, words, told):
    result = invoke("export", *(run if word == "RUN" else word for word in words), "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert told in " ".join(result.output.replace("│", "").split())
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(run, tmp_path):
    (tmp_path / "mine").write_text("x")
    result = invoke("export", run, "--to", "safetensors", "--output", tmp_path)
    assert result.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_transformers_loads(tmp_path):
    transformers = pytest.importorskip("transformers")
    from evolve.export.huggingface import write_huggingface
    from evolve.integrations.pretrained import from_pretrained

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=16, **sizes)
    model, x = transformers.BertForSequenceClassification(config).eval(), torch.arange(12).reshape(2, 6)
    base = copy.deepcopy(config)
    site = "bert.encoder.layer.0.intermediate.dense"
    record = evolve.mutate(model, "widen", site=site, example_inputs=x, strict=True).record
    assert write_huggingface(model, tmp_path, [record], base, as_inputs(model, x)) <= 1e-6
    assert from_pretrained(tmp_path).get_submodule(site).out_features == 48
