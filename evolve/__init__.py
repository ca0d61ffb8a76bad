"""evolve: your PyTorch model changes its own architecture while it trains, and keeps what it has learned.

Names are loaded when they are first asked for: `import evolve` starts no CUDA, scans no plugins and is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evolve.build import load as load
    from evolve.build import load_config as load_config
    from evolve.evolution import EvolutionConfig as EvolutionConfig
    from evolve.evolver import Evolver as Evolver
    from evolve.limits import Limits as Limits
    from evolve.lineage import Lineage as Lineage
    from evolve.lineage import Record as Record
    from evolve.models import build_model as build_model
    from evolve.mutation import MutationResult as MutationResult
    from evolve.mutation import mutate as mutate
    from evolve.mutation import replay as replay
    from evolve.mutation import sites as sites
    from evolve.operators import MutationOperator as MutationOperator
    from evolve.operators import operator as operator
    from evolve.operators.function import Context as Context
    from evolve.optim import LrScheduleConfig as LrScheduleConfig
    from evolve.optim import OptimizerConfig as OptimizerConfig
    from evolve.run import OutputConfig as OutputConfig
    from evolve.run import RunResult as RunResult
    from evolve.structure.analysis import Analysis as Analysis
    from evolve.structure.analysis import analyse as analyse
    from evolve.surgery.transaction import Transaction as transaction  # noqa: F401, N813
    from evolve.training import TrainingConfig as TrainingConfig

__version__ = "0.1.0"

_HOME = {
    "Analysis": ("evolve.structure.analysis", "Analysis"),
    "analyse": ("evolve.structure.analysis", "analyse"),
    "Context": ("evolve.operators.function", "Context"),
    "EvolutionConfig": ("evolve.evolution", "EvolutionConfig"),
    "Evolver": ("evolve.evolver", "Evolver"),
    "LrScheduleConfig": ("evolve.optim", "LrScheduleConfig"),
    "OptimizerConfig": ("evolve.optim", "OptimizerConfig"),
    "OutputConfig": ("evolve.run", "OutputConfig"),
    "RunResult": ("evolve.run", "RunResult"),
    "TrainingConfig": ("evolve.training", "TrainingConfig"),
    "build_model": ("evolve.models", "build_model"),
    "load": ("evolve.build", "load"),
    "load_config": ("evolve.build", "load_config"),
    "Limits": ("evolve.limits", "Limits"),
    "Lineage": ("evolve.lineage", "Lineage"),
    "MutationOperator": ("evolve.operators", "MutationOperator"),
    "MutationResult": ("evolve.mutation", "MutationResult"),
    "Record": ("evolve.lineage", "Record"),
    "mutate": ("evolve.mutation", "mutate"),
    "operator": ("evolve.operators", "operator"),
    "replay": ("evolve.mutation", "replay"),
    "sites": ("evolve.mutation", "sites"),
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
