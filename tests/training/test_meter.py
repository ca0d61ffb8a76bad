"""What a run counts of many steps at once is what counting each step by itself gives."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evolve.tasks import TaskConfig, build_task, tasks
from evolve.training import TrainingConfig, create_state, train_step
from evolve.training.metrics import Meter


def steps_of(task, count=40, ignored=False):
    """Trains on batches of 1 to 5 samples; returns the meter and each step's loss, scores and targets."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    built, metrics = task if isinstance(task, tuple) else build_task(task, None)
    state = create_state(
        model, torch.optim.SGD(model.parameters(), lr=0.05), TrainingConfig(device="cpu"), built, metrics=metrics
    )
    meter, seen = Meter(state), []
    for step in range(count):
        inputs, targets = torch.randn(step % 5 + 1, 4), torch.randint(0, 3, (step % 5 + 1,))
        if ignored and len(targets) > 1:
            targets[0] = -100
        seen.append((F.cross_entropy(model(inputs), targets).item(), model(inputs).argmax(1), targets))
        meter.add(train_step(state, [(inputs, targets)]))
    return meter, seen


def test_losses_and_answers_by_hand():
    meter, seen = steps_of(TaskConfig(name="classification"))
    line = meter.line({})
    samples = sum(len(targets) for _, _, targets in seen)
    assert line["train_loss"] == pytest.approx(sum(loss * len(t) for loss, _, t in seen) / samples, rel=1e-6)
    assert line["train_accuracy"] == sum(int((p == t).sum()) for _, p, t in seen) / samples


def test_the_sums_of_a_broken_off_epoch_are_complete():
    meter, seen = steps_of(TaskConfig(name="classification"), count=7)
    assert meter.began
    saved = meter.state_dict()
    assert saved["answers"] == saved["weight"] == sum(len(targets) for _, _, targets in seen) == 18


def test_ignored_and_weighted_classes_weigh_as_the_loss_does():
    weights = torch.tensor([1.0, 2.0, 5.0])
    task = TaskConfig(name="classification", options={"class_weights": weights.tolist()})
    meter, seen = steps_of(task)
    assert meter.state_dict()["weight"] == pytest.approx(sum(weights[t].sum().item() for _, _, t in seen))
    meter, seen = steps_of(TaskConfig(name="classification"), ignored=True)
    counted = [(loss, int((t != -100).sum())) for loss, _, t in seen]
    line = meter.line({})
    assert meter.weight == sum(count for _, count in counted)
    assert line["train_loss"] == pytest.approx(sum(loss * count for loss, count in counted) / meter.weight, rel=1e-6)


def test_a_task_made_from_it_is_asked_at_once():
    class Halved(tasks.get("classification")):
        def weight(self, batch):
            return batch[0].shape[0] / 2  # looks at the inputs

    meter, seen = steps_of((Halved(), []), count=5)
    assert meter.weight == sum(len(targets) for _, _, targets in seen) / 2


def test_classes_that_weigh_one_on_average():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    options = {"class_weights": [0.5, 1.5, 1.0]}
    task, metrics = build_task(TaskConfig(name="classification", options=options), None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    state = create_state(model, optimizer, TrainingConfig(device="cpu"), task, metrics=metrics)
    meter, losses = Meter(state), []
    for step in range(32):
        result = train_step(state, [(torch.randn(4, 4), torch.full((4,), step % 2))])
        losses.append(result.loss)
        meter.add(result)
    wanted = (2 * sum(losses[::2]) + 6 * sum(losses[1::2])) / (16 * 8)
    assert meter.line({})["train_loss"] == pytest.approx(wanted, rel=1e-6)
