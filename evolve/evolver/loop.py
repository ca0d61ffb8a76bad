"""What mutations ask of a training loop, whoever runs it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from evolve.care import WeightAverage
from evolve.config.options import Monitor
from evolve.errors import EvolveError
from evolve.evolver.devices import Devices
from evolve.mutation import MutationResult
from evolve.structure.gradients import detached
from evolve.surgery.optimizer import Optimizers, as_optimizers
from evolve.training.snapshot import Snapshot, Stateful

OutputLoss = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Score:
    """A metric on held-out data.

    Attributes:
        value: On all of it.
        values: On each batch, which tells how much chance is in it.
    """

    value: float
    values: Sequence[float]


class Stretch(NamedTuple):
    """Some steps of training.

    Attributes:
        losses: The training loss of each.
        price: Part of the run's budget that one takes.
    """

    losses: Sequence[float]
    price: float


class Loop:
    """A training loop as its mutations see it: what is trained, and what can be asked of it.

    Whoever has a loop of their own gives a `MutationController` one of these. Policies that train children
    (`hill_climb`) and BatchNorm recalibration (`care.batchnorm`) need more of the loop: a subclass that has `train` or
    `batches`.

    Args:
        model: The model, as it is trained. A compiled model may be given by its `torch.compile` wrapper.
        optimizer: The optimizer that trains it, or several.
        example_inputs: A few training samples, on which mutations are planned and verified: a tensor, a sequence of
            arguments or a mapping of keyword arguments.
        loss: Makes a scalar of the model's outputs on `example_inputs`, for what looks at gradients.
        evaluate: Returns the loss of a model on held-out data, in eval mode, or several metrics by name, such as
            `{"loss": 0.3, "f1": 0.8}`. Probation and children need it.
        monitor: The metric that decisions look at; `Monitor("val_loss", "min")` if None.
        ema: A moving average of the weights, which follows them.
        also: Whatever else training moves, with `state_dict` and `load_state_dict`: learning rate schedules, a gradient
            scaler, a sampler. It goes back with the weights where a mutation goes back.
        steps: Optimizer steps of the whole training, for schedules that count parts of it.
        seed: Seed of everything that mutations draw.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        *,
        example_inputs: Any,
        loss: OutputLoss | None = None,
        evaluate: Callable[[nn.Module], float | Mapping[str, float]] | None = None,
        monitor: Monitor | None = None,
        ema: WeightAverage | None = None,
        also: Sequence[Stateful] = (),
        steps: int | None = None,
        seed: int = 0,
    ) -> None:
        inner = getattr(model, "_orig_mod", None)  # torch.compile's wrapper
        self.model: nn.Module = inner if isinstance(inner, nn.Module) else model
        self.optimizers = as_optimizers(optimizer)
        self.example = example_inputs
        self.loss = loss
        self.ema = ema
        self.seed = seed
        self.monitor = monitor or Monitor()
        self.devices = Devices()
        self._epoch = self._step = 0
        self._evaluate = evaluate
        self._also = list(also) if isinstance(also, Iterable) else [also]
        self._steps = steps
        self._check()

    def _check(self) -> None:
        """Refuses arguments that would fail at the first mutation only.

        Raises:
            EvolveError: With the argument, what was found and what it has to be.
        """

        def refuse(argument: str, found: Any, wanted: str) -> None:
            raise EvolveError(f"Loop({argument}=...) takes {wanted}; found '{type(found).__name__}'.")

        if not isinstance(self.model, nn.Module):
            refuse("model", self.model, "an nn.Module")
        held = {id(p) for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]}
        if not any(id(parameter) in held for parameter in self.model.parameters()):
            raise EvolveError(
                "A Loop needs the optimizer that trains the model, or all of them; none of what was given holds a "
                "parameter of it."
            )
        for argument, function in (("loss", self.loss), ("evaluate", self._evaluate)):
            if function is not None and not callable(function):
                refuse(argument, function, "a function")
        for part in self._also:
            if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
                refuse("also", part, "things with state_dict and load_state_dict")
        if self.ema is not None and not hasattr(self.ema, "follow"):
            refuse("ema", self.ema, "an average with follow(model, cuts, redrawn), such as evolve.care.EMA")
        if self._steps is not None and (type(self._steps) is not int or self._steps < 1):
            raise EvolveError(f"Loop(steps=...) takes a whole number from 1; found {self._steps!r}.")
        if type(self.seed) is not int:
            refuse("seed", self.seed, "a whole number")

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self._epoch

    @property
    def step(self) -> int:
        """Optimizer steps made."""
        return self._step

    @property
    def progress(self) -> float:
        """How much of the training is done, from 0 to 1; 0 where its length is not known."""
        return min(1.0, self.step / self._steps) if self._steps else 0.0

    @property
    def over(self) -> bool:
        """Whether the training is over: nothing is due any more, and what is on probation is judged now."""
        return self.progress >= 1

    @property
    def knows_progress(self) -> bool:
        """Whether the length of the training is known."""
        return self._steps is not None

    @property
    def epoch_steps(self) -> float | None:
        """Optimizer steps of an epoch; None where that is not known beforehand."""
        return None

    @property
    def in_seconds(self) -> bool:
        """Whether seconds are the budget, so that `race` measures its price."""
        return False

    @property
    def held_until(self) -> float:
        """Part of the training up to which the learning rate is held; 1 where nothing is known of that."""
        return 1.0

    @property
    def flops_per_sample(self) -> int | None:
        """FLOPs of a forward pass of one sample, 0 where they cannot be counted; None where the loop counts none."""
        return None

    @property
    def evaluates(self) -> bool:
        """Whether the loop can evaluate the model on held-out data."""
        return self._evaluate is not None

    def also(self) -> list[Stateful]:
        """Returns what goes back with model and optimizers."""
        return [*self._also, *([self.ema] if self.ema is not None else [])]

    def snapshot(self, more: Iterable[Stateful] = ()) -> Snapshot:
        """Remembers all that training moves.

        Args:
            more: What is to go back with it.
        """
        return Snapshot(self.model, self.optimizers, [*self.also(), *more])

    def count(self, epoch_end: bool) -> None:
        """Takes note of an optimizer step."""
        self._step += 1
        self._epoch += epoch_end

    def score(self, metric: str) -> Score:
        """Returns a metric of the model on held-out data.

        Args:
            metric: Such as "val_loss".

        Raises:
            EvolveError: If the loop cannot evaluate, or does not know the metric.
        """
        if self._evaluate is None:
            raise EvolveError("Held-out data are needed here. Give the Loop `evaluate=`, a function of the model.")
        found = self._evaluate(self.model)
        named = found if isinstance(found, Mapping) else {"loss": found}
        name = metric.removeprefix("val_")
        if name not in named:
            known = ", ".join(f"val_{key}" for key in named)
            raise EvolveError(f"This loop's `evaluate` gives {known}; {metric} is asked for. Let it return that too.")
        value = float(named[name])
        return Score(value, [value])

    def held_out(self) -> float:
        """Returns the monitored metric of the model on held-out data.

        Raises:
            EvolveError: If the loop cannot evaluate.
        """
        return self.score(self.monitor.metric).value

    def score_batch(self, batches: int) -> tuple[Any, OutputLoss]:
        """Returns inputs, and the loss of the model's outputs on them, on which candidates are scored.

        Args:
            batches: How many training batches to take them from; a loop that has none to give takes the probe batch.

        Raises:
            EvolveError: If there is no loss.
        """
        if self.loss is None:
            raise EvolveError("Scores look at gradients. Give the Loop `loss=`, a function of the model's outputs.")
        return self.example, self.loss

    def loss_batches(self) -> Iterable[tuple[Any, OutputLoss]] | None:
        """Returns the training batches that are next, as `mutate` takes them: inputs, and the loss of outputs on them.

        None where the loop cannot look ahead.
        """
        return None

    def batches(self, count: int) -> Iterable[Any]:
        """Yields the inputs of the training batches that are next, on the model's device.

        Raises:
            EvolveError: If the loop cannot look ahead.
        """
        raise EvolveError("care.batchnorm reads training batches. Subclass evolve.Loop and write its method `batches`.")

    def copied(self) -> Self:
        """Returns a loop over copies of model and optimizers, for a child; schedules and averages stay behind."""
        twin = copy.copy(self)
        twin.model, twin.optimizers = copy.deepcopy((self.model, self.optimizers), detached(self.model))
        twin.ema, twin._also = None, []
        return twin

    def train(self, steps: int, stopping: Callable[[], bool]) -> bool:
        """Trains `self.model` for some steps, on the batches that are next, with the learning rate going to zero.

        Args:
            steps: Optimizer steps.
            stopping: Whether the run is to stop, asked after each step.

        Returns:
            Whether all steps were made.

        Raises:
            EvolveError: If the loop cannot train copies of its model.
        """
        raise EvolveError("This policy trains children. Subclass evolve.Loop and write its method `train`.")

    def race(self, steps: int, stopping: Callable[[], bool], most: float = math.inf) -> Stretch | None:
        """Trains `self.model` as `train` does, but at the present learning rate; None where it is broken off.

        Args:
            steps: Optimizer steps.
            stopping: Whether the run is to stop, asked after each step.
            most: Part of the budget that the steps may cost: where they would cost more, fewer are made.

        Raises:
            EvolveError: If the loop cannot train copies of its model.
        """
        raise EvolveError("The policy 'forecast' races copies. Subclass evolve.Loop and write its method `race`.")

    def glance(self, batches: int) -> float:
        """Returns the loss on the first held-out batches, or on all of the held-out data."""
        return self.score("val_loss").value

    def advance(self, steps: int) -> None:
        """Takes note that the model has made steps, on the batches that were next: those behind them are next now."""
        self._step += steps

    def spend(self, child: Self) -> None:
        """Takes over what another loop has spent, which went on from what this one had."""

    def limit_flops(self, epochs: float) -> int | None:
        """Returns the most FLOPs a sample of a model that the rest of the budget trains for so many epochs.

        None where FLOPs are no limit.
        """
        return None

    def mutated(self, applied: Sequence[MutationResult]) -> None:
        """Called when the model has been changed, before anything else follows it."""

    def count_time(self) -> None:
        """Takes note of the time that has gone by."""

    def counts(self) -> dict[str, Any]:
        """Returns where the loop stands, as JSON values."""
        return {"epoch": self.epoch, "step": self.step}

    def take_counts(self, counts: Mapping[str, Any]) -> None:
        """Takes up what `counts` returned."""
        self._epoch, self._step = counts["epoch"], counts["step"]

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))
