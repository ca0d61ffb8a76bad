"""What built-in tasks compute: losses and metrics by hand, and how a task's own code calls its model."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from helpers.task_misfits import OwnLoss
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional import classification as counted
from transformers import BatchEncoding
from transformers.utils import ModelOutput

from evolve.errors import MisfitError
from evolve.tasks import FunctionTask, LossConfig, MetricConfig, MetricMeter, TaskConfig, loss_and_outputs
from evolve.tasks.stand_in import StandIn


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(name, *metrics, loss=None, **options):
    config = TaskConfig.model_validate(
        {"name": name, "options": options, **({"metrics": [*metrics]} if metrics else {})}
    )
    return config.build(LossConfig.model_validate(loss).build() if loss else None)


def outputs_of(values):
    """A model that returns these outputs, a batch after the other."""
    rest = iter(values if isinstance(values, list) else [values])
    return lambda *args, **kwargs: next(rest)


def in_two(outputs, targets, cut):
    """Two batches of different sizes."""
    return [
        (outputs[:cut], (torch.zeros(cut, 2), targets[:cut])),
        (outputs[cut:], (torch.zeros(len(targets) - cut, 2), targets[cut:])),
    ]


def measured(task, metrics, pairs):
    meter = MetricMeter(task, metrics)
    for outputs, batch in pairs:
        meter.update(outputs, batch)
    return meter.compute()


X = torch.zeros(6, 2)
LOGITS, CLASSES = draw(6, 3), torch.tensor([0, 1, 2, 2, 1, 1])
BITS = (draw(6, 3, seed=1) > 0).float()
PIXELS, MASKS = draw(2, 3, 4, 4), torch.arange(32).reshape(2, 4, 4) % 3
BORDERED = MASKS.index_fill(1, torch.tensor([0]), 255)
TOKENS, NEXT = draw(2, 5, 7), torch.arange(10).reshape(2, 5) % 7
PADDED = NEXT.index_fill(1, torch.tensor([3, 4]), -100)
WEIGHTS = torch.tensor([1.0, 2.0, 5.0])


@pytest.mark.parametrize(
    ("name", "options", "outputs", "targets", "expected"),
    [
        ("classification", {}, LOGITS, CLASSES, F.cross_entropy(LOGITS, CLASSES)),
        (
            "classification", {"class_weights": [1.0, 2.0, 5.0], "label_smoothing": 0.1}, LOGITS, CLASSES,
            F.cross_entropy(LOGITS, CLASSES, weight=WEIGHTS, label_smoothing=0.1),
        ),
        ("multilabel", {}, LOGITS, BITS, F.binary_cross_entropy_with_logits(LOGITS, BITS)),
        (
            "multilabel", {"pos_weight": [1.0, 2.0, 5.0]}, LOGITS, BITS,
            F.binary_cross_entropy_with_logits(LOGITS, BITS, pos_weight=WEIGHTS),
        ),
        ("regression", {}, LOGITS, BITS, ((LOGITS - BITS) ** 2).mean()),
        ("segmentation", {}, PIXELS, MASKS, F.cross_entropy(PIXELS, MASKS)),
        (
            "segmentation", {"ignore_index": 255, "class_weights": [1.0, 2.0, 5.0]}, PIXELS, BORDERED,
            F.cross_entropy(PIXELS[:, :, 1:], MASKS[:, 1:], weight=WEIGHTS),
        ),
        ("language_modeling", {}, TOKENS, NEXT, F.cross_entropy(TOKENS.reshape(10, 7), NEXT.reshape(10))),
        (
            "language_modeling", {}, TOKENS, PADDED,
            F.cross_entropy(TOKENS[:, :3].reshape(6, 7), NEXT[:, :3].reshape(6)),
        ),
    ],
)  # fmt: skip
def test_losses(name, options, outputs, targets, expected):
    task, _ = made(name, **options)
    loss, found = task.loss(outputs_of(outputs), (X, targets))
    assert found is outputs
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "loss", "options", "targets", "expected"),
    [
        ("classification", None, {}, CLASSES, 6),
        ("classification", None, {"class_weights": [1.0, 2.0, 5.0]}, CLASSES, 17),
        ("classification", None, {}, LOGITS.softmax(1), 18),
        ("classification", {"name": "cross_entropy", "options": {"ignore_index": 1}}, {}, CLASSES, 3),
        ("classification", {"name": "cross_entropy", "options": {"reduction": "sum"}}, {}, CLASSES, 6),
        ("classification", {"name": "torch.nn:CrossEntropyLoss", "options": {"ignore_index": 1}}, {}, CLASSES, 3),
        ("classification", {"name": "torch.nn:MSELoss"}, {}, LOGITS, 6),
        ("multilabel", None, {"pos_weight": [1.0, 2.0, 5.0]}, BITS, 18),
        ("regression", None, {}, BITS, 18),
        ("segmentation", None, {"ignore_index": 255}, BORDERED, 24),
        ("language_modeling", None, {}, PADDED, 6),
    ],
)
def test_what_a_loss_is_a_mean_over(name, loss, options, targets, expected):
    task, _ = made(name, loss=loss, **options)
    assert task.weight((torch.zeros(len(targets), 2), targets)) == expected


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"input_ids": NEXT, "labels": PADDED}, 4),  # shifted by the model: the first label is no answer
        ({"input_ids": NEXT + 1, "labels": PADDED}, 6),
        ({"pixels": X, "labels": CLASSES}, 6),
        ({"pixels": X, "labels": BITS}, 6),
        ({"pixels": X}, 6),
    ],
)
def test_what_a_loss_of_a_model_of_its_own_is_a_mean_over(batch, expected):
    assert made("huggingface")[0].weight(batch) == expected


def r2(predictions, targets):
    """The mean over the outputs."""
    left = ((targets - predictions) ** 2).sum(0)
    return float((1 - left / ((targets - targets.mean(0)) ** 2).sum(0)).mean())


def rmse(predictions, targets):
    return float(((predictions - targets) ** 2).mean().sqrt())


def iou(predictions, targets, classes=3):
    """The mean over the classes of what is common of what either says."""
    each = [
        float(((predictions == c) & (targets == c)).sum() / ((predictions == c) | (targets == c)).sum())
        for c in range(classes)
    ]
    return sum(each) / classes


ONE, COLUMN = LOGITS[:, :1], BITS[:, :1] + draw(6, 1, seed=3)
THREE = BITS + draw(6, 3, seed=3)


@pytest.mark.parametrize(
    ("name", "metrics", "options", "outputs", "targets", "expected"),
    [
        ("classification", [], {}, LOGITS, CLASSES, {"accuracy": float((LOGITS.argmax(1) == CLASSES).float().mean())}),
        (
            "classification", ["f1", {"name": "f1", "label": "macro", "options": {"average": "macro"}}, "AUROC"], {},
            LOGITS, CLASSES,
            {
                "f1": float(counted.multiclass_f1_score(LOGITS.argmax(1), CLASSES, 3, average="micro")),
                "macro": float(counted.multiclass_f1_score(LOGITS.argmax(1), CLASSES, 3, average="macro")),
                "AUROC": float(counted.multiclass_auroc(LOGITS.softmax(1), CLASSES, 3)),
            },
        ),
        (
            "multilabel", ["f1"], {}, LOGITS, BITS,
            {"f1": float(counted.multilabel_f1_score(LOGITS.sigmoid(), BITS.long(), 3, average="macro"))},
        ),
        ("regression", [], {}, ONE, COLUMN, {"rmse": rmse(ONE, COLUMN), "r2": r2(ONE, COLUMN)}),
        ("regression", [], {}, LOGITS, THREE, {"rmse": rmse(LOGITS, THREE), "r2": r2(LOGITS, THREE)}),
        ("regression", [], {}, ONE[:, 0], COLUMN[:, 0], {"rmse": rmse(ONE, COLUMN), "r2": r2(ONE, COLUMN)}),
        ("segmentation", [], {}, PIXELS, MASKS, {"iou": iou(PIXELS.argmax(1), MASKS)}),
        (
            "segmentation", [], {"ignore_index": 255}, PIXELS, BORDERED,
            {"iou": iou(PIXELS.argmax(1)[:, 1:], MASKS[:, 1:])},
        ),
        (
            "language_modeling", [], {}, TOKENS, PADDED,
            {"perplexity": float(F.cross_entropy(TOKENS[:, :3].reshape(6, 7), NEXT[:, :3].reshape(6)).exp())},
        ),
        (
            "language_modeling", ["accuracy"], {}, TOKENS, PADDED,
            {"accuracy": float((TOKENS.argmax(-1) == NEXT)[:, :3].float().mean())},
        ),
        (
            "classification", ["helpers.task_misfits:right_share"], {}, LOGITS, CLASSES,
            {"right_share": float((LOGITS.argmax(1) == CLASSES).float().mean())},
        ),
    ],
)  # fmt: skip
def test_metrics_of_uneven_batches(name, metrics, options, outputs, targets, expected):
    """A last batch that is smaller weighs less."""
    task, built = made(name, *metrics, **options)
    parts = in_two(outputs, targets, 4 if len(outputs) == 6 else 1)
    assert measured(task, built, parts) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 1), (6,)])
def test_one_output_is_the_probability_of_one_of_two_classes(shape, dtype):
    """Also where the logits of a batch lie between 0 and 1, so that torchmetrics would take them for probabilities."""
    logits = torch.tensor([0.1, 0.2, 0.9, 0.3, 0.4, -0.6]).reshape(shape).to(dtype)
    targets = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]).reshape(shape)
    loss = {"name": "binary_cross_entropy_with_logits"}
    task, metrics = made("classification", "accuracy", "f1", "auroc", loss=loss)
    assert measured(task, metrics, in_two(logits, targets, 4)) == pytest.approx(
        {"accuracy": 4 / 6, "f1": 0.75, "auroc": 5 / 9}
    )
    task, metrics = made("classification", "accuracy", "f1", loss={"name": "binary_cross_entropy"})
    found = measured(task, metrics, [(logits.float().sigmoid(), (X, targets))])
    assert found == pytest.approx({"accuracy": 4 / 6, "f1": 0.75})


Pair = namedtuple("Pair", ["values", "labels"])


@dataclass
class Sample:
    values: torch.Tensor
    labels: torch.Tensor


@dataclass
class Output(ModelOutput):
    values: torch.Tensor = None
    labels: torch.Tensor = None


@pytest.mark.parametrize("kind", [dict, BatchEncoding, Output, Pair, Sample])
@pytest.mark.parametrize("name", ["classification", "huggingface"])
def test_batches_with_names(kind, name):
    model, values = OwnLoss(), draw(4, 6)
    named = {"values": values, "labels": CLASSES[:4]}
    batch = kind(named) if kind in (dict, BatchEncoding) else kind(**named)
    task, metrics = made(name)
    expected = F.cross_entropy(model.inner(values), CLASSES[:4])
    loss, outputs = loss_and_outputs(task.loss(model, batch))
    assert torch.equal(loss, expected)
    assert torch.equal(task.loss_of(model, batch)(outputs), expected)
    assert set(task.arguments(model, batch)) == ({"values"} if name == "classification" else {"values", "labels"})
    assert task.count(batch) == 4
    hits = model.inner(values).argmax(1) == CLASSES[:4]
    assert measured(task, metrics, [(outputs, batch)]) == {"accuracy": float(hits.float().mean())}


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 3)
        self.scale = 2.0

    def forward(self, x, shift=0.0, *, factor=1.0):
        return self.second(self.first(x) + shift) * factor


def several_calls(model, batch):
    """Looks at attributes and parameters of the model, and calls it three times, in three ways."""
    x, y = batch
    one = model(x, model.scale, factor=0.5)
    two = model(x=x)
    penalty = sum((parameter**2).sum() for parameter in model.parameters())
    return F.cross_entropy(one + two + model(x, shift=1.0), y) + 0.01 * penalty, one


def test_a_function_that_calls_its_model_several_times():
    model, batch = TwoParts(), (draw(5, 6), CLASSES[:5])
    task = FunctionTask(several_calls)
    assert task.name == "several_calls"
    arguments = task.arguments(model, batch)
    assert arguments.keys() == {"x", "shift", "factor"}
    assert arguments["x"] is batch[0]
    assert (arguments["shift"], arguments["factor"]) == (2.0, 0.5)
    expected = several_calls(model, batch)
    assert torch.equal(task.loss_of(model, batch)(model(**arguments)), expected[0])
    assert torch.equal(task.loss(model, batch)[1], expected[1])
    gradient = torch.autograd.grad(task.loss_of(model, batch)(expected[1]), model.first.weight)[0]
    assert torch.equal(gradient, torch.autograd.grad(several_calls(model, batch)[0], model.first.weight)[0])


def test_arguments_are_those_of_the_first_call():
    model, x = TwoParts(), draw(2, 6)
    calls = {
        "one": (lambda m, b: m(x), x),
        "two": (lambda m, b: m(x, 1.0), (x, 1.0)),
        "keywords": (lambda m, b: m(x=x, factor=2.0), {"x": x, "factor": 2.0}),
    }
    for function, expected in calls.values():
        found = FunctionTask(function).arguments(model, ())
        if expected is x:
            assert found is x
        else:
            assert type(found) is type(expected)
            assert list(found) == list(expected)

    def careless(model, batch):
        try:
            return model(x).sum()
        except Exception:
            return torch.zeros(())

    assert FunctionTask(careless).arguments(model, ()) is x


def test_a_stand_in_answers_the_first_call_alone():
    model, x = TwoParts(), draw(2, 6)
    there = torch.ones(2, 3)
    stand = StandIn(model, there)
    assert stand(x) is there
    assert torch.equal(stand(x), model(x))
    assert stand.first is model.first
    assert stand.training is True
    with pytest.raises(AttributeError, match="nowhere"):
        _ = stand.nowhere


def test_what_a_loss_may_return():
    loss = torch.tensor(1.0)
    assert loss_and_outputs(loss) == (loss, None)
    assert loss_and_outputs((loss, 3)) == (loss, 3)
    held = {"loss": loss, "logits": LOGITS}
    assert loss_and_outputs(held) == (loss, held)
    for wrong in (1.0, None, (1.0, 2), (loss, 1, 2), {"logits": LOGITS}):
        with pytest.raises(MisfitError):
            loss_and_outputs(wrong)


NUMBERS = "helpers.task_misfits:Several"


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        (NUMBERS, {"mean", "count"}),
        ({"name": NUMBERS, "label": "mine"}, {"mine_mean", "mine_count"}),
        ({"name": NUMBERS, "label": "mean"}, {"mean", "mean_count"}),
    ],
)
def test_several_numbers(metric, names):
    task, metrics = made("classification", metric, "f1")
    found = measured(task, metrics, in_two(LOGITS, CLASSES, 4))
    assert found.keys() == names | {"f1"}
    mean = next(found[name] for name in ("mean", "mine_mean") if name in found)
    assert mean == pytest.approx(float(LOGITS.sum() / 6))
    assert 6.0 in found.values()


def shifted(predictions, targets):
    return 1 + (predictions.argmax(1) == targets).double().mean().item()


def test_a_function_in_the_place_of_its_import_path():
    task, metrics = made("classification", shifted, {"name": shifted, "label": "again"})
    right = 1 + float((LOGITS.argmax(1) == CLASSES).double().mean())
    assert measured(task, metrics, in_two(LOGITS, CLASSES, 4)) == pytest.approx({"shifted": right, "again": right})
    with pytest.raises(ValidationError, match="has no import path: define a function at the top level"):
        TaskConfig(metrics=[lambda predictions, targets: 1.0])


def test_names_that_meet():
    task, metrics = made("classification", NUMBERS, {"name": "f1", "label": "mean"})
    with pytest.raises(MisfitError, match="Two metrics are called 'mean'"):
        measured(task, metrics, [(LOGITS, (X, CLASSES))])


def test_ways_that_are_better():
    ways = {
        "f1": ("max", 1.0), "iou": ("max", 1.0), "r2": ("max", 1.0), "rmse": ("min", None), "mae": ("min", None),
        "accuracy": ("max", 1.0), "auroc": ("max", 1.0), "perplexity": ("min", None),
        "LogCoshError": ("min", None), "kl_divergence": ("min", None), "ExplainedVariance": ("max", 1.0),
    }  # fmt: skip
    for name, (mode, bound) in ways.items():
        found = MetricConfig(name=name).build().monitor
        assert found.mode == mode
        if mode == "max":
            assert found.bound == bound


INPUTS = torch.arange(10).reshape(2, 5) % 7


@pytest.mark.parametrize(
    ("metric", "logits", "fields", "expected"),
    [
        (
            "perplexity", TOKENS, {"input_ids": INPUTS, "labels": INPUTS},
            F.cross_entropy(TOKENS[:, :-1].reshape(8, 7), INPUTS[:, 1:].reshape(8)).exp(),
        ),
        (
            "perplexity", TOKENS, {"input_ids": INPUTS, "labels": INPUTS.index_fill(1, torch.tensor([4]), -100)},
            F.cross_entropy(TOKENS[:, :-2].reshape(6, 7), INPUTS[:, 1:4].reshape(6)).exp(),
        ),
        (
            {"name": "f1", "options": {"average": "macro"}}, TOKENS, {"input_ids": INPUTS, "labels": PADDED.flip(0)},
            counted.multiclass_f1_score(
                TOKENS[:, :3].reshape(6, 7), PADDED.flip(0)[:, :3].reshape(6), 7, average="macro"
            ),
        ),
        (
            "f1", LOGITS, {"input_ids": X, "labels": BITS},
            counted.multilabel_f1_score(LOGITS.sigmoid(), BITS.long(), 3, average="macro"),
        ),
        ("rmse", LOGITS[:, :1], {"input_ids": X, "labels": BITS[:, 0]}, rmse(LOGITS[:, 0], BITS[:, 0])),
    ],
    ids=["causal", "causal, padded", "tokens", "several labels", "a number"],
)  # fmt: skip
def test_metrics_of_models_with_their_own_loss(metric, logits, fields, expected):
    task, metrics = made("huggingface", metric)
    (value,) = measured(task, metrics, [({"loss": torch.tensor(0.0), "logits": logits}, fields)]).values()
    assert value == pytest.approx(float(expected), rel=1e-5)
