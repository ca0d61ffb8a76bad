"""Training and evaluating as plain functions over a typed state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import Self

from evolve.budget import FORWARD_AND_BACKWARD, UNITS, Budget, Spent, whole
from evolve.care import Newborns
from evolve.config import Named, OptionFaults, Section, signature_faults
from evolve.device import resolve_device
from evolve.ema import EMA
from evolve.errors import EvolveError, NonFiniteLossError, UnknownNameError
from evolve.optim import LrScheduleConfig
from evolve.plugins import import_callable

Loss = Callable[[Any, Any], Tensor]
Batch = tuple[Tensor, Tensor]


class LossConfig(Named):
    """A loss: a function of `torch.nn.functional`, or an import path to `(outputs, targets) -> scalar tensor`."""

    name: str = "cross_entropy"

    @model_validator(mode="after")
    def _loss_is_known(self) -> Self:
        try:
            function = self._find()
        except UnknownNameError as error:
            raise OptionFaults([(("name",), str(error))]) from error
        options = {"input": 0, "target": 0} if hasattr(nn.functional, self.name) else {}
        faults = signature_faults(function, {**self.options, **options}) if options else []
        if faults:
            raise OptionFaults([(("options", *path), message) for path, message in faults])
        return self

    def _find(self) -> Loss:
        function: Loss = getattr(nn.functional, self.name, None) or import_callable(self.name, "loss")
        return function

    def build(self) -> Loss:
        """Returns the loss with its options bound."""
        return partial(self._find(), **self.options) if self.options else self._find()


class TrainingConfig(Section):
    """How to train, and for how long: one of `epochs`, `steps`, `seconds` and `flops` is the budget.

    Attributes:
        epochs: Passes over the training data; null where another budget is given.
        steps: Optimizer steps.
        seconds: Wall time of training, evaluating and mutating.
        flops: FLOPs of all training steps: 3 times those of a forward pass, for each sample.
        device: "auto" (cuda, mps, cpu), or a torch device.
        precision: "fp32", or autocast to "bf16" or "fp16" (with loss scaling on CUDA).
        loss: A function of `torch.nn.functional` or an import path.
        grad_clip: Greatest norm of all gradients together; null for none.
        accumulate: Batches per optimizer step.
        ema: Decay of a moving average of the weights, used for evaluation; null for none.
        channels_last: Keep images and convolutions in channels-last memory format.
        compile: Run the model through `torch.compile`; it compiles again after a mutation.
        seed: Of Python, NumPy, torch, the data order and the mutations.
    """

    epochs: Annotated[int, Field(ge=1)] | None = 10
    steps: Annotated[int, Field(ge=1)] | None = None
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    flops: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    loss: LossConfig = LossConfig()
    grad_clip: Annotated[float, Field(gt=0)] | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    channels_last: bool = False
    compile: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="before")
    @classmethod
    def _epochs_give_way(cls, value: Any) -> Any:
        """The default of `epochs` does not count beside another budget."""
        if isinstance(value, dict) and any(value.get(unit) is not None for unit in UNITS):
            return {"epochs": None, **value}
        return value

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [unit for unit in UNITS if getattr(self, unit) is not None]
        ask = f"give one of {', '.join(UNITS)}."
        if not given:
            raise OptionFaults([(("epochs",), f"is null, and no other budget is given: {ask}")])
        if len(given) > 1:
            message = f"'{given[0]}' is given too, and a run has one budget: {ask}"
            raise OptionFaults([((unit,), message) for unit in given[1:]])
        return self

    @property
    def budget(self) -> Budget:
        """How long the run is."""
        return next(Budget(unit, amount) for unit in UNITS if (amount := getattr(self, unit)) is not None)


_COUNTS = ("epoch", "step", "batch", "seconds", "flops", "flops_per_sample")


@dataclass
class TrainState:
    """Everything that training moves.

    Attributes:
        model: The network, in place.
        forward: What is called in its stead: the model, or its compiled form.
        newborns: New parts of its parameters that are cared for.
        epoch: Epochs finished.
        step: Optimizer steps made.
        batch: Batches of the running epoch that are done.
        seconds: Wall time of the run so far, as whoever drives it counts it.
        flops: FLOPs of the training steps so far.
        flops_per_sample: FLOPs of one forward pass of one sample of the model as it stands.
        epoch_steps: Optimizer steps of an epoch.
        epoch_samples: Samples of an epoch.
        ticks: Length of the run as the learning rate schedule counts it.
    """

    model: nn.Module
    optimizer: Optimizer
    loss: Loss
    config: TrainingConfig
    device: torch.device
    forward: Callable[..., Any]
    scheduler: LRScheduler | None = None
    lr_schedule: LrScheduleConfig | None = None
    scaler: torch.amp.GradScaler | None = None
    ema: EMA | None = None
    newborns: Newborns | None = None
    epoch: int = 0
    step: int = 0
    batch: int = 0
    seconds: float = 0.0
    flops: int = 0
    flops_per_sample: int = 0
    epoch_steps: int = 1
    epoch_samples: int = 0
    ticks: int = 1
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def counts(self) -> dict[str, float]:
        """Returns where the run stands and what it has spent, as plain numbers."""
        return {name: getattr(self, name) for name in _COUNTS}

    def take_counts(self, counts: Mapping[str, float]) -> None:
        """Takes up what `counts` returned."""
        for name in _COUNTS:
            setattr(self, name, counts[name])

    @property
    def progress(self) -> float:
        """Which part of the budget is spent, from 0 to 1."""
        return self.config.budget.progress(self.spent)

    @property
    def spent(self) -> Spent:
        """What the run has used up."""
        return Spent(self.step / self.epoch_steps, self.step, self.seconds, self.flops)

    def affordable(self, epochs: float) -> int | None:
        """Returns the most FLOPs of a forward pass of a model that the budget left trains for so many epochs.

        It is never less than the model has: one that does not grow needs no repayment. None where size does not matter,
        as the budget is of epochs or steps, and enough are left. Seconds are taken to go with FLOPs.
        """
        epoch_flops = FORWARD_AND_BACKWARD * self.flops_per_sample * self.epoch_samples
        budget = self.config.budget
        left = budget.epochs_left(self.spent, epoch_flops)
        if budget.unit in ("epochs", "steps"):
            return None if left >= epochs else self.flops_per_sample
        return max(self.flops_per_sample, int(self.flops_per_sample * left / epochs))


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step saw.

    Attributes:
        loss: Mean of the batches' losses.
        samples: How many there were.
        hits: For each batch, which answers were right; empty where targets are not classes.
    """

    loss: float
    samples: int
    hits: list[Tensor]


