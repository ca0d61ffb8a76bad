"""What is done for a model right after it was mutated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from evolve.care.config import CareConfig
from evolve.care.new_parameters import NewParameters
from evolve.care.recalibrate import recalibrate
from evolve.mutation.api import MutationResult
from evolve.surgery.optimizer import forget
from evolve.surgery.parts import ParametersBefore, new_parts, renamed_keys
from evolve.surgery.resize import Cut


class WeightAverage(Protocol):
    """A moving average of weights; `EMA` is one."""

    def rename(self, names: Mapping[str, str]) -> None:
        """Keeps averages under the names that parameters have now: old names, with the new ones."""

    def follow(self, model: nn.Module, cuts: Sequence[Cut] = (), redrawn: Sequence[str] = ()) -> None:
        """Makes the average fit the model again."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what there is to remember."""

    def load_state_dict(self, state: Any) -> None:
        """Takes up what `state_dict` returned."""


class TrainingRun(Protocol):
    """What is known of a training; `evolve.Loop` is one."""

    model: nn.Module
    optimizers: list[Optimizer]
    ema: WeightAverage | None


def grown(result: MutationResult) -> bool:
    """Whether a mutation was applied and brought parameters."""
    return bool(result) and result.record.params_after > result.record.params_before


def after_mutation(
    config: CareConfig,
    run: TrainingRun,
    new_parameters: NewParameters,
    before: ParametersBefore,
    applied: Sequence[MutationResult],
    batches: Iterable[Any],
    adopted: bool = False,
) -> None:
    """Lets everything that goes with a model's parameters follow them, and gives the care that comes once.

    Args:
        config: What care.
        run: The training.
        new_parameters: Cares for new parts while they are young.
        before: The parameters before.
        applied: What was done to the model since, in order.
        batches: Inputs on the model's device, for the statistics of BatchNorm; none leaves them alone.
        adopted: Whether the model has taken up what a child of it has learned. Then averages begin anew, as all values
            are others, and what is new is not young any more.
    """
    model = run.model
    names = before.renamed(model)
    shapes = renamed_keys(before.shapes, names)
    cuts = [cut for result in applied for cut in result.cuts]
    if run.ema is not None:
        run.ema.rename(names)
        redrawn = list(shapes) if adopted else [name for result in applied for name in result.redrawn]
        run.ema.follow(model, cuts, redrawn)
    growth = any(map(grown, applied)) and not adopted
    if growth and config.moments == "reset":
        for optimizer in run.optimizers:
            forget(optimizer, model.parameters())
    new_parameters.rename(names)
    new_parameters.add(model, new_parts(model, shapes, cuts) if growth else {}, cuts)
    if config.batchnorm:
        recalibrate(model, batches)
