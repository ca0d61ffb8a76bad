"""A search as a configuration: what a child is, as for a run, and how the population is led."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from evolve.config import (
    Fault,
    KeyPath,
    OptionFaults,
    Place,
    Places,
    Section,
    apply_overrides,
    load_yaml,
    validate,
)
from evolve.config.faults import key_text
from evolve.errors import EvolveError
from evolve.evolver.config import OperatorConfig
from evolve.evolver.run_config import DataConfig, ModelConfig, let_budget_win, plugin_faults, take_import_folder
from evolve.mutation.limits import Limits
from evolve.population.algorithms import algorithms
from evolve.population.objectives import COSTS, Objective
from evolve.population.sections import (
    AlgorithmConfig,
    BudgetConfig,
    ExecutorConfig,
    HalvingConfig,
    ObjectiveConfig,
    SpaceConfig,
)
from evolve.tasks import Metric, TaskConfig
from evolve.training import TrainingConfig
from evolve.training.config import MonitorConfig
from evolve.training.lr_schedule import LrScheduleConfig
from evolve.training.monitor import MONITOR, find_monitor
from evolve.training.optim import OptimizerConfig

PLATEAU = "ReduceLROnPlateau"
_NO_PLATEAU = "is of no use in a child's short training: take another one, or null for a constant rate."
_OF_RUNS = ("patience", "keep_best")
_WHOLE_BUDGET = "a child is trained for its whole budget: leave this out."
_SPACE_STANDS = "the space stands for it: leave it out."


class PopulationConfig(Section):
    """How a population is led.

    Attributes:
        algorithm: What is evaluated next.
        space: Another search space, in place of the model and what it grows by.
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
        best: How many they are at first; with several objectives all of the front are, then of the next ones who stands
            alone.
        finish: Budgets of a child that one of them is trained for each time.
        executor: Where children are made and trained.
        timeout: Seconds that a child may take; null for no limit.
        attempts: Times that a child is begun whose worker is lost.
        probe: Samples of the training data that each mutation is verified on.
    """

    # A check of a field sees those above it: whatever else is wrong, all faults are told at once.
    algorithm: AlgorithmConfig = AlgorithmConfig()
    space: SpaceConfig | None = None
    operators: list[OperatorConfig] = Field(default_factory=list, validate_default=True)
    objectives: Annotated[list[ObjectiveConfig], Field(min_length=1)] | None = None
    budget: BudgetConfig
    limits: Limits = Limits()
    start: Annotated[float, Field(gt=0)] = 1.0
    regions: Annotated[int, Field(ge=1)] = 3
    walk: Annotated[int, Field(ge=1)] = 3
    halving: HalvingConfig | None = None
    rates: Literal["equal", "adaptive"] = "equal"
    again: Annotated[float, Field(ge=0, lt=1)] = 0.15
    best: Annotated[int, Field(ge=1)] = 8
    finish: Annotated[float, Field(gt=0)] = 1.0
    executor: ExecutorConfig = ExecutorConfig()
    timeout: Annotated[float, Field(gt=0)] | None = None
    attempts: Annotated[int, Field(ge=1)] = 3
    probe: Annotated[int, Field(ge=2)] = 8

    @field_validator("operators")
    @classmethod
    def _make_children(cls, operators: list[OperatorConfig], info: ValidationInfo) -> list[OperatorConfig]:
        if "space" in info.data and info.data["space"] is None and not operators:
            raise OptionFaults([((), "is empty: children are made by operators, such as [widen, residual].")])
        if info.data.get("space") and operators:
            raise OptionFaults([((), _SPACE_STANDS)])
        return operators

    @field_validator("objectives")
    @classmethod
    def _can_be_sought(cls, objectives: list[ObjectiveConfig] | None, info: ValidationInfo) -> Any:
        names = [one.metric for one in objectives or ()]
        faults: list[tuple[KeyPath, str]] = [
            ((index, "metric"), f"'{name}' is there twice.")
            for index, name in enumerate(names)
            if name in names[:index]
        ]
        algorithm = info.data.get("algorithm")
        if algorithm and len(names) > 1 and not algorithms.get(algorithm.name).multi_objective:
            able = ", ".join(name for name in algorithms if algorithms.get(name).multi_objective)
            faults.append(((), f"'{algorithm.name}' seeks one objective; several are sought by {able}."))
        if faults:
            raise OptionFaults(faults)
        return objectives

    @field_validator("halving")
    @classmethod
    def _has_something_to_decide(cls, halving: HalvingConfig | None, info: ValidationInfo) -> HalvingConfig | None:
        algorithm = info.data.get("algorithm")
        if halving and algorithm and algorithms.get(algorithm.name).trains_on:
            message = f"'{algorithm.name}' has its individuals trained on by itself: leave this out, or take another."
            raise OptionFaults([((), message)])
        return halving


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

    model: ModelConfig | None = None
    data: DataConfig | None = None
    task: TaskConfig = TaskConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_schedule: LrScheduleConfig | None = LrScheduleConfig(name="CosineAnnealingLR")
    training: TrainingConfig = TrainingConfig()
    search: PopulationConfig
    output: SearchOutput = SearchOutput()
    plugins: list[str] = Field(default_factory=list)
    import_from: str | None = None

    @field_validator("lr_schedule", mode="before")
    @classmethod
    def _has_no_plateau(cls, value: Any) -> Any:
        name = value.get("name") if isinstance(value, dict) else getattr(value, "name", value)
        if name == PLATEAU:
            raise OptionFaults([(("name",), _NO_PLATEAU)])
        return value

    @field_validator("training")
    @classmethod
    def _fits_a_child(cls, training: TrainingConfig, info: ValidationInfo) -> TrainingConfig:
        faults: list[tuple[KeyPath, str]] = []
        faults += [((name,), _WHOLE_BUDGET) for name in _OF_RUNS if getattr(training, name)]
        if task := info.data.get("task"):
            if training.loss is not None and not task.takes_loss():
                message = f"the task '{task.name}' computes its loss by itself: leave this out, or use another task."
                faults.append((("loss",), message))
            try:
                find_monitor(training.monitor, task.measured())
            except EvolveError as error:
                faults.append((("monitor", "metric"), str(error).removeprefix(MONITOR)))
        if faults:
            raise OptionFaults(faults)
        return training

    @field_validator("search")
    @classmethod
    def _seeks_what_is_measured(cls, search: PopulationConfig, info: ValidationInfo) -> PopulationConfig:
        task: TaskConfig | None = info.data.get("task")
        if task is None or search.space is not None:
            return search
        if faults := list(_unmeasured(search.objectives or (), task.measured())):
            raise OptionFaults(faults)
        return search

    def objectives(self) -> list[Objective]:
        """Returns what is sought.

        Raises:
            EvolveError: If one is not measured, or nobody says which way is better.
        """
        if self.search.space is not None:
            asked = self.search.objectives or [ObjectiveConfig(metric="fitness", mode="max")]
            return [Objective(one.metric, one.mode or "max") for one in asked]
        return objectives_of(self.search, self.training, self.task.measured())


def unfit_for_children(training: TrainingConfig, lr_schedule: LrScheduleConfig) -> list[tuple[KeyPath, str]]:
    """Returns what no child can be trained by, as paths and messages."""
    faults: list[tuple[KeyPath, str]] = []
    faults += [(("training", name), _WHOLE_BUDGET) for name in _OF_RUNS if getattr(training, name)]
    if lr_schedule.name == PLATEAU:
        faults.append((("lr_schedule", "name"), _NO_PLATEAU))
    return faults


def objectives_of(search: PopulationConfig, training: TrainingConfig, measured: Sequence[Metric]) -> list[Objective]:
    """Returns what a search for networks seeks.

    Args:
        search: How the population is led.
        training: Whose monitor counts where no objective is named.
        measured: What an evaluation measures beside the loss.

    Raises:
        EvolveError: If one is not measured, or nobody says which way is better.
    """
    asked = search.objectives or [ObjectiveConfig(metric=training.monitor.metric, mode=training.monitor.mode)]
    if faults := list(_unmeasured(asked, measured)):
        raise EvolveError("; ".join(f"{key_text(path)}: {message}" for path, message in faults))
    return [_objective(one, measured) for one in asked]


def _objective(one: ObjectiveConfig, measured: Sequence[Metric]) -> Objective:
    if one.metric in COSTS:
        return Objective(one.metric, one.mode or "min")
    monitor = find_monitor(MonitorConfig(metric=one.metric, mode=one.mode), measured)
    return Objective(monitor.metric, monitor.mode)


def _unmeasured(objectives: Sequence[ObjectiveConfig], measured: Sequence[Metric]) -> Iterator[tuple[KeyPath, str]]:
    for index, one in enumerate(objectives):
        try:
            _objective(one, measured)
        except EvolveError as error:
            message = str(error).removeprefix(MONITOR).replace("training.monitor.mode", "its `mode`")
            yield ("objectives", index, "metric"), message


def load_search(path: str | Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Reads a YAML file; imports its plugins first, so that they can be named in it. What it names is trusted.

    Args:
        path: The file.
        overrides: Such as "search.executor=ray"; they win over the file.

    Raises:
        ConfigError: With all faults of file and overrides.
    """
    raw, places, faults = load_yaml(path)
    raw, places, more = take_overrides(raw, places, overrides)
    take_import_folder(raw, Path(path).parent)
    return validate(
        SearchConfig,
        raw,
        places,
        path,
        [*faults, *more, *plugin_faults(raw, places, path), *part_faults(raw, places, path)],
    )


def take_overrides(
    raw: dict[str, Any], places: Places, overrides: Sequence[str]
) -> tuple[dict[str, Any], Places, list[Fault]]:
    """Returns raw values with overrides in them; a budget takes the place of another one."""
    raw, places, faults = apply_overrides(raw, places, overrides)
    let_budget_win(raw, places)
    let_budget_win(raw, places, ("search", "budget"), BudgetConfig.model_fields)
    return raw, places, faults


def part_faults(raw: Mapping[str, Any], places: Places, path: str | Path) -> list[Fault]:
    """Returns what a search without a space lacks, or has beside one, whatever else is wrong with it."""
    search = raw.get("search")
    spaced = isinstance(search, dict) and search.get("space") is not None
    wrong = [part for part in ("model", "data") if raw and (raw.get(part) is None) != spaced]
    message = _SPACE_STANDS if spaced else "is missing."
    return [Fault((part,), places.get((part,), Place(str(path), 1)), message) for part in wrong]
