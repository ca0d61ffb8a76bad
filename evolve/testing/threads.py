"""Threads that use one operator at the same time must not meet in it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from evolve.mutation.api import mutate, sites
from evolve.runtime.generators import preserved_rng
from evolve.structure.outputs import output_tensors
from evolve.testing.zoo import Subject

_SUBJECTS = 2


def check_threads(operator: str, zoo: Mapping[str, Subject], options: Mapping[str, Any]) -> None:
    """Asserts that an operator does on two models in two threads what it does on each of them alone.

    An operator that keeps something in its class or module between `plan` and `apply` fails here.
    """
    tried: list[tuple[str, Subject, str]] = []
    for name, subject in zoo.items():
        with preserved_rng(0):
            model, inputs = subject.build(), subject.inputs()
        places = sites(model, operator, example_inputs=inputs, **options)
        if places and len(tried) < _SUBJECTS:
            tried.append((name, subject, places[0]))
        if len(tried) == _SUBJECTS:
            break
    alone = [_attempt(operator, subject, place, options) for _, subject, place in tried]
    start = threading.Barrier(len(tried))

    def run(subject: Subject, place: str) -> Any:
        start.wait()
        return _attempt(operator, subject, place, options)

    with ThreadPoolExecutor(len(tried)) as pool:
        running = [pool.submit(run, subject, place) for _, subject, place in tried]
    for (name, _, place), one, other in zip(tried, alone, running, strict=True):
        answer, state = other.result()
        where = f"'{operator}' on {name} at '{place}', beside another thread"
        assert answer == one[0], f"{where}: it answers {answer[:2]}; alone it was {one[0][:2]}"
        assert all(torch.equal(state[key], value) for key, value in one[1].items()), f"{where}: it makes other weights"


def _attempt(operator: str, subject: Subject, place: str, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    with preserved_rng(0):
        model, inputs = subject.build(), subject.inputs()
    result = mutate(model, operator, site=place, example_inputs=inputs, loss=_loss, seed=3, **options)
    return (result.status, result.message, result.record.plan), model.state_dict()


def _loss(outputs: Any) -> torch.Tensor:
    return torch.stack([tensor.double().square().sum() for tensor in output_tensors(outputs)]).sum()
