"""What a search has found: the best, and the best of each compromise, as ordinary models in run folders."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from evolve.config import dump_yaml
from evolve.evolver.evolver import Evolver
from evolve.evolver.output import OutputConfig
from evolve.evolver.run_config import RunConfig
from evolve.lineage import Record
from evolve.mutation import replay
from evolve.population.breeding import Breeder
from evolve.population.config import SearchConfig
from evolve.population.evolving import Search
from evolve.population.folder import INDEX, MODELS
from evolve.population.objectives import front
from evolve.population.weights import load_weights, read_weights
from evolve.training.folder import replace_text
from evolve.training.lock import is_held
from evolve.training.run_files import METRICS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """One of the best individuals.

    Attributes:
        id: Its id in the archive.
        metrics: What its last evaluation measured, what it costs, and what it does on the test data, if there are any.
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
        first: The model that all others grow out of, to be compared with; None where there is none.
        folder: Where the search lies; `evolve.load` gives the model of the first of the best.
        evaluations: How often an individual was trained.
        finished: Whether the budget is spent; false where it was stopped.
    """

    best: list[Found]
    first: Found | None
    folder: Path
    evaluations: int
    finished: bool


def finish(search: Search, config: SearchConfig | None, finished: bool) -> SearchResult:
    """Returns what came of a search; the best are written as run folders, and tried on the test data.

    Args:
        search: As it ended.
        config: Its configuration; None where model or data have no name.
        finished: Whether it is.
    """
    members, gone = search.planner.individuals.values(), search.planner.gone
    done = [each for each in members if each.values and each.id not in gone]
    several = len(search.objectives) > 1
    chosen = [each.id for each in front(done)] if several else search.planner.top()
    if search.breeder is None:
        best = [Found(each, search.archive.metrics(each), 0, None, _code(search, each)) for each in chosen]
        return SearchResult(best, None, search.folder, search.evaluations, finished)
    _clear(search.folder / MODELS)
    best = [_written(search, search.breeder, each, config) for each in chosen]
    (search.folder / MODELS).mkdir(exist_ok=True)
    (search.folder / MODELS / INDEX).write_text(json.dumps(chosen), encoding="utf-8")
    first = None
    if any(each.id == 0 for each in done):
        metrics = {**search.archive.metrics(0), **search.breeder.tested(_model(search, search.breeder, 0, []))}
        first = Found(0, metrics, 0, None, _code(search, 0))
    return SearchResult(best, first, search.folder, search.evaluations, finished)


def _clear(models: Path) -> None:
    """Removes the models that were written before, but for those that somebody has trained on."""
    for folder in models.iterdir() if models.is_dir() else ():
        if not folder.is_dir():
            folder.unlink()
        elif (folder / METRICS).exists() or is_held(folder):
            logger.warning("'%s' was trained on: it stays as it is.", folder)
        else:
            shutil.rmtree(folder)


def _code(search: Search, each: int) -> Any:
    return search.archive.individual(each).code


def _written(search: Search, breeder: Breeder, each: int, config: SearchConfig | None) -> Found:
    """Writes the model of an individual as a run that has yet to make its first step."""
    subject, folder = breeder.subject, search.folder / MODELS / str(each)
    records = [Record.model_validate(record) for record in search.archive.genome(each)]
    model = _model(search, breeder, each, records)
    metrics = {**search.archive.metrics(each), **breeder.tested(model)}
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
    if not folder.exists():
        evolver.save()
        lines = "".join(record.model_dump_json() + "\n" for record in records)
        replace_text(folder / "lineage.jsonl", lines)  # so that it can be reported before it is trained on
    return Found(each, metrics, len(records), folder, _code(search, each))


def _model(search: Search, breeder: Breeder, each: int, records: list[Record]) -> nn.Module:
    model = copy.deepcopy(breeder.subject.model)
    replay(model, records)
    load_weights(model, read_weights(search.archive.weights(each), search.blobs))
    return model


def _run_text(config: SearchConfig, folder: Path) -> str:
    """The configuration of the run that trains a model on."""
    shared = ("model", "data", "task", "optimizer", "lr_schedule", "training", "plugins", "import_from")
    sections = {name: getattr(config, name) for name in shared}
    return dump_yaml(RunConfig(**sections, output=OutputConfig(dir=str(folder))))
