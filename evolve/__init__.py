"""evolve: your PyTorch model changes its own architecture while it trains, and keeps what it has learned.

Names are loaded when they are first asked for: `import evolve` starts no CUDA, scans no plugins and is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evolve.config.options import Monitor as Monitor
    from evolve.evolver.config import EvolutionConfig as EvolutionConfig
    from evolve.evolver.controller import MutationController as MutationController
    from evolve.evolver.evolver import Evolver as Evolver
    from evolve.evolver.loop import Loop as Loop
    from evolve.evolver.output import OutputConfig as OutputConfig
    from evolve.evolver.output import RunResult as RunResult
    from evolve.evolver.run_config import load_config as load_config
    from evolve.export.api import export_model as export_model
    from evolve.lineage import Lineage as Lineage
    from evolve.lineage import Record as Record
    from evolve.loading import load as load
    from evolve.models import build_model as build_model
    from evolve.mutation.api import MutationResult as MutationResult
    from evolve.mutation.api import mutate as mutate
    from evolve.mutation.api import sites as sites
    from evolve.mutation.limits import Limits as Limits
    from evolve.mutation.replaying import replay as replay
    from evolve.operators import MutationOperator as MutationOperator
    from evolve.operators import operator as operator
    from evolve.operators.function import Context as Context
    from evolve.population.api import search as search
    from evolve.population.results import SearchResult as SearchResult
    from evolve.structure.analysis import Analysis as Analysis
    from evolve.structure.analysis import analyse as analyse
    from evolve.surgery.transaction import Transaction as transaction  # noqa: F401, N813
    from evolve.tasks import Task as Task
    from evolve.tasks import TaskConfig as TaskConfig
    from evolve.training import TrainingConfig as TrainingConfig
    from evolve.training.lr_schedule import LrScheduleConfig as LrScheduleConfig
    from evolve.training.optim import OptimizerConfig as OptimizerConfig
    from evolve.training.saving import restore as restore
    from evolve.training.saving import save as save

__version__ = "0.1.0"

_HOME = {
    "Analysis": ("evolve.structure.analysis", "Analysis"),
    "analyse": ("evolve.structure.analysis", "analyse"),
    "Context": ("evolve.operators.function", "Context"),
    "EvolutionConfig": ("evolve.evolver.config", "EvolutionConfig"),
    "Evolver": ("evolve.evolver.evolver", "Evolver"),
    "LrScheduleConfig": ("evolve.training.lr_schedule", "LrScheduleConfig"),
    "OptimizerConfig": ("evolve.training.optim", "OptimizerConfig"),
    "OutputConfig": ("evolve.evolver.output", "OutputConfig"),
    "Monitor": ("evolve.config.options", "Monitor"),
    "Task": ("evolve.tasks", "Task"),
    "TaskConfig": ("evolve.tasks", "TaskConfig"),
    "RunResult": ("evolve.evolver.output", "RunResult"),
    "TrainingConfig": ("evolve.training", "TrainingConfig"),
    "build_model": ("evolve.models", "build_model"),
    "export_model": ("evolve.export.api", "export_model"),
    "load": ("evolve.loading", "load"),
    "load_config": ("evolve.evolver.run_config", "load_config"),
    "Loop": ("evolve.evolver.loop", "Loop"),
    "MutationController": ("evolve.evolver.controller", "MutationController"),
    "Limits": ("evolve.mutation.limits", "Limits"),
    "Lineage": ("evolve.lineage", "Lineage"),
    "MutationOperator": ("evolve.operators", "MutationOperator"),
    "MutationResult": ("evolve.mutation.api", "MutationResult"),
    "Record": ("evolve.lineage", "Record"),
    "mutate": ("evolve.mutation.api", "mutate"),
    "operator": ("evolve.operators", "operator"),
    "replay": ("evolve.mutation.replaying", "replay"),
    "restore": ("evolve.training.saving", "restore"),
    "save": ("evolve.training.saving", "save"),
    "search": ("evolve.population.api", "search"),
    "SearchResult": ("evolve.population.results", "SearchResult"),
    "sites": ("evolve.mutation.api", "sites"),
    "transaction": ("evolve.surgery.transaction", "Transaction"),
}

__all__ = sorted(_HOME)  # noqa: PLE0605 - one list of public names


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'evolve' has no attribute '{name}'. Public names: {', '.join(sorted(_HOME))}.")
    module, attribute = _HOME[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
