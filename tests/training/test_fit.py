"""Model, loss and data that do not go together: told in one message with the cause, before the first step."""

import pytest
import torch
import yaml
from helpers import misfits
from torch import nn
from typer.testing import CliRunner

from evolve import Evolver, TrainingConfig
from evolve.cli import app
from evolve.config import ConfigError
from evolve.errors import DataError, MisfitError
from evolve.evolver.run_config import load_config
from evolve.training import check_data

LINEAR = {"name": "helpers.misfits:linear", "options": {}}


def model(name="linear", **options):
    return {"name": f"helpers.misfits:{name}", "options": options}


ONE = model(outputs=1)

# data, model, loss, what the message has to say
MISFITS = {
    "flat targets for a column": ("flat regression", ONE, "mse_loss", ["(8, 1)", "(8,)", "reshape(-1, 1)"]),
    "the same with l1": ("flat regression", ONE, "l1_loss", ["element by element"]),
    "the same with huber": ("flat regression", ONE, "huber_loss", ["element by element"]),
    "the same with bce": ("flat regression", ONE, "binary_cross_entropy_with_logits", ["element by element"]),
    "the same with poisson": ("flat regression", ONE, "poisson_nll_loss", ["element by element"]),
    "the same in one's own loss": (
        "flat regression", ONE, "helpers.misfits:broadcasting", ["outputs (8, 1)", "targets (8,)", "squeeze(1)"]
    ),
    "more outputs than targets": ("column regression", LINEAR, "mse_loss", ["(8, 3)", "(8, 1)", "last layer"]),
    "whole numbers for mse": ("integer regression", ONE, "mse_loss", ["floating-point targets", "int64", ".float()"]),
    "labels out of range": ("labels too high", LINEAR, "cross_entropy", ["0 to 4", "out of bounds", "5 outputs"]),
    "one label of many": ("one label too high", LINEAR, "cross_entropy", ["training data", "0 to 3", "3 outputs"]),
    "labels below zero": ("labels below zero", LINEAR, "cross_entropy", ["-1 to 1", "renumber"]),
    "labels as floats": ("float labels", LINEAR, "cross_entropy", ["class numbers", "float32", ".long()"]),
    "labels as int32": ("int32 labels", LINEAR, "cross_entropy", ["int64", "int32", ".long()"]),
    "one-hot labels": ("one-hot labels", LINEAR, "cross_entropy", ["one-hot", "argmax(1)"]),
    "labels in a column": ("column labels", LINEAR, "cross_entropy", ["squeeze(1)"]),
    "one output for classes": ("good", ONE, "cross_entropy", ["single output", "binary_cross_entropy_with_logits"]),
    "flat outputs": ("good", model("Returns", form="flat"), "cross_entropy", ["(samples, classes)"]),
    "signs for bce": ("signs", ONE, "binary_cross_entropy_with_logits", ["between 0 and 1", "between -1 and 1"]),
    "bce without a sigmoid": (
        "soft labels", LINEAR, "binary_cross_entropy", ["outputs between 0 and 1", "with_logits"]
    ),
    "NaN in inputs": (
        "nan inputs", LINEAR, "cross_entropy", ["inputs of the training data", "NaN", "6 of 192", "[5, 0]"]
    ),
    "infinite targets": ("infinite targets", ONE, "mse_loss", ["targets of the training data", "32 of 32"]),
    "inputs in double": ("double inputs", LINEAR, "cross_entropy", ["float64", "computes in float32"]),
    "inputs in whole numbers": ("integer inputs", LINEAR, "cross_entropy", ["int64", ".float()"]),
    "another width": ("other width", LINEAR, "cross_entropy", ["(8, 7)", "Check the shape"]),
    "a dict from the model": ("good", model("Returns"), "cross_entropy", ["returned a dict", "loss of your own"]),
    "a tuple in training alone": (
        "good", model("Returns", form="tuple in training"), "cross_entropy", ["returned a tuple"]
    ),
    "NaN from the model": ("good", model("Returns", form="nan"), "cross_entropy", ["before any step", "weights"]),
    "no gradient": ("good", model("Returns", form="detached"), "cross_entropy", ["No gradient reaches"]),
    "frozen": ("good", model("Frozen"), "cross_entropy", ["No gradient reaches"]),
    "a loss for each sample": ("column regression", ONE, "helpers.misfits:unreduced", ["(8, 1)", "one number"]),
    "a float as loss": ("column regression", ONE, "helpers.misfits:a_float", ["a float", "one number"]),
    "a loss that fails": ("good", LINEAR, "helpers.misfits:raising", ["KeyError", "lost", "training.loss"]),
    "too few weights": (
        "good", LINEAR, {"name": "cross_entropy", "options": {"weight": [1.0, 5.0]}},
        ["options.weight has 2 entries", "3 outputs", "one for each class"],
    ),
    "too many weights": (
        "good", LINEAR, {"name": "nll_loss", "options": {"weight": [1, 2, 3, 4]}}, ["options.weight", "3 outputs"]
    ),
    "pos_weight of another length": (
        "soft labels", LINEAR, {"name": "binary_cross_entropy_with_logits", "options": {"pos_weight": [1.0, 2.0]}},
        ["options.pos_weight", "(2,)", "one number for each output (3)"],
    ),
    "no data": ("empty", LINEAR, "cross_entropy", ["empty"]),
    "nothing held out": ("empty validation", LINEAR, "cross_entropy", ["empty"]),
    "one target too few": ("unequal", LINEAR, "cross_entropy", ["do not pair up"]),
    "ragged samples": ("ragged", LINEAR, "cross_entropy", ["(3,) and (4,)", "collate_fn"]),
    "ragged samples in a loader": ("ragged loader", LINEAR, "cross_entropy", ["different shapes", "collate_fn"]),
    "ragged targets": ("ragged targets", LINEAR, "cross_entropy", ["targets have different shapes", "collate_fn"]),
    "no targets": ("no targets", LINEAR, "cross_entropy", ["(inputs, targets)", "collate_fn"]),
    "a batch of dicts": ("dicts", LINEAR, "cross_entropy", ["(inputs, targets)", "dict"]),
    "None as target": ("None as target", LINEAR, "cross_entropy", ["collate_fn"]),
    "a sample that fails": ("broken sample", LINEAR, "cross_entropy", ["OSError", "disk on fire"]),
    "text": ("text", LINEAR, "cross_entropy", ["(inputs, targets)"]),
    "a number as data": ("a number", LINEAR, "cross_entropy", ["returned a int", "(train, val)"]),
    "one part of two": ("one part", LINEAR, "cross_entropy", ["(train, val)"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_misfits(case, tmp_path, monkeypatch):
    kind, built, loss, words = MISFITS[case]
    monkeypatch.chdir(tmp_path)
    config = {
        "model": built,
        "data": {"name": "helpers.misfits:data", "options": {"kind": kind}, "batch_size": 8},
        "training": {"epochs": 1, "device": "cpu", "loss": loss},
        "output": {"dir": "run"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(app, ["run", "config.yaml"])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def run(kind, built, loss, **changes):
    train, val = misfits.data(kind)
    training = TrainingConfig.model_validate({"epochs": 1, "device": "cpu", "loss": loss})
    return Evolver(built, train, val, training=training, progress=False, batch_size=8, **changes)


@pytest.mark.parametrize(
    ("kind", "outputs", "loss"),
    [
        ("good", 3, "cross_entropy"),
        ("soft labels", 3, "cross_entropy"),
        ("soft labels", 3, "binary_cross_entropy_with_logits"),
        ("column regression", 1, "mse_loss"),
        ("column regression", 1, "helpers.misfits:broadcasting"),
        ("flat regression", 1, "helpers.misfits:squeezing"),
        ("labels below zero", 2, {"name": "cross_entropy", "options": {"ignore_index": -1}}),
        ("good", 3, {"name": "cross_entropy", "options": {"weight": [1, 2.0, 5.0], "label_smoothing": 0.1}}),
        ("good", 3, {"name": "torch.nn:CrossEntropyLoss", "options": {"weight": [1.0, 2.0, 5.0]}}),
        ("good", 3, {"name": "multi_margin_loss", "options": {"weight": [1.0, 2.0, 5.0]}}),
        ("soft labels", 3, {"name": "binary_cross_entropy_with_logits", "options": {"pos_weight": [1.0, 2.0, 3.0]}}),
        ("soft labels", 3, {"name": "binary_cross_entropy_with_logits", "options": {"pos_weight": [2.0]}}),
        ("soft labels", 3, {"name": "mse_loss", "options": {"weight": [1.0, 2.0, 3.0]}}),
        ("soft labels", 3, {"name": "huber_loss", "options": {"weight": [[1.0, 2.0, 3.0]]}}),
    ],
)
def test_what_goes_together_runs(kind, outputs, loss):
    assert run(kind, misfits.linear(outputs), loss).run().finished


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_class_weights_are_those_of_torch(dtype):
    x, y = torch.randn(16, 3).to(dtype), torch.randint(3, (16,))
    options = {"weight": [1.0, 2.0, 5.0]}
    expected = nn.functional.cross_entropy(x, y, weight=torch.tensor(options["weight"], dtype=dtype))
    for name in ("cross_entropy", "torch.nn:CrossEntropyLoss"):
        loss = TrainingConfig.model_validate({"loss": {"name": name, "options": options}}).loss.build()
        if name == "cross_entropy" or dtype == torch.float32:
            assert loss(x, y) == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(x.float(), y).dtype == torch.float32


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"name": "cross_entropy", "options": {"weight": "12"}}, "list of numbers"),
        ({"name": "cross_entropy", "options": {"weight": []}}, "list of numbers"),
        ({"name": "cross_entropy", "options": {"weight": [1.0, "2"]}}, "list of numbers"),
        ({"name": "cross_entropy", "options": {"weight": [True, False]}}, "list of numbers"),
        ({"name": "cross_entropy", "options": {"weight": [[1.0], [1.0, 2.0]]}}, "list of numbers"),
        ({"name": "cross_entropy", "options": {"weight": [1.0, float("nan")]}}, "finite"),
        ({"name": "cross_entropy", "options": {"label_smoothing": "0.1"}}, "expected number"),
        ({"name": "cross_entropy", "options": {"ignore_index": 1.5}}, "expected whole number"),
        ({"name": "cross_entropy", "options": {"ignore_index": True}}, "expected whole number"),
        ({"name": "cross_entropy", "options": {"reduction": "none"}}, "mean or sum"),
        ({"name": "cross_entropy", "options": {"reduction": "avg"}}, "mean or sum"),
        ({"name": "cross_entropy", "options": {"wieght": [1.0]}}, "Did you mean 'weight'"),
        ({"name": "cross_entropy", "options": {"target": 3}}, "set by evolve"),
        ({"name": "huber_loss", "options": {"delta": True}}, "expected number"),
        ({"name": "huber_loss", "options": {"delta": float("inf")}}, "finite"),
        ({"name": "kl_div", "options": {"log_target": 1}}, "expected true or false"),
        ({"name": "gaussian_nll_loss", "options": {}}, "'var' is missing"),
        ({"name": "cros_entropy"}, "Did you mean 'cross_entropy'"),
        ({"name": "relu"}, "Unknown loss 'relu'"),
        ({"name": "torch"}, "Unknown loss 'torch'"),
        ({"name": "helpers.misfits:broadcasting", "options": {"wieght": [1.0]}}, "unknown option 'wieght'"),
    ],
)
def test_options_of_losses_are_checked_by_signature(loss, words, tmp_path):
    config = {"model": LINEAR, "data": "digits", "training": {"loss": loss}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"training\.loss") as error:
        load_config(tmp_path / "config.yaml")
    assert words in str(error.value)


def test_the_check_leaves_model_and_generators_as_they_were():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    evolver = run("good", model, "cross_entropy")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model[1].eval()
    state = torch.get_rng_state()
    check_data(evolver.state, evolver.train_data, evolver.val_data)
    assert [layer.training for layer in model] == [True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_spoiled_validation_data_are_told_but_trained_on(caplog):
    x, y = misfits.pair()[0]
    spoiled = x.clone()
    spoiled[3, 2] = float("nan")
    training = TrainingConfig(epochs=1, device="cpu")
    result = Evolver(misfits.linear(), (x, y), (spoiled, y), training=training, progress=False).run()
    assert result.finished
    assert "inputs of the validation data hold NaN or infinity: 1 of 192 values, the first at [3, 2]" in caplog.text


def test_a_worker_that_fails_is_told_without_its_traceback():
    rows = misfits.Rows([(torch.randn(6), 0), OSError("disk on fire")] * 8)
    loader = torch.utils.data.DataLoader(rows, 4, num_workers=1)
    with pytest.raises(DataError, match=r"^Reading the data failed: OSError: .*disk on fire$") as error:
        Evolver(misfits.linear(), loader, loader, progress=False)
    assert "\n" not in str(error.value)


def test_misfits_are_errors_of_python_too():
    with pytest.raises(MisfitError, match="out of bounds"):
        run("labels too high", misfits.linear(), "cross_entropy").run()
