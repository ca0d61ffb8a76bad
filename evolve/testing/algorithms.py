"""What every search algorithm has to do, whatever it decides, as a test that plugin authors run on their own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from evolve.population.algorithms import Algorithm, algorithms
from evolve.population.space import Space
from evolve.testing.toy_search import ToySearch
from evolve.testing.toy_spaces import Growing, Letters, ToySpace

_SPACES: tuple[type[ToySpace], ...] = (Letters, Growing)
_SEEDS = 6
_BUDGET = 80


def check_algorithm(name: str, **options: Any) -> None:
    """Runs the contract of a search algorithm on two toy spaces, of which one is rooted.

    It never proposes twice what it does not say is known, wants no parents but those that it let live, answers while
    nothing has come back, survives failures, decides the same again, also after an interruption, keeps its state as
    JSON values, finds more than random search does, and imports no torch.

    Args:
        name: Registered name.
        **options: The algorithm's options.

    Raises:
        AssertionError: If the algorithm breaks the contract; says how.
    """
    cls = algorithms.get(name)

    def make(space: Space, seed: int) -> Algorithm:
        return cls(space, seed, **options)

    for kind in _SPACES:
        for objectives in (1, 2) if cls.multi_objective else (1,):
            where = f"'{name}' on {kind.__name__} with {objectives} objectives"
            _check_answers(make, kind(), objectives, where)
            _check_failures(make, kind(), objectives, where)
            for workers in (1, 4):
                _check_again(make, kind(), objectives, workers, f"{where} and {workers} workers")
    _check_imports(cls)
    for kind in _SPACES if name != "random" else ():
        check_improves(make, kind(), cls.trains_on, f"'{name}' on {kind.__name__}")


def _check_answers(make: Callable[[Space, int], Algorithm], space: ToySpace, objectives: int, where: str) -> None:
    """It answers before enough are in for it to decide by: everybody is sent out before anybody comes back."""
    search = ToySearch(make, space, workers=40, objectives=objectives).run(2 if space.rooted else 1)
    assert len(search.begun) > 1, f"{where}: it sends nobody out before it is told of something"
    assert len(search.run(60).begun) >= 60, f"{where}: it gave up after {len(search.begun)} evaluations"


def _check_failures(make: Callable[[Space, int], Algorithm], space: ToySpace, objectives: int, where: str) -> None:
    """It goes on where nothing comes back but failures, and takes up what comes after them."""
    search = ToySearch(make, space, workers=3, failing=1.0, objectives=objectives).run(50)
    assert len(search.begun) >= 50, f"{where}: it gave up after {len(search.begun)} failures"
    search.failing = 0.0
    assert len(search.run(100).begun) >= 100, f"{where}: it did not recover from failures"


def _check_again(
    make: Callable[[Space, int], Algorithm], space: ToySpace, objectives: int, workers: int, where: str
) -> None:
    """It decides the same when it is made again, and when it is told again what had happened before."""
    searches = [ToySearch(make, space, 5, workers=workers, failing=0.2, objectives=objectives) for _ in range(2)]
    decided = [search.run(_BUDGET).begun for search in searches]
    assert decided[0] == decided[1], f"{where}: it decides otherwise with the same seed"
    search = ToySearch(make, space, 5, workers=workers, failing=0.2, objectives=objectives)
    for evaluations in (1, 7, 23, 41):
        search = search.run(evaluations).interrupted()
    resumed = search.run(_BUDGET).begun
    for number, (before, after) in enumerate(zip(decided[0], resumed, strict=False)):
        assert before == after, f"{where}: after an interruption it decides otherwise, at {number}: {before}, {after}"
    assert len(decided[0]) == len(resumed), f"{where}: after an interruption it ends elsewhere"


def check_improves(make: Callable[[Space, int], Algorithm], space: ToySpace, learning: bool, where: str) -> None:
    """It finds more than random search in the same number of evaluations, over seeds."""

    def found(of: Callable[[Space, int], Algorithm]) -> float:
        runs = (ToySearch(of, space, seed, learning=learning).run(_BUDGET) for seed in range(_SEEDS))
        return statistics.mean(run.best for run in runs)

    own, control = found(make), found(algorithms.get("random"))
    assert own > control, f"{where}: {own:.3f} is found, and {control:.3f} by random search"


def _check_imports(cls: type[Algorithm]) -> None:
    """Whoever decides runs where no torch is needed."""
    code = f"import sys, {cls.__module__}; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"'{cls.name}': importing {cls.__module__} imports torch, or fails: {run.stderr}"
