"""What a search has found: the best, and the best of each compromise, as ordinary models in run folders."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evolve.config import dump_yaml
from evolve.evolver.evolver import Evolver
from evolve.evolver.output import OutputConfig
from evolve.evolver.run_config import RunConfig
from evolve.lineage import Record
from evolve.mutation import replay
from evolve.population.config import SearchConfig
from evolve.population.evolving import Search
from evolve.population.individual import Individual
from evolve.population.objectives import front
from evolve.population.starting import MODELS
from evolve.population.weights import load_weights, read_weights

INDEX = "index.json"  # among the models: the ids of the best, the first one first


@dataclass(frozen=True)
class Found:
    """One of the best individuals.

    Attributes:
        id: Its id in the archive.
        metrics: What its last evaluation measured, and what it costs.
        mutations: How many lie between it and the first model.
        folder: The run folder of its model, which `evolve.load` takes and `evolve resume` trains on; None where the
            space has no models.
        code: What the space knows it by.
    """

    id: int
    metrics: dict[str, float]
    mutations: int
    folder: Path | None
    code: Any


@dataclass(frozen=True)
class SearchResult:
    """What came of a search.

    Attributes:
        best: The best few, the first by the first objective; with several objectives all that no other one dominates.
        folder: Where the search lies; `evolve.load` gives the model of the first of the best.
        evaluations: How often an individual was trained.
        finished: Whether the budget is spent; false where it was stopped.
    """

    best: list[Found]
    folder: Path
    evaluations: int
    finished: bool


def finish(search: Search, config: SearchConfig | None, finished: bool) -> SearchResult:
    """Returns what came of a search; the best are written as run folders.

    Args:
        search: As it ended.
        config: Its configuration; None where model or data have no name.
        finished: Whether it is.
    """
    best, archive = [], search.archive
    if search.breeder is not None:
        shutil.rmtree(search.folder / MODELS, ignore_errors=True)
    several = len(search.objectives) > 1
    for each in [one.id for one in front(members(search))] if several else search.planner.top():
        folder = None if search.breeder is None else search.folder / MODELS / str(each)
        records = [Record.model_validate(record) for record in archive.genome(each)] if folder else []
        if folder is not None:
            _write(search, each, records, folder, config)
        best.append(Found(each, archive.metrics(each), len(records), folder, archive.individual(each).code))
    if search.breeder is not None:
        (search.folder / MODELS).mkdir(exist_ok=True)
        (search.folder / MODELS / INDEX).write_text(json.dumps([one.id for one in best]), encoding="utf-8")
    return SearchResult(best, search.folder, search.evaluations, finished)


def members(search: Search) -> list[Individual]:
    """Returns the individuals that have values."""
    return [each for each in search.planner.individuals.values() if each.values]


def _write(search: Search, each: int, records: list[Record], folder: Path, config: SearchConfig | None) -> None:
    """Writes the model of an individual as a run that has yet to make its first step."""
    assert search.breeder is not None
    subject = search.breeder.subject
    model = copy.deepcopy(subject.model)
    replay(model, records)
    load_weights(model, read_weights(search.archive.weights(each), search.blobs))
    evolver = Evolver(
        model,
        subject.data.train,
        subject.data.val,
        optimizer=subject.optimizer,
        lr_schedule=subject.lr_schedule,
        training=subject.training,
        task=subject.task,
        output=str(folder),
        progress=False,
        config_text=None if config is None else _run_text(config, folder),
    )
    evolver.lineage.records[:] = records
    evolver.save()


def _run_text(config: SearchConfig, folder: Path) -> str:
    """The configuration of the run that trains a model on."""
    shared = ("model", "data", "task", "optimizer", "lr_schedule", "training", "plugins", "import_from")
    sections = {name: getattr(config, name) for name in shared}
    return dump_yaml(RunConfig(**sections, output=OutputConfig(dir=str(folder))))
