"""`evolve.search`: a search in a few lines of Python."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from torch import nn

from evolve.config import explain
from evolve.config.dialect import dump_values
from evolve.config.faults import key_text
from evolve.data import Data, as_batches
from evolve.errors import EvolveError
from evolve.evolver.config import OperatorConfig
from evolve.evolver.run_config import DataConfig, ModelConfig
from evolve.plugins import load_plugins
from evolve.population.breeding import Breeder, Subject
from evolve.population.config import PopulationConfig, SearchConfig, objectives_of, unfit_for_children
from evolve.population.events import SearchCallback
from evolve.population.folder import is_search
from evolve.population.results import SearchResult, finish
from evolve.population.sections import BudgetConfig
from evolve.population.starting import Parts, begin, go_on, parts_of
from evolve.tasks import TaskConfig, TaskSource, build_task
from evolve.training import TrainingConfig
from evolve.training.lr_schedule import LrScheduleConfig
from evolve.training.optim import OptimizerConfig

S = TypeVar("S", bound=BaseModel)
ModelSource = nn.Module | ModelConfig | Mapping[str, Any] | str
DataSource = Data | DataConfig | Mapping[str, Any] | str | tuple[Any, ...]


def search(
    model: ModelSource,
    data: DataSource,
    *,
    operators: Sequence[str | Mapping[str, Any] | OperatorConfig],
    budget: int | Mapping[str, float] | BudgetConfig,
    task: TaskSource | None = None,
    objectives: Sequence[str | Mapping[str, Any]] | None = None,
    algorithm: str | Mapping[str, Any] | None = None,
    population: int | None = None,
    executor: str | Mapping[str, Any] | None = None,
    training: TrainingConfig | None = None,
    optimizer: OptimizerConfig | None = None,
    lr_schedule: LrScheduleConfig | None = None,
    batch_size: int = 64,
    output: str | Path = "runs/search",
    overwrite: bool = False,
    resume: bool = False,
    callbacks: Sequence[SearchCallback] = (),
    plugins: Sequence[str] = (),
    **settings: Any,
) -> SearchResult:
    """Evolves a population of architectures out of a model; children inherit their parents' weights.

    Args:
        model: The first model: a module, which is copied, or what `model` is in a configuration: a name, or
            `{"name": ..., "options": ...}`.
        data: `(train, val)` or `(train, val, test)` of what an `Evolver` takes, a `Data`, or what `data` is in a
            configuration. No decision looks at `test`.
        operators: Mutation operators that make children: names, or `{"name": ..., "options": ...}`.
        budget: Evaluations, or one of `{"evaluations": n}`, `{"seconds": n}`, `{"steps": n}`.
        task: What a batch is, its loss and its metrics, as for an `Evolver`.
        objectives: Metrics such as "val_accuracy" and costs ("params", "flops", "latency"), the most important first;
            None for what `training` monitors.
        algorithm: "elitist" if there is one objective, "nsga2" if there are several, unless another is named.
        population: Its size; None for the algorithm's default.
        executor: "in_process", "processes" or "ray", or `{"name": ..., "options": ...}`. The last two need a model and
            data that have a name, as nothing is pickled.
        training: How a child is trained, and for how long.
        optimizer: What trains it; None for the default.
        lr_schedule: Over the training of a child; None for half a cosine to zero.
        batch_size: Of tensors and data sets.
        output: The folder of the search.
        overwrite: Remove a search that lies there.
        resume: Go on with the search that lies there, where there is one.
        callbacks: Told of each event, see `evolve.population.events`; they may stop the search.
        plugins: Import paths of modules that register operators and the like; workers import them too.
        **settings: Other keys of the section `search`: `limits`, `start`, `regions`, `walk`, `halving`, `rates`,
            `again`, `best`, `timeout`, `attempts`, `probe`.

    Returns:
        What was found; each of the best lies in a run folder that `evolve.load` takes.

    Raises:
        EvolveError: If a part cannot be built or an option is refused.
        MisfitError: If model, task and data do not fit together.

    Example:
        >>> found = evolve.search(model, (train, val), operators=["widen", "deepen", "narrow"], budget=60)
        >>> best = evolve.load(found.folder)
    """
    load_plugins(plugins)
    population_config = _population(operators, budget, objectives, algorithm, population, executor, settings)
    folder = Path(output)
    parts = _parts(model, data, population_config, task, training, optimizer, lr_schedule, batch_size, plugins)
    if resume and is_search(folder):
        running = go_on(parts, folder, callbacks)
    else:
        running = begin(parts, folder, overwrite=overwrite, callbacks=callbacks)
    return finish(running, parts.config, running.run())


def _population(
    operators: Sequence[str | Mapping[str, Any] | OperatorConfig],
    budget: int | Mapping[str, float] | BudgetConfig,
    objectives: Sequence[str | Mapping[str, Any]] | None,
    algorithm: str | Mapping[str, Any] | None,
    population: int | None,
    executor: str | Mapping[str, Any] | None,
    settings: Mapping[str, Any],
) -> PopulationConfig:
    """Returns the section `search` of these arguments."""
    chosen: dict[str, Any] = {"name": algorithm} if isinstance(algorithm, str) else dict(algorithm or {})
    chosen.setdefault("name", "elitist" if len(objectives or ()) < 2 else "nsga2")
    if population is not None:
        chosen["options"] = {**chosen.get("options", {}), "population": population}
    section = {
        "algorithm": chosen,
        "operators": [_plain(each) for each in operators],
        "objectives": objectives and [_plain(one) for one in objectives],
        "budget": {"evaluations": budget} if isinstance(budget, int) else _plain(budget),
        "executor": _plain(executor or "in_process"),
        **{name: _plain(value) for name, value in settings.items()},
    }
    return _section(PopulationConfig, section)


def _section(cls: type[S], values: Mapping[str, Any] | str) -> S:
    """Returns a section of these values, or of a name.

    Raises:
        EvolveError: With all faults.
    """
    raw = {"name": values} if isinstance(values, str) else dict(values)
    try:
        return cls.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        faults = "; ".join(f"{key_text(path)}: {message}" for path, message in explain(error, cls, raw))
        raise EvolveError(f"evolve.search: {faults}") from error


def _parts(
    model: ModelSource,
    data: DataSource,
    population: PopulationConfig,
    task: TaskSource | None,
    training: TrainingConfig | None,
    optimizer: OptimizerConfig | None,
    lr_schedule: LrScheduleConfig | None,
    batch_size: int,
    plugins: Sequence[str],
) -> Parts:
    """Returns what a search is made of: a configuration where everything has a name, objects otherwise."""
    training, optimizer = training or TrainingConfig(), optimizer or OptimizerConfig()
    schedule = lr_schedule or LrScheduleConfig(name="CosineAnnealingLR")
    task = _section(TaskConfig, task) if isinstance(task, str) else task or TaskConfig()
    if isinstance(model, str | Mapping):
        model = _section(ModelConfig, model)
    if isinstance(data, str | Mapping):
        data = _section(DataConfig, {"batch_size": batch_size, **({"name": data} if isinstance(data, str) else data)})
    if isinstance(model, ModelConfig) and isinstance(data, DataConfig) and isinstance(task, TaskConfig):
        parts = {"task": task, "training": training, "optimizer": optimizer, "lr_schedule": schedule}
        sections = {name: _plain(part) for name, part in {"model": model, "data": data, **parts}.items()}
        return parts_of(_section(SearchConfig, {"search": _plain(population), "plugins": list(plugins), **sections}))
    if faults := unfit_for_children(training, schedule):
        raise EvolveError("; ".join(f"evolve.search: {key_text(path)}: {message}" for path, message in faults))
    seed = training.seed
    if isinstance(data, DataConfig):
        data = data.build(seed)
    if isinstance(model, ModelConfig):
        model = model.build()
    subject = Subject(model, _data(data, batch_size, seed), training, optimizer, schedule, task)
    objectives = objectives_of(population, training, build_task(task)[1])
    text = dump_values({"search": _plain(population), "training": _plain(training)})
    return Parts(population, objectives, seed, Breeder.of(subject, population), None, text)


def _data(data: Any, batch_size: int, seed: int) -> Data:
    if isinstance(data, Data):
        return data
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise EvolveError(
            f"evolve.search takes data as (train, val) or (train, val, test), a Data or a name; found "
            f"'{type(data).__name__}'."
        )
    train, *held_out = data
    val, *test = [as_batches(part, batch_size, shuffle=False, seed=seed) for part in held_out]
    return Data(as_batches(train, batch_size, shuffle=True, seed=seed), val, test=test[0] if test else None)


def _plain(value: Any) -> Any:
    """Returns a section as JSON values; what is none stays as it is."""
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
