"""Training and evaluating, each setting held against plain PyTorch."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

import evolve
from evolve import Evolver, LrScheduleConfig, OptimizerConfig, TrainingConfig
from evolve.care.ema import EMA
from evolve.errors import EvolveError, NonFiniteLossError
from evolve.runtime.device import resolve_device
from evolve.tasks import build_task
from evolve.training import create_state, evaluate, place_model, train_step
from evolve.training.lr_schedule import scheduler_class
from evolve.training.optim import optimizer_class


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def batches(count, size=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 1, 8, 8, generator=g), torch.randint(3, (size,), generator=g)) for _ in range(count)]


def state_of(model, lr=0.1, lr_schedule=None, loss=None, **config):
    training = TrainingConfig(device="cpu", **config)
    place_model(model, training)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    task, metrics = build_task(None, loss)
    return create_state(model, optimizer, training, task, metrics=metrics, lr_schedule=lr_schedule)


def by_hand(model, windows, lr=0.1, clip=None, dtype=None):
    """The same training in plain PyTorch; returns the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses = []
    for window in windows:
        for x, y in window:
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = F.cross_entropy(model(x), y)
            (loss / len(window)).backward()
            losses.append(loss.item())
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def same_weights(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize(
    ("config", "window", "plain"),
    [
        ({}, 1, {}),
        ({"grad_clip": 0.05}, 1, {"clip": 0.05}),
        ({"accumulate": 3}, 3, {}),
        ({"precision": "bf16"}, 1, {"dtype": torch.bfloat16}),
    ],
)
def test_a_step_is_what_plain_pytorch_does(config, window, plain):
    model, data = net(), batches(6)
    reference = copy.deepcopy(model)
    windows = [data[i : i + window] for i in range(0, 6, window)]
    state = state_of(model, **config)
    results = [train_step(state, w) for w in windows]
    losses = by_hand(reference, windows, **plain)
    same_weights(model, reference)
    assert [r.loss for r in results] == pytest.approx(
        [sum(losses[i : i + window]) / window for i in range(0, 6, window)], rel=1e-6
    )
    assert state.step == len(windows)
    assert state.batch == 6
    assert all(p.grad is None for p in model.parameters())
    assert all(r.samples == 8 * window and len(r.passes) == window for r in results)


def test_compiled_training_goes_on_after_a_mutation():
    model, data = net(), batches(3)
    reference = copy.deepcopy(model)
    state, plain = state_of(model, compile=True), state_of(reference)
    assert state.forward is not model
    for st in (state, plain):
        train_step(st, data[:1])
        ok, message = evolve.mutate(
            st.model, "residual", site="0", optimizer=st.optimizer, example_inputs=data[0][0], seed=1, init="random"
        )
        assert ok, message
        train_step(st, data[1:2])
    for (name, one), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5), name
    x = data[2][0]
    model.eval()
    assert torch.allclose(state.forward(x), model(x), atol=1e-5)


def test_channels_last_reaches_weights_and_inputs():
    seen = []
    model = net()
    model[0].register_forward_pre_hook(lambda m, a: seen.append(a[0].is_contiguous(memory_format=torch.channels_last)))
    state = state_of(model, channels_last=True)
    x = torch.randn(8, 1, 8, 8).expand(8, 1, 8, 8)
    train_step(state, [(x, torch.zeros(8, dtype=torch.long))])
    assert seen == [True]
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("position", [0, 1])
def test_a_non_finite_loss_is_never_trained_on(bad, position):
    model, data = net(), batches(3)
    state = state_of(model, accumulate=2)
    train_step(state, data[:2])
    before = copy.deepcopy((model.state_dict(), state.optimizer.state_dict()))
    window = batches(2, seed=5)
    window[position][0][0, 0, 0, 0] = bad
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(NonFiniteLossError, match="at step 1"):
        train_step(state, window)
    assert state.step == 1
    for name, p in model.named_parameters():
        assert torch.equal(p, parameters[name])
        assert p.grad is None
    for key, value in state.optimizer.state_dict()["state"][0].items():
        assert torch.equal(value, before[1]["state"][0][key])


def test_evaluate_leaves_modes_and_statistics_alone():
    model = net()
    model[1].eval()  # a user who froze a BatchNorm wants it frozen afterwards too
    state = state_of(model)
    before = copy.deepcopy(model.state_dict())
    data = batches(3, size=8) + batches(1, size=4, seed=3)
    metrics = evaluate(state, data)
    assert [m.training for m in model] == [True, False, True, True, True]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    x, y = torch.cat([b[0] for b in data]), torch.cat([b[1] for b in data])
    with torch.no_grad():
        outputs = model.eval()(x)
    assert metrics["loss"] == pytest.approx(F.cross_entropy(outputs, y).item(), rel=1e-5)
    assert metrics["accuracy"] == (outputs.argmax(1) == y).sum().item() / 28


def test_ema_is_the_average_and_follows_mutations():
    model = net()
    state = state_of(model, ema=0.3)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for kept, window in zip([2 / 11, 3 / 12, 0.3, 0.3], batches(4), strict=True):
        train_step(state, [window])
        for name, p in model.named_parameters():
            expected[name] = kept * expected[name] + (1 - kept) * p.detach()
    for name, value in state.ema.shadow.items():
        assert torch.allclose(value, expected[name], atol=1e-6)
    assert evolve.mutate(model, "deepen", site="0", optimizer=state.optimizer, example_inputs=batches(1)[0][0])
    state.ema.follow(model)
    parameters = dict(model.named_parameters())
    assert state.ema.shadow.keys() == parameters.keys()
    for name, value in state.ema.shadow.items():
        assert torch.allclose(value, expected.get(name, parameters[name]), atol=1e-6)
    before = copy.deepcopy(model.state_dict())
    with state.ema.applied_to(model):
        assert torch.equal(model[4].weight, state.ema.shadow["4.weight"])
        assert not torch.equal(model[4].weight, before["4.weight"])
    assert torch.equal(model[4].weight, before["4.weight"])