def place_model(model: nn.Module, config: TrainingConfig) -> torch.device:
    """Moves a model, in place, to the device and memory format that the configuration names."""
    device = resolve_device(config.device)
    model.to(device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    return device


def create_state(
    model: nn.Module,
    optimizer: Optimizer,
    config: TrainingConfig,
    *,
    loss: Loss | None = None,
    lr_schedule: LrScheduleConfig | LRScheduler | None = None,
    epoch_steps: int = 1,
    epoch_samples: int = 0,
    flops_per_sample: int = 0,
) -> TrainState:
    """Returns the state of a run that is about to begin.

    Args:
        model: Already placed by `place_model`.
        optimizer: Over the model's parameters.
        config: How to train.
        loss: Instead of the configured one.
        lr_schedule: Its configuration, or a schedule that moves once a step.
        epoch_steps: Optimizer steps of an epoch.
        epoch_samples: Samples of an epoch; needed where FLOPs are the budget.
        flops_per_sample: FLOPs of one forward pass of one sample; needed where FLOPs are the budget.

    Raises:
        EvolveError: If FLOPs are the budget and the model has none, or the schedule refuses its options.
    """
    step_flops = FORWARD_AND_BACKWARD * flops_per_sample * epoch_samples / epoch_steps
    ticks = config.budget.ticks(epoch_steps, step_flops)
    built = None
    if isinstance(lr_schedule, LrScheduleConfig):
        ticks = ticks if lr_schedule.interval == "step" else math.ceil(ticks / epoch_steps)
        built = lr_schedule.build(optimizer, ticks)
    device = next((t.device for t in model.parameters()), torch.device("cpu"))
    return TrainState(
        model=model,
        optimizer=optimizer,
        loss=loss or config.loss.build(),
        config=config,
        device=device,
        forward=torch.compile(model) if config.compile else model,
        scheduler=built or (lr_schedule if isinstance(lr_schedule, LRScheduler) else None),
        lr_schedule=lr_schedule if isinstance(lr_schedule, LrScheduleConfig) else None,
        scaler=torch.amp.GradScaler() if config.precision == "fp16" and device.type == "cuda" else None,
        ema=EMA(model, config.ema) if config.ema else None,
        flops_per_sample=flops_per_sample,
        epoch_steps=epoch_steps,
        epoch_samples=epoch_samples,
        ticks=ticks,
    )


def train_step(state: TrainState, batches: Sequence[Batch]) -> StepResult:
    """Makes one optimizer step over one or, with accumulation, several batches.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite; nothing was changed by it.
    """
    total, samples = 0.0, 0
    answers: list[Tensor | None] = []
    for inputs, targets in batches:
        inputs, targets = _place(state, inputs), targets.to(state.device, non_blocking=True)
        with _autocast(state):
            outputs = state.forward(inputs)
            loss = state.loss(outputs, targets)
        value = loss.item()
        if not math.isfinite(value):
            state.optimizer.zero_grad()
            raise NonFiniteLossError(
                f"The loss became {value} at step {state.step} (epoch {state.epoch}). The step was not trained on. "
                "Lower the learning rate, clip gradients (training.grad_clip) or use precision: fp32."
            )
        share = loss if len(batches) == 1 else loss / len(batches)
        (state.scaler.scale(share) if state.scaler else share).backward()
        total, samples = total + value / len(batches), samples + len(inputs)
        answers.append(_hits(outputs, targets))
    _optimizer_step(state)
    state.step += 1
    state.batch += len(batches)
    state.flops += FORWARD_AND_BACKWARD * state.flops_per_sample * samples
    advance_schedule(state, "step")
    return StepResult(total, samples, [hits for hits in answers if hits is not None])


def _optimizer_step(state: TrainState) -> None:
    if state.scaler and (state.config.grad_clip is not None or state.newborns):
        state.scaler.unscale_(state.optimizer)
    if state.config.grad_clip is not None:
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, state.config.grad_clip)
    if state.newborns:
        state.newborns.before_step(state.model, state.optimizer)
    if state.scaler:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.step()
    if state.newborns:
        state.newborns.after_step()
    state.optimizer.zero_grad()
    if state.ema:
        state.ema.update(state.model)


