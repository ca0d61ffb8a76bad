"""Searches that begin, or go on in the folder of one that was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evolve.config import dump_yaml
from evolve.errors import EvolveError
from evolve.plugins import load_plugins
from evolve.population.algorithms import algorithms
from evolve.population.archive import Archive
from evolve.population.blobs import BlobFolder
from evolve.population.breeding import Breeder
from evolve.population.config import PopulationConfig, SearchConfig
from evolve.population.editing import labels
from evolve.population.events import SearchCallback
from evolve.population.evolving import Search
from evolve.population.executors import Executor, InProcess, executors
from evolve.population.folder import ARCHIVE, CONFIG, MODELS, WEIGHTS, is_search
from evolve.population.jobs import Setup
from evolve.population.objectives import Objective
from evolve.population.planner import Planner
from evolve.population.rates import Rates
from evolve.population.sections import NETWORKS
from evolve.population.space import Space
from evolve.population.worker import build_space
from evolve.training.environment import ENVIRONMENT, note_session
from evolve.training.folder import replace_text
from evolve.training.lock import RunLock


@dataclass(frozen=True)
class Parts:
    """What a search is made of.

    Attributes:
        population: How it is led.
        objectives: What is sought.
        seed: Of all that is drawn.
        breeder: Makes and trains networks in this process; None where other genomes are searched.
        config: The configuration, from which workers build the same; None where model or data have no name.
        text: What is written into the folder.
    """

    population: PopulationConfig
    objectives: list[Objective]
    seed: int
    breeder: Breeder | None
    config: SearchConfig | None
    text: str


def parts_of(config: SearchConfig) -> Parts:
    """Builds what a configuration describes, and checks that it fits together.

    Raises:
        EvolveError: If a part cannot be built.
        MisfitError: If model, task and data do not fit together.
    """
    load_plugins(config.plugins)
    breeder = None if config.search.space else Breeder.from_config(config)
    return Parts(config.search, config.objectives(), config.training.seed, breeder, config, dump_yaml(config))


def begin(parts: Parts, folder: Path, *, overwrite: bool = False, callbacks: Sequence[SearchCallback] = ()) -> Search:
    """Returns a new search; its folder is made.

    Args:
        parts: What it is made of.
        folder: Where it is to lie.
        overwrite: Remove a search that lies there.
        callbacks: Told of each event.

    Raises:
        EvolveError: If the folder holds a search or cannot be written to.
        MisfitError: If model, task and data do not fit together.
    """
    if is_search(folder) and not overwrite:
        raise EvolveError(
            f"'{folder}' holds a search already. Go on with it (`evolve resume {folder}`), or write elsewhere "
            "(output.dir=...), or over it (output.overwrite=true)."
        )
    space, executor = _space_of(parts), _executor_of(parts)
    if parts.breeder is not None:
        parts.breeder.check()
    with RunLock(folder):  # another process may be at what would be removed
        _empty(folder, was_search=is_search(folder))
    (folder / CONFIG).write_text(parts.text, encoding="utf-8")
    meta = {
        "objectives": [[each.metric, each.mode] for each in parts.objectives],
        "space": space.name if parts.breeder else type(space).__name__,
        "algorithm": parts.population.algorithm.name,
        "budget": [parts.population.budget.unit, parts.population.budget.amount],
        "executor": executor.facts(),
        "torch": torch.__version__,
        "seed": parts.seed,
    }
    _note(parts, folder)
    return _search(parts, space, executor, Archive.create(folder / ARCHIVE, meta), callbacks)


def go_on(parts: Parts, folder: Path, callbacks: Sequence[SearchCallback] = ()) -> Search:
    """Returns the search of a folder, to go on from where it stands.

    Raises:
        EvolveError: If there is none.
    """
    space, executor = _space_of(parts), _executor_of(parts)
    archive = Archive.open(folder / ARCHIVE)
    with RunLock(folder):  # what another process is at is not changed
        archive.put("budget", [parts.population.budget.unit, parts.population.budget.amount])
        archive.put("executor", executor.facts())
        replace_text(folder / CONFIG, parts.text)  # a longer budget holds from now on
    _note(parts, folder)
    return _search(parts, space, executor, archive, callbacks)


def _note(parts: Parts, folder: Path) -> None:
    """Notes with what the search is made; an accelerator by its kind alone, as it is the workers' to open."""
    note_session(folder, [parts.breeder.subject.training.device] if parts.breeder else [])


def _search(
    parts: Parts, space: Space, executor: Executor, archive: Archive, callbacks: Sequence[SearchCallback]
) -> Search:
    population = parts.population
    planner = Planner(
        algorithms.get(population.algorithm.name)(
            space, parts.seed, Rates(population.rates == "adaptive"), **population.algorithm.options
        ),
        parts.seed,
        population.halving.build() if population.halving else None,
        population.again,
        population.best,
    )
    said = {"name": _name_of(space, parts), "options": space.options.model_dump(mode="json")}
    setup = Setup(said, parts.config.model_dump(mode="json") if parts.config else {})
    blobs = BlobFolder(archive.path.parent / WEIGHTS)
    return Search(
        population, parts.objectives, space, planner, executor, archive, blobs, setup, parts.breeder, callbacks
    )


def _name_of(space: Space, parts: Parts) -> str:
    return parts.population.space.name if parts.population.space else space.name


def _space_of(parts: Parts) -> Space:
    search = parts.population
    if search.space is not None:
        return build_space(search.space.name, search.space.options)
    options = {"operators": list(labels(search.operators)), "regions": search.regions, "walk": search.walk}
    return build_space(NETWORKS, options)


def _executor_of(parts: Parts) -> Executor:
    named = parts.population.executor
    executor: Executor = executors.get(named.name)(**named.options)
    if isinstance(executor, InProcess):
        executor.evaluator = parts.breeder
    elif parts.config is None:
        raise EvolveError(
            f"The executor '{named.name}' builds model and data anew in each worker, as nothing is pickled. Give both "
            "by name, evolve.search('my_package.models:Net', 'my_package.data:load', ...), or search in_process."
        )
    return executor


def _empty(folder: Path, was_search: bool) -> None:
    """Makes the folder of a search; what another one has left there is removed, and nothing else."""
    others = [name for name in (WEIGHTS, MODELS) if (folder / name).exists()]
    if others and not was_search:
        raise EvolveError(
            f"'{folder}' is not the folder of a search, and has a '{others[0]}' that would be lost. Name another one "
            "(output.dir=...)."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (ARCHIVE, f"{ARCHIVE}-wal", f"{ARCHIVE}-shm", CONFIG, ENVIRONMENT):
            (folder / name).unlink(missing_ok=True)
        for name in (WEIGHTS, MODELS):
            if (folder / name).exists():
                shutil.rmtree(folder / name)
    except OSError as error:
        raise EvolveError(f"'{folder}' cannot be written to: {error}.") from error
