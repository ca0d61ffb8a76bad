"""Gradients of a model that is only looked at, and running one without them, also where its forward needs them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from evolve.runtime.memory import out_of_memory

logger = logging.getLogger(__name__)
T = TypeVar("T")


def without_gradients(model: nn.Module, run: Callable[[], T]) -> T:
    """Runs a model without gradients, or with them where it fails without.

    The forward of a physics-informed network, or of a force field, differentiates its own result. It fails under
    `torch.no_grad()`, and whoever uses it does without that.

    Args:
        model: The model.
        run: Runs it and puts everything back that the run changed; called a second time where it raises.
    """
    try:
        with torch.no_grad():
            return run()
    except Exception as error:
        if out_of_memory(error):
            raise
        logger.debug("%s fails without gradients: %s", type(model).__name__, error)
    with torch.inference_mode(False), torch.enable_grad():
        return run()


def detached(model: nn.Module) -> dict[int, Any]:
    """Returns a memo for `copy.deepcopy`: what a forward left behind belongs to a graph, which cannot be copied."""
    kept = (value for module in model.modules() for value in vars(module).values())
    return {id(value): value.detach() for value in kept if isinstance(value, Tensor) and not value.is_leaf}


@contextmanager
def kept_gradients(model: nn.Module) -> Iterator[None]:
    """Takes the gradients of a model's parameters away, and puts them back at the end."""
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in kept:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


def gradients_of(model: nn.Module, value: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """Returns the gradients of a scalar, dense ones; None where it does not depend on a parameter.

    Nothing is accumulated and nothing is stepped, also where parts of the model are checkpointed in the reentrant way:
    they run again in a backward pass of their own, which knows nothing but `backward()`.
    """
    if not any(_reentrant(node) for node in _graph([value])):
        return [_dense(gradient) for gradient in torch.autograd.grad(value, parameters, allow_unused=True)]
    tables = [table for parameter in model.parameters() if (table := parameter._post_accumulate_grad_hooks)]
    hooks = [dict(table) for table in tables]  # such as an optimizer that steps in the backward pass
    with kept_gradients(model):
        try:
            for table in tables:
                table.clear()
            value.backward()
            return [_dense(parameter.grad) for parameter in parameters]
        finally:
            for table, copy in zip(tables, hooks, strict=True):
                table.update(copy)


def depends_on(values: Iterable[Tensor], parameters: Iterable[Tensor]) -> bool:
    """Whether a gradient flows from one of some values to one of some parameters; nothing is computed.

    What is checkpointed in the reentrant way hides what it depends on, and counts as depending.
    """
    wanted = {id(parameter) for parameter in parameters}
    values = list(values)
    if any(id(value) in wanted for value in values):
        return True
    return any(_reentrant(node) or id(getattr(node, "variable", None)) in wanted for node in _graph(values))


def _graph(values: Iterable[Tensor]) -> Iterator[Any]:
    """Yields the nodes of the graph that made some values."""
    seen: set[Any] = set()
    waiting = [value.grad_fn for value in values]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        yield node
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]


def _reentrant(node: Any) -> bool:
    return type(node).__name__ == "CheckpointFunctionBackward"


def _dense(gradient: Tensor | None) -> Tensor | None:
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient
