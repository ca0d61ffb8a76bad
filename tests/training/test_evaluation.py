"""What an evaluation measures, and that it leaves everything else alone."""

import copy
import gc
import math
import random
import weakref

import numpy as np
import pytest
import torch
from helpers.fingerprints import fingerprint
from helpers.task_misfits import data
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from evolve import EvolutionConfig, Evolver, OptimizerConfig, TrainingConfig
from evolve.config.options import Monitor
from evolve.errors import MisfitError
from evolve.evolver.extrapolation import extrapolate, standard_error
from evolve.evolver.probation import Probation, ProbationConfig
from evolve.lineage import Lineage
from evolve.tasks import MetricMeter, TaskConfig
from evolve.training import evaluate
from evolve.training.monitor import find_monitor

X = torch.randn(22, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0.5).long()


class Noisy(nn.Module):
    """Draws in eval mode too, as a diffusion model does."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x):
        return self.inner(x + torch.randn_like(x) + random.random() + np.random.rand())


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def run_of(model, train, val, task=None, evolution=None, monitor=None, batch_size=4, lr=0.05, **training):
    training = {"epochs": 2, "device": "cpu", **training, **({"monitor": monitor} if monitor else {})}
    return Evolver(
        model,
        train,
        val,
        task=task,
        optimizer=OptimizerConfig(name="SGD", options={"lr": lr}),
        training=TrainingConfig.model_validate(training),
        evolution=EvolutionConfig.model_validate(evolution or {}),
        batch_size=batch_size,
        progress=False,
    )


def generators():
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


def small_detector():
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    sizes = {"min_size": 32, "max_size": 32, "rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 20}
    return fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3, **sizes)


LOADED = DataLoader(TensorDataset(X, Y), 5)


@pytest.mark.parametrize(
    ("model", "held_out", "task"),
    [
        (Noisy, (X, Y), None),
        (Noisy, LOADED, None),
        (small_detector, data("boxes")[0], TaskConfig(name="detection")),
    ],
)
def test_an_evaluation_can_be_repeated_and_changes_nothing(model, held_out, task):
    """A detector draws among its boxes for the loss, and a DataLoader a seed for its workers, which nobody uses."""
    torch.manual_seed(0)
    evolver = run_of(model(), held_out, held_out, task)
    evolver.model.train()
    before, stood = fingerprint(evolver.model), generators()
    first = evaluate(evolver.state, evolver.val_data.epoch(0))
    assert generators() == stood
    assert fingerprint(evolver.model) == before
    assert all(module.training for module in evolver.model.modules())
    assert all(parameter.grad is None for parameter in evolver.model.parameters())
    torch.manual_seed(9)
    assert evaluate(evolver.state, evolver.val_data.epoch(0)) == first
    assert evolver.controller.loop.score("val_loss").value == pytest.approx(first["loss"])


def test_nothing_is_left_of_an_evaluation():
    outputs = []
    model = net()
    model.register_forward_hook(lambda module, args, found: outputs.append(weakref.ref(found)))
    evolver = run_of(model, (X, Y), (X, Y), TaskConfig(name="classification", metrics=["accuracy", "auroc"]))
    assert evaluate(evolver.state, evolver.val_data.epoch(0))["auroc"] > 0
    gc.collect()
    assert len(outputs) >= 5
    assert not any(found() is not None for found in outputs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ema", [None, 0.5])
def test_metrics_are_those_of_all_held_out_data_whatever_the_batches(ema, precision):
    task = TaskConfig(name="classification", metrics=["accuracy", {"name": "f1", "options": {"average": "macro"}}])
    evolver = run_of(net(), (X, Y), (X, Y), task, ema=ema, precision=precision, epochs=3)
    evolver.run()
    averaged = copy.deepcopy(evolver.model).eval()
    if ema:
        averaged.load_state_dict(evolver.state.ema.shadow, strict=False)
        assert not torch.equal(averaged[0].weight, evolver.model[0].weight)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = averaged(X).float()
    answers = logits.argmax(1)
    f1 = []
    for c in range(3):
        hit, either = ((answers == c) & (c == Y)).sum(), (answers == c).sum() + (c == Y).sum()
        f1.append(float(2 * hit / either))
    line = evolver.history[-1]
    assert line["val_accuracy"] == pytest.approx(float((answers == Y).float().mean()))
    assert line["val_f1"] == pytest.approx(sum(f1) / 3, rel=1e-4)
    assert line["val_loss"] == pytest.approx(
        float(F.cross_entropy(logits, Y)), rel=1e-5 if precision == "fp32" else 0.02
    )


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_training_accuracy_counts_every_sample_once(accumulate):
    """Six batches of four, the last one of two; with rate 0 the model stays what it is."""
    model = nn.Sequential(nn.Linear(6, 3))
    evolver = run_of(model, (X, Y), (X, Y), accumulate=accumulate, epochs=1)
    for group in evolver.state.optimizer.param_groups:
        group["lr"] = 0.0
    evolver.run()
    logits = model(X)
    line = evolver.history[-1]
    assert line["train_accuracy"] == line["val_accuracy"] == float((logits.argmax(1) == Y).double().mean())


class Pixels(nn.Module):
    """Three classes for each of 4 x 4 pixels."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(2, 3, 1)

    def forward(self, x):
        return self.inner(x)


class OwnTokens(nn.Module):
    """Returns its loss, as a causal model of transformers does: of each position's logits with the next label."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Embedding(5, 5)

    def forward(self, input_ids, labels):
        logits = self.inner(input_ids)
        return {"loss": F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), "logits": logits}


def unevenly_ignored(shape, label):
    """Class numbers of which more are ignored from row to row; all of the last four."""
    drawn = torch.Generator().manual_seed(2)
    targets = torch.randint(0, 3, shape, generator=drawn)
    share = torch.linspace(0, 1, shape[0] - 3).clamp(max=0.6).view(-1, *[1] * (len(shape) - 1))
    targets[:-3][torch.rand(targets[:-3].shape, generator=drawn) < share] = label
    targets[-4:] = label
    return targets


IMAGES, TOKENS = torch.randn(14, 2, 4, 4, generator=torch.Generator().manual_seed(3)), torch.arange(14 * 6) % 5
TOKENS = TOKENS.view(14, 6)
SHOWN = torch.where(unevenly_ignored((14, 6), -100) == -100, -100, TOKENS)
BORDERS, PADDED = unevenly_ignored((14, 4, 4), 255), unevenly_ignored((14, 6), -100)
UNEVEN = [
    (Pixels, "segmentation", {"ignore_index": 255}, (IMAGES, BORDERS)),
    (Pixels, "segmentation", {"ignore_index": 255, "class_weights": [0.1, 1.0, 5.0]}, (IMAGES, BORDERS)),
    (lambda: nn.Embedding(5, 5), "language_modeling", {}, {"input_ids": TOKENS, "labels": PADDED}),
    (OwnTokens, "huggingface", {}, {"input_ids": TOKENS, "labels": SHOWN}),
]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("model", "name", "options", "data"), UNEVEN)
def test_a_loss_is_the_mean_over_all_that_counts_whatever_the_batches(model, name, options, data, accumulate):
    """Batches of four and a last one of two, in which nothing counts; with rate 0 the model stays what it is."""
    torch.manual_seed(0)
    if accumulate == 1:  # no step can be made over a batch in which nothing counts
        train = {k: v[:10] for k, v in data.items()} if isinstance(data, dict) else tuple(v[:10] for v in data)
    else:
        train = data
    evolver = run_of(
        model(), DataLoader(rows_of(train), 4), DataLoader(rows_of(data), 4), TaskConfig(name=name, options=options),
        lr=0.0, epochs=1, accumulate=accumulate,
    )  # fmt: skip
    evolver.run()
    with torch.no_grad():
        whole = float(evolver.state.task.loss(evolver.model, data)[0])
    assert evolver.history[-1]["val_loss"] == pytest.approx(whole, rel=1e-5)
    assert evolver.history[-1]["train_loss"] == pytest.approx(whole, rel=1e-5)
    assert evolver.controller.loop.score("val_loss").value == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_accuracy_of_the_next_token_is_that_of_all_that_count(accumulate):
    data = {"input_ids": TOKENS[:10], "labels": PADDED[:10]}
    torch.manual_seed(0)
    task = TaskConfig(name="language_modeling", metrics=["accuracy", "perplexity"])
    loaded = DataLoader(rows_of(data), 4)
    evolver = run_of(nn.Embedding(5, 5), loaded, loaded, task, lr=0.0, epochs=1, accumulate=accumulate)
    evolver.run()
    answers = evolver.model(data["input_ids"]).argmax(-1)
    counted = data["labels"] != -100
    expected = float((answers == data["labels"])[counted].double().mean())
    line = evolver.history[-1]
    assert 0 < counted.sum() < 0.8 * counted.numel()
    assert 0 < expected < 1
    assert line["val_accuracy"] == line["train_accuracy"] == expected
    assert line["val_perplexity"] == pytest.approx(math.exp(line["val_loss"]), rel=1e-4)


def rows_of(data):
    """A data set of the samples."""
    if isinstance(data, dict):
        return [{key: values[i] for key, values in data.items()} for i in range(len(data["labels"]))]
    return TensorDataset(*data)


def test_a_metric_that_one_sample_is_too_little_for():
    """R2 of a batch of one sample is none, and says nothing of the noise; of all the data it is known."""
    column = X[:, :1] * 2
    model = nn.Sequential(nn.Linear(6, 1))
    batches = DataLoader(TensorDataset(X, column), 7)  # 7, 7, 7 and 1
    evolver = run_of(model, (X, column), batches, "regression")
    score = evolver.controller.loop.score("val_r2")
    with torch.no_grad():
        left = ((model(X) - column) ** 2).sum() / ((column - column.mean()) ** 2).sum()
    assert score.value == pytest.approx(1 - float(left), rel=1e-4)
    assert [math.isnan(value) for value in score.values] == [False, False, False, True]
    assert standard_error(score.values, [value + 0.1 for value in score.values]) == pytest.approx(0, abs=1e-6)
    assert math.isfinite(extrapolate([(4, 0.5)], 9, standard_error(score.values, score.values[::-1])).margin)


def test_a_batch_that_a_metric_does_not_take_is_told_also_in_the_middle():
    evolver = run_of(net(), (X, Y), (X, Y), TaskConfig(name="classification", metrics=["f1"]))
    meter = MetricMeter(evolver.state.task, evolver.state.metrics)
    meter.update(torch.zeros(2, 3), (torch.zeros(2, 6), torch.zeros(2).long()))
    with pytest.raises(MisfitError, match=r"'f1' does not take predictions \(2, 4\) .* and targets \(2,\)"):
        meter.update(torch.zeros(2, 4), (torch.zeros(2, 6), torch.zeros(2).long()))


KNOWN = TaskConfig(name="classification", metrics=["accuracy", "f1", "helpers.task_misfits:right_share"]).measured()


def test_the_way_of_a_metric_that_is_not_the_monitor():
    monitor = find_monitor(TrainingConfig().monitor, KNOWN)
    assert monitor == Monitor("val_loss", "min")
    assert monitor.of("val_f1") == Monitor("val_f1", "max", 1.0)
    assert monitor.of("val_f1", "min") == Monitor("val_f1", "min")
    assert monitor.of("val_accuracy") == Monitor("val_accuracy", "max", 1.0)
    assert monitor.of("train_loss") == Monitor("train_loss", "min")
    assert [monitor.knows(f"val_{name}") for name in ("f1", "loss", "accuracy", "right_share")] == [True] * 3 + [False]


@pytest.mark.parametrize("metric", ["val_f1", "val_right_share"])
@pytest.mark.parametrize("change", ["better", "worse"])
def test_probation_by_a_metric_that_rises(metric, change):
    """The monitor is the loss; one metric has a bound, the other is a function that has none."""
    metrics = ["f1", {"name": "helpers.task_misfits:right_share", "mode": "max"}]
    evolver = run_of(nn.Sequential(nn.Linear(6, 3)), (X, Y), (X, Y), TaskConfig(name="classification", metrics=metrics))
    loop = evolver.controller.loop
    probation = Probation(ProbationConfig(steps=1, metric=metric), loop)
    probation.remember([], Lineage())
    probation.begin([0])
    rows = torch.stack([X[c == Y].mean(0) for c in range(3)])
    with torch.no_grad():
        evolver.model[0].weight.copy_(10 * rows if change == "better" else -10 * rows)
    evolver.state.step += 1
    verdict = probation.verdict()
    assert verdict.metric == metric
    assert (verdict.found > verdict.before) == (change == "better")
    assert verdict.kept == (change == "better")
    assert verdict.bound <= verdict.promised


@pytest.mark.parametrize(
    ("evolution", "path"),
    [
        ({"probation": {"steps": 2, "metric": "val_right_share"}}, "evolution.probation.metric"),
        (
            {"schedule": {"name": "plateau", "options": {"metric": "val_right_share"}}},
            "evolution.schedule.options.metric",
        ),
    ],
)
def test_a_metric_whose_way_nobody_says_is_not_looked_at(evolution, path):
    task = TaskConfig(name="classification", metrics=["helpers.task_misfits:right_share"])
    whole = {"schedule": {"name": "plateau"}, "operators": [{"name": "widen"}], **evolution}
    with pytest.raises(MisfitError, match=f"{path}: 'val_right_share' does not say which way is better"):
        run_of(net(), (X, Y), (X, Y), task, whole).run()


def test_the_best_child_by_a_metric_that_rises():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(3))
    y = 2 * (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2].abs() > 0.7).long()
    evolution = {
        "schedule": {"name": "at", "options": {"steps": [20]}},
        "policy": {"name": "hill_climb", "options": {"children": 3, "steps": 40}},
        "operators": [{"name": "widen", "options": {"factor": 8.0}}, {"name": "deepen"}],
    }
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 4))
    task = TaskConfig(name="classification", metrics=["f1"])
    evolver = run_of(model, (x, y), (x, y), task, evolution, {"metric": "val_f1"}, batch_size=20, epochs=3, lr=0.3)
    evolver.run()
    (record,) = evolver.lineage
    assert record.success
    assert record.choice.by == "val_f1 after 40 steps"
    values = [other.value for other in record.choice.others]
    assert len(values) >= 2
    assert record.choice.chosen.value > max(values) >= min(values) > 0.2