def test_an_average_without_a_decay_reaches_over_a_quarter_of_the_steps_and_less_as_the_learning_rate_falls():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    ema = EMA(model)
    steady = 0.0
    for step in range(1, 401):
        model.weight.data.fill_(float(step))
        ema.update(model)
        steady += (step - steady) / (step / 4 + 1)
    assert ema.shadow["weight"].item() == pytest.approx(steady, rel=1e-4)
    assert 400 - steady == pytest.approx(400 / 5, rel=0.02)  # how far it lags behind
    model.weight.data.fill_(0.0)
    halved = EMA(model)
    halved.load_state_dict(ema.state_dict())
    halved.update(model, lr=0.1)  # the highest so far
    before = halved.shadow["weight"].item()
    halved.update(model, lr=0.05)
    assert halved.shadow["weight"].item() == pytest.approx(before * (1 - 1 / (402 / 8 + 1)), rel=1e-4)
    halved.update(model, lr=0.0)
    assert halved.shadow["weight"].item() == 0.0


def test_ema_adopts_a_changed_shape():
    model = nn.Linear(3, 2)
    ema = EMA(model, 0.5)
    model.weight = nn.Parameter(torch.ones(4, 3))
    ema.follow(model)
    assert torch.equal(ema.shadow["weight"], torch.ones(4, 3))


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (
            LrScheduleConfig(name="OneCycleLR", options={"max_lr": 1.0}),
            lambda o: ("OneCycleLR", {"max_lr": 1.0, "total_steps": 12}),
        ),
        (LrScheduleConfig(name="CosineAnnealingLR"), lambda o: ("CosineAnnealingLR", {"T_max": 12})),
        (LrScheduleConfig(name="CosineAnnealingLR", interval="epoch"), lambda o: ("CosineAnnealingLR", {"T_max": 3})),
        (
            LrScheduleConfig(name="StepLR", interval="epoch", options={"step_size": 2}),
            lambda o: ("StepLR", {"step_size": 2}),
        ),
        (
            LrScheduleConfig(name="PolynomialLR", options={"total_iters": 5}),
            lambda o: ("PolynomialLR", {"total_iters": 5}),
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_lr_schedules_know_how_long_the_run_is(config, plain):
    x, y = torch.randn(32, 1, 8, 8), torch.randint(3, (32,))
    evolver = Evolver(
        net(), (x, y), (x, y), batch_size=8, progress=False, lr_schedule=config,
        optimizer=OptimizerConfig(name="SGD", options={"lr": 0.1}), training=TrainingConfig(epochs=3, device="cpu"),
    )  # fmt: skip
    rates = []
    before = evolver.controller.before_step
    evolver.controller.before_step = lambda: (rates.append(evolver.state.lr), before())
    evolver.run()
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    name, options = plain(optimizer)
    scheduler = scheduler_class(name)(optimizer, **options)
    expected = []
    for number in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if config.interval == "step" or number % 4 == 3:
            scheduler.step()
    assert rates == pytest.approx(expected)


def test_plateau_schedule_looks_at_the_validation_loss():
    x, y = torch.randn(32, 1, 8, 8), torch.randint(3, (32,))
    config = LrScheduleConfig(name="ReduceLROnPlateau", interval="epoch", options={"patience": 0, "threshold": 100.0})
    evolver = Evolver(
        net(), (x, y), (x, y), lr_schedule=config, optimizer=OptimizerConfig(name="SGD", options={"lr": 0.1}),
        training=TrainingConfig(epochs=3, device="cpu"), progress=False,
    )  # fmt: skip
    evolver.run()
    assert [m["lr"] for m in evolver.history] == pytest.approx([0.1, 0.01, 0.001])  # such a threshold is never passed


def test_refusals_name_what_to_do():
    with pytest.raises(EvolveError, match="Device 'gpu' is not available"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(EvolveError, match=r"Device 'cuda' is not available.*Use 'auto'"):
            resolve_device("cuda")
    with pytest.raises(EvolveError, match="Did you mean 'RMSprop'"):
        optimizer_class("RMSProp")
    with pytest.raises(EvolveError, match="takes functions"):
        scheduler_class("LambdaLR")
    with pytest.raises(ValidationError, match="'lr' is refused: Invalid learning rate"):
        OptimizerConfig(name="SGD", options={"lr": -1.0})


def test_a_regression_has_no_accuracy():
    x = torch.randn(32, 3)
    y = x.sum(1, keepdim=True)
    training = TrainingConfig.model_validate({"epochs": 30, "device": "cpu", "loss": {"name": "mse_loss"}})
    evolver = Evolver(
        nn.Linear(3, 1), (x, y), (x, y), batch_size=8, training=training, progress=False,
        optimizer=OptimizerConfig(name="SGD", options={"lr": 0.1}),
    )  # fmt: skip
    metrics = evolver.run().metrics
    assert "val_accuracy" not in metrics
    assert metrics["val_loss"] < 1e-3
    assert math.isfinite(metrics["train_loss"])
