"""What a search is led by, piece by piece: algorithm, executor, space, objectives, budget, halving."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, model_validator
from typing_extensions import Self

from evolve.config import Named, OptionFaults, Section, is_trusted
from evolve.config.options import check_options
from evolve.errors import UnknownNameError
from evolve.population.algorithms import algorithms
from evolve.population.executors import executors
from evolve.population.halving import Halving
from evolve.population.space import Space
from evolve.population.worker import find_space

NETWORKS = "networks"


class AlgorithmConfig(Named):
    """A search algorithm by name, with its options."""

    name: str = "elitist"

    @model_validator(mode="after")
    def _known(self) -> Self:
        check_options(self, algorithms)
        return self


class ExecutorConfig(Named):
    """Where children are made and trained: `in_process`, `processes` or `ray`, with its options."""

    name: str = "in_process"

    @model_validator(mode="after")
    def _known(self) -> Self:
        check_options(self, executors)
        return self


class SpaceConfig(Named):
    """A search space other than networks that grow out of `model`: a registered name or an import path."""

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        if self.name == NETWORKS:
            raise OptionFaults([(("name",), "networks are searched where no space is given: leave `space` out.")])
        try:
            cls = find_space(self.name, is_trusted(info))
        except UnknownNameError as error:
            raise OptionFaults([(("name",), str(error))]) from error
        check_options(self, _One(cls))
        return self


class _One:
    """Finds one class under any name, for `check_options`."""

    def __init__(self, item: type[Space]) -> None:
        self._item = item

    def get(self, name: str) -> type[Space]:
        return self._item


class ObjectiveConfig(Section):
    """Something that is sought: `{metric: X, mode: ...}`, or just `X`.

    Attributes:
        metric: A metric of the task on held-out data, such as "val_accuracy", or a cost: "params", "flops" (of one
            sample's forward pass) or "latency" (seconds of it, measured).
        mode: Which way is better; null for what the metric itself says. Costs are to be small.
    """

    metric: Annotated[str, Field(min_length=1)]
    mode: Literal["min", "max"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_bare_metric(cls, value: Any) -> Any:
        return {"metric": value} if isinstance(value, str) else value


class BudgetConfig(Section):
    """How long a search is: one of these.

    Attributes:
        evaluations: Individuals that are trained, the first one and those that are trained again included.
        seconds: Wall time.
        steps: Optimizer steps of all children together.
    """

    evaluations: Annotated[int, Field(ge=1)] | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [unit for unit in type(self).model_fields if getattr(self, unit) is not None]
        if len(given) != 1:
            units = ", ".join(type(self).model_fields)
            found = f"{' and '.join(given)} are given" if given else "none is given"
            raise OptionFaults([((), f"a search has one budget, and {found}: give one of {units}.")])
        return self

    @property
    def unit(self) -> str:
        """The one that is given."""
        return next(unit for unit in type(self).model_fields if getattr(self, unit) is not None)

    @property
    def amount(self) -> float:
        """How much of it there is."""
        return float(getattr(self, self.unit))


class HalvingConfig(Section):
    """Asynchronous successive halving: of each rung the best 1 in `factor` is trained `factor` times longer.

    Attributes:
        factor: Of whom one is promoted.
        rungs: Promotions that a child can get.
    """

    factor: Annotated[int, Field(ge=2)] = 3
    rungs: Annotated[int, Field(ge=1)] = 2

    def build(self) -> Halving:
        """Returns the halving."""
        return Halving(self.factor, self.rungs)
