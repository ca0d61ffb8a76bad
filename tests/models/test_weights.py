"""Initial weights of a model from a file."""

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

import evolve
from evolve import Evolver, load_config
from evolve.errors import EvolveError
from evolve.models import GPT, build_model, load_weights


def net(hidden=4):
    return nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 2))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_what_torch_saved(tmp_path, wrap):
    source, model = net(), net()
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")
    assert same(source, model)


def test_safetensors_and_a_tied_weight_under_one_name(tmp_path):
    source, model = (GPT(vocab_size=11, width=8, depth=1, heads=2, context=8) for _ in range(2))
    save_model(source, tmp_path / "weights.safetensors")
    load_weights(model, tmp_path / "weights.safetensors")
    assert same(source, model)
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("0.bias"), ["1 missing (0.bias)"]),
        (lambda s: s.update(extra=torch.zeros(1)), ["1 unexpected (extra)"]),
        (lambda s: s.update({"0.bias": torch.zeros(5)}), ["'0.bias' has shape (5,) in the file and (4,) in the model"]),
        (
            lambda s: [s.update({f"module.{k}": s.pop(k)}) for k in list(s)],
            ["4 missing", "4 unexpected", "all of which begin with 'module.'"],
        ),
    ],
)
def test_what_does_not_fit_is_told_and_changes_nothing(tmp_path, change, words):
    model, state = net(), dict(net().state_dict())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    change(state)
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(EvolveError) as caught:
        load_weights(model, tmp_path / "weights.safetensors")
    assert [word for word in words if word not in str(caught.value)] == []
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_files_that_hold_no_weights(tmp_path):
    with pytest.raises(EvolveError, match=r"no file '.*nowhere\.pt'"):
        load_weights(net(), tmp_path / "nowhere.pt")
    torch.save(net(), tmp_path / "module.pt")
    with pytest.raises(EvolveError, match=r"cannot be read as weights: .*Save `model.state_dict\(\)`"):
        load_weights(net(), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(EvolveError, match="holds no state_dict"):
        load_weights(net(), tmp_path / "list.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(EvolveError, match="cannot be read as weights"):
        load_weights(net(), tmp_path / "broken.safetensors")


def test_a_run_begins_with_them(tmp_path):
    options = {"in_features": 64, "hidden": [8], "num_classes": 10}
    torch.manual_seed(7)
    source = build_model("mlp", **options)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {{name: mlp, options: {options}, weights: {tmp_path / 'weights.pt'}}}\ndata: digits\n")
    run = tmp_path / "run"
    evolver = Evolver.from_config(load_config(file, [f"output.dir={run}", "training.steps=2", "training.device=cpu"]))
    assert same(evolver.model, source)
    evolver.run()
    (tmp_path / "weights.pt").unlink()
    assert same(evolve.load(run), evolver.model)
