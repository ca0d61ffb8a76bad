"""Which optimizers there are: one or several, each of which may hold another inside."""

from __future__ import annotations

import functools
import logging
import threading
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from evolve.errors import EvolveError

Optimizers: TypeAlias = Optimizer | Sequence[Optimizer]

# Lead out of an optimizer into the rest of the program.
_CLOSED = (Tensor, nn.Module, type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_CLOSED += (functools.partial, logging.Logger, threading.Thread, str, bytes, int, float, complex, range)  # type: ignore[assignment]
_NO_OPTIMIZER = (Tensor, dict, list, tuple, *_CLOSED, Mapping)  # those that are met most come first
_ATOMS = frozenset((type(None), bool, int, float, str))  # most of what there is, and nothing is inside
_MOST_OBJECTS = 500  # objects of classes that we do not know; past that we are no longer inside the optimizer


def as_optimizers(optimizer: Optimizers | None) -> list[Optimizer]:
    """Returns the optimizers that were passed, each once; an empty list for None.

    Raises:
        EvolveError: If one of them is no optimizer.
    """
    if optimizer is None:
        return []
    given: Any = [optimizer] if is_optimizer(optimizer) else optimizer
    if not isinstance(given, Sequence) or not all(map(is_optimizer, given)):
        wrong = given if not isinstance(given, Sequence) else next(o for o in given if not is_optimizer(o))
        raise EvolveError(
            f"optimizer= takes one optimizer or a sequence of several; found '{type(wrong).__name__}'. Pass what has "
            "`param_groups` and `state`, such as optimizer=[muon, adamw]."
        )
    return list({id(one): one for one in given}.values())


def is_optimizer(thing: Any) -> bool:
    """Whether something can be treated as an optimizer, which not every wrapper inherits from."""
    if isinstance(thing, _NO_OPTIMIZER):
        return False
    return isinstance(getattr(thing, "param_groups", None), list) and isinstance(getattr(thing, "state", None), Mapping)


def layers(optimizer: Optimizer) -> list[Optimizer]:
    """Returns an optimizer and all that it holds inside (Lookahead, SAM, Accelerate's wrapper), from the outside in."""
    return [thing for thing in reachable(optimizer, tensors=False) if is_optimizer(thing)]


def all_layers(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """Returns the layers of several optimizers, each once."""
    return list({id(layer): layer for one in optimizers for layer in layers(one)}.values())


def reachable(root: Any, *, tensors: bool = True) -> Iterator[Any]:
    """Walks through all containers, objects and tensors that an optimizer holds, each once, the optimizer first.

    Args:
        root: The optimizer.
        tensors: Whether tensors, which are most of what there is, are among what it yields.
    """
    waiting, seen, objects = deque([root]), {id(root)}, 0
    while waiting:
        thing = waiting.popleft()
        yield thing
        if isinstance(thing, Tensor):
            continue
        inside: Iterable[Any] = ()
        if isinstance(thing, Mapping):
            inside = [*thing.keys(), *thing.values()]
        elif isinstance(thing, (list, tuple, set, frozenset, deque)):
            inside = thing
        elif not isinstance(thing, _CLOSED) and isinstance(getattr(thing, "__dict__", None), dict):
            objects += 1
            inside = [vars(thing)] if objects <= _MOST_OBJECTS else ()
        for part in inside:
            if type(part) in _ATOMS or id(part) in seen:
                continue
            if tensors if isinstance(part, Tensor) else not isinstance(part, _CLOSED):
                seen.add(id(part))
                waiting.append(part)


def groups_of(optimizers: Iterable[Optimizer]) -> list[dict[str, Any]]:
    """Returns the parameter groups of all layers, each once."""
    return list({id(group): group for layer in all_layers(optimizers) for group in layer.param_groups}.values())


def held_by(optimizers: Iterable[Optimizer]) -> list[Parameter]:
    """Returns the parameters that optimizers step, each once."""
    return list({id(p): p for group in groups_of(optimizers) for p in group["params"]}.values())
