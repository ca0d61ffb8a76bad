"""The `training` section of a configuration."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from evolve.budget import UNITS, Budget
from evolve.config import OptionFaults, Section
from evolve.tasks import LossConfig


class MonitorConfig(Section):
    """The metric that decisions look at: schedules, policies, probation, early stopping, the best checkpoint.

    Attributes:
        metric: Its key in the metrics of an epoch, such as "val_f1".
        mode: Which way is better; null for what the metric itself says.
    """

    metric: Annotated[str, Field(min_length=1)] = "val_loss"
    mode: Literal["min", "max"] | None = None


class TrainingConfig(Section):
    """How to train, and for how long: one of `epochs`, `steps`, `seconds` and `flops` is the budget.

    Attributes:
        epochs: Passes over the training data; null where another budget is given.
        steps: Optimizer steps.
        seconds: Wall time of training, evaluating and mutating.
        flops: FLOPs of all training steps: 3 times those of a forward pass, for each sample.
        device: "auto" (cuda, mps, cpu), or a torch device.
        precision: "fp32", or autocast to "bf16" or "fp16" (with loss scaling on CUDA).
        loss: A function of outputs and targets, of `torch.nn.functional` or by import path, instead of the task's own;
            null for that.
        grad_clip: Greatest norm of all gradients together; null for none.
        accumulate: Batches per optimizer step.
        monitor: The metric that decisions look at, and which way is better.
        patience: Epochs without a better value of it after which the run ends; below 1 the part of the epochs so far,
            and 20 at least, in which it was worse than the best one; null for none.
        keep_best: Whether the model has the weights of the best epoch when the run is over, of those since the last
            mutation, and averaged ones where there are; otherwise it has those of the last step.
        ema: Decay of a moving average of the weights, used for evaluation; "auto" for one over a part of the steps so
            far; null for none.
        channels_last: Keep images and convolutions in channels-last memory format.
        compile: Run the model through `torch.compile`; it compiles again after a mutation.
        seed: Of Python, NumPy, torch, the data order and the mutations.
    """

    epochs: Annotated[int, Field(ge=1)] | None = 10
    steps: Annotated[int, Field(ge=1)] | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None
    flops: Annotated[float, Field(gt=0)] | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    loss: LossConfig | None = None
    grad_clip: Annotated[float, Field(gt=0)] | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1
    monitor: MonitorConfig = MonitorConfig()
    patience: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = None
    keep_best: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] | None = None
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

    @cached_property
    def budget(self) -> Budget:
        """How long the run is."""
        return next(Budget(unit, amount) for unit in UNITS if (amount := getattr(self, unit)) is not None)
