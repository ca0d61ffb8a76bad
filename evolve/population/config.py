"""A search as a configuration: what a child is, as for a run, and how the population is led."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, model_validator
from typing_extensions import Self

from evolve.config import (
    KeyPath,
    Named,
    OptionFaults,
    Section,
    apply_overrides,
    is_trusted,
    load_yaml,
    validate,
)
from evolve.config.options import check_options
from evolve.errors import EvolveError, UnknownNameError
from evolve.evolver.config import OperatorConfig
from evolve.evolver.run_config import DataConfig, ModelConfig, let_budget_win, plugin_faults, take_import_folder
from evolve.mutation.limits import Limits
from evolve.population.algorithms import algorithms
from evolve.population.executors import executors
from evolve.population.halving import Halving
from evolve.population.objectives import COSTS, Objective
from evolve.population.space import Space
from evolve.population.worker import find_space
from evolve.tasks import Metric, TaskConfig
from evolve.training import TrainingConfig
from evolve.training.config import MonitorConfig
from evolve.training.lr_schedule import LrScheduleConfig
from evolve.training.monitor import MONITOR, find_monitor
from evolve.training.optim import OptimizerConfig

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
    """Something that is sought.

    Attributes:
        metric: A metric of the task on held-out data, such as "val_accuracy", or a cost: "params", "flops" (of one
            sample's forward pass) or "latency" (seconds of it, measured).
        mode: Which way is better; null for what the metric itself says. Costs are to be small.
    """

    metric: Annotated[str, Field(min_length=1)]
    mode: Literal["min", "max"] | None = None


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


class PopulationConfig(Section):
    """How a population is led.

    Attributes:
        algorithm: What is evaluated next.
        operators: Mutation operators that make children; each with all its sites, or with those that are named.
        objectives: What is sought, the most important first; null for `training.monitor`.
        budget: How long the search is.
        limits: Caps that no child may pass.
        start: Budgets of a child that the first model is trained for before it has children.
        regions: Parts of a model, by depth, that edits are drawn by and that algorithms tell apart.
        walk: Most edits of a random individual, which populations begin with.
        halving: Which children are trained longer; null for none.
        rates: Whether operators are drawn equally often, or the more often the more they have paid.
        again: Share of the budget, at its end, in which the best few are trained on and evaluated again.
        best: How many they are; with several objectives all of the front are.
        executor: Where children are made and trained.
        timeout: Seconds that a child may take; null for no limit.
        attempts: Times that a child is begun whose worker is lost.
        probe: Samples of the training data that each mutation is verified on.
        space: Another search space, in place of the model and what it grows by.
    """

    algorithm: AlgorithmConfig = AlgorithmConfig()
    operators: list[OperatorConfig] = Field(default_factory=list)
    objectives: Annotated[list[ObjectiveConfig], Field(min_length=1)] | None = None
    budget: BudgetConfig
    limits: Limits = Limits()
    start: Annotated[float, Field(gt=0)] = 1.0
    regions: Annotated[int, Field(ge=1)] = 3
    walk: Annotated[int, Field(ge=1)] = 3
    halving: HalvingConfig | None = None
    rates: Literal["equal", "adaptive"] = "equal"
    again: Annotated[float, Field(ge=0, lt=1)] = 0.15
    best: Annotated[int, Field(ge=1)] = 5
    executor: ExecutorConfig = ExecutorConfig()
    timeout: Annotated[float, Field(gt=0)] | None = None
    attempts: Annotated[int, Field(ge=1)] = 3
    probe: Annotated[int, Field(ge=2)] = 8
    space: SpaceConfig | None = None


class SearchOutput(Section):
    """Where a search is written.

    Attributes:
        dir: The run folder.
        overwrite: Remove an existing search from the folder instead of refusing to start.
    """

    dir: Annotated[str, Field(min_length=1)] = "runs/search"
    overwrite: bool = False


class SearchConfig(Section):
    """A whole search. Its sections are those of a run: by them a child is trained, for the budget of `training`.

    Attributes:
        import_from: The folder in which the modules that it names are looked up; see `RunConfig`.
    """

    search: PopulationConfig
    model: ModelConfig | None = None
    data: DataConfig | None = None
    task: TaskConfig = TaskConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_schedule: LrScheduleConfig | None = LrScheduleConfig(name="CosineAnnealingLR")
    training: TrainingConfig = TrainingConfig()
    output: SearchOutput = SearchOutput()
    plugins: list[str] = Field(default_factory=list)
    import_from: str | None = None

    @model_validator(mode="after")
    def _has_something_to_search(self) -> Self:
        search = self.search
        faults: list[tuple[KeyPath, str]] = []
        if search.space is None:
            faults += [((part,), "is missing.") for part in ("model", "data") if getattr(self, part) is None]
            if not search.operators:
                message = "is empty: children are made by operators, such as [widen, residual]."
                faults += [(("search", "operators"), message)]
        else:
            said = "the space stands for it: leave it out."
            faults += [((part,), said) for part in ("model", "data") if getattr(self, part) is not None]
            faults += [(("search", "operators"), said)] if search.operators else []
        if self.lr_schedule is not None and self.lr_schedule.name == "ReduceLROnPlateau":
            message = "is of no use in a child's short training: take another one, or null for a constant rate."
            faults += [(("lr_schedule", "name"), message)]
        if self.training.patience is not None:
            faults += [(("training", "patience"), "a child is trained for its whole budget: leave this out.")]
        if self.training.loss is not None and not self.task.takes_loss():
            message = f"the task '{self.task.name}' computes its loss by itself: leave this out, or use another task."
            faults += [(("training", "loss"), message)]
        if faults:
            raise OptionFaults(faults)
        return self

    @model_validator(mode="after")
    def _objectives_are_measured(self) -> Self:
        try:
            self.objectives()
        except EvolveError as error:
            message = str(error).removeprefix(MONITOR)
            raise OptionFaults([(("search", "objectives"), message)]) from error
        return self

    def objectives(self) -> list[Objective]:
        """Returns what is sought.

        Raises:
            EvolveError: If one is not measured, or nobody says which way is better.
        """
        if self.search.space is not None:
            asked = self.search.objectives or [ObjectiveConfig(metric="fitness", mode="max")]
            return [Objective(one.metric, one.mode or "max") for one in asked]
        return objectives_of(self.search, self.training, self.task.measured())


def objectives_of(search: PopulationConfig, training: TrainingConfig, measured: Sequence[Metric]) -> list[Objective]:
    """Returns what a search for networks seeks.

    Args:
        search: How the population is led.
        training: Whose monitor counts where no objective is named.
        measured: What an evaluation measures beside the loss.

    Raises:
        EvolveError: If one is not measured, nobody says which way is better, or the algorithm seeks one alone.
    """
    asked = search.objectives or [ObjectiveConfig(metric=training.monitor.metric, mode=training.monitor.mode)]
    found = []
    for one in asked:
        if one.metric in COSTS:
            found.append(Objective(one.metric, one.mode or "min"))
        else:
            monitor = find_monitor(MonitorConfig(metric=one.metric, mode=one.mode), measured)
            found.append(Objective(monitor.metric, monitor.mode))
    names = [objective.metric for objective in found]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise EvolveError(f"'{doubled}' is there twice.")
    if len(names) > 1 and not algorithms.get(search.algorithm.name).multi_objective:
        able = ", ".join(name for name in algorithms if algorithms.get(name).multi_objective)
        raise EvolveError(f"'{search.algorithm.name}' seeks one objective; several are sought by {able}.")
    return found


def load_search(path: str | Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Reads a YAML file; imports its plugins first, so that they can be named in it. What it names is trusted.

    Args:
        path: The file.
        overrides: Such as "search.executor=ray"; they win over the file.

    Raises:
        ConfigError: With all faults of file and overrides.
    """
    raw, places, faults = load_yaml(path)
    raw, places, more = apply_overrides(raw, places, overrides)
    let_budget_win(raw, places)
    take_import_folder(raw, Path(path).parent)
    return validate(SearchConfig, raw, places, path, [*faults, *more, *plugin_faults(raw, places, path)])