def advance_schedule(state: TrainState, interval: str, val_loss: float | None = None) -> None:
    """Moves the learning rate schedule to where the run stands, if it moves at this interval ("step" or "epoch")."""
    if state.scheduler is None:
        return
    if state.lr_schedule is None:
        if interval == "step":
            state.scheduler.step()
    elif state.lr_schedule.interval == interval:
        state.lr_schedule.advance(state.scheduler, whole(state.progress * state.ticks), val_loss)


@torch.no_grad()
def evaluate(state: TrainState, batches: Iterable[Batch]) -> dict[str, float]:
    """Returns mean "loss" and, where targets are classes, "accuracy", with averaged weights where there are any."""
    loss_sum, samples = torch.zeros((), device=state.device, dtype=torch.float32), 0
    answers: list[Tensor | None] = []
    averaged = state.ema.applied_to(state.model) if state.ema else nullcontext()
    with _eval_mode(state.model), averaged:
        for inputs, targets in batches:
            inputs, targets = _place(state, inputs), targets.to(state.device, non_blocking=True)
            with _autocast(state):
                outputs = state.forward(inputs)
                loss = state.loss(outputs, targets)
            loss_sum += loss.float() * len(inputs)
            samples += len(inputs)
            answers.append(_hits(outputs, targets))
    metrics = {"loss": loss_sum.item() / max(samples, 1)}
    if hits := [batch for batch in answers if batch is not None]:
        metrics["accuracy"] = int(torch.cat(hits).sum()) / samples
    return metrics


def check_fit(state: TrainState, batch: Batch) -> None:
    """Runs model and loss on one batch, in eval mode, so that a misfit is told before a run begins.

    Raises:
        EvolveError: If either fails, with the shapes that were given.
    """
    try:
        evaluate(state, [batch])
    except Exception as error:  # a model may fail in any way on data that it was not made for
        inputs, targets = batch
        raise EvolveError(
            f"Model and data do not fit: on inputs of shape {tuple(inputs.shape)} ({inputs.dtype}) with targets of "
            f"shape {tuple(targets.shape)} ({targets.dtype}) {type(state.model).__name__} or the loss raised "
            f"{type(error).__name__}: {error}. Check channels, image size and number of classes."
        ) from error


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _place(state: TrainState, inputs: Tensor) -> Tensor:
    if state.config.channels_last and inputs.dim() == 4:
        return inputs.to(state.device, non_blocking=True, memory_format=torch.channels_last)
    return inputs.to(state.device, non_blocking=True)


def _autocast(state: TrainState) -> AbstractContextManager[Any]:
    if state.config.precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if state.config.precision == "bf16" else torch.float16
    return torch.autocast(state.device.type, dtype)


def _hits(outputs: Any, targets: Tensor) -> Tensor | None:
    """Which answers of a classification are right; None where the targets are not one class each.

    Not summed here: in a step of a few milliseconds every further operation shows, and it can be done once an epoch.
    """
    classes = isinstance(outputs, Tensor) and outputs.dim() == 2 and targets.dim() == 1
    if not classes or targets.is_floating_point():
        return None
    hits: Tensor = outputs.argmax(1) == targets
    return hits
