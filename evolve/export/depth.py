"""Containers that hold more or fewer blocks than those of the base model, as statements that copy or delete some."""

from __future__ import annotations

import copy
from itertools import groupby

from torch import nn

from evolve.export.layers import kind
from evolve.export.source import access, quoted
from evolve.structure.stacks import NUMBERED, own_children


def same_depth(base: nn.Module, evolved: nn.Module) -> list[str]:
    """Gives the containers of a base model as many blocks as those of the evolved one; returns statements that do so.

    Runs of children of one class become longer by copies of their last one, and shorter at their end. Where the runs
    of a container are others altogether, it is left alone.

    Args:
        base: As its class builds it; it is changed.
        evolved: As it became.
    """
    statements = []
    for path, now in evolved.named_modules():
        container = _at(base, path)
        if not isinstance(container, nn.Sequential | nn.ModuleList) or kind(now) is not kind(container):
            continue
        wanted, found = (_runs(one) for one in (now, container))
        if [cls for cls, _ in wanted] != [cls for cls, _ in found]:
            continue
        end = 0
        for (_, count), (_, old) in zip(wanted, found, strict=True):
            statements += [_copied(base, path, container, last) for last in range(end + old - 1, end + count - 1)]
            for place in reversed(range(end + count, end + old)):
                statements.append(f"del {access(base, path)}[{place}]")
                del container[place]
            end += count
    return statements


def _at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _runs(container: nn.Module) -> list[tuple[type[nn.Module], int]]:
    kinds = map(kind, own_children(container).values())
    return [(cls, len(list(run))) for cls, run in groupby(kinds)]


def _copied(base: nn.Module, path: str, container: nn.Sequential | nn.ModuleList, last: int) -> str:
    """Puts a copy behind the child at a position; returns the statement that does it."""
    here, name = access(base, path), list(own_children(container))[last]
    source = access(base, f"{path}.{name}".removeprefix("."))
    block = copy.deepcopy(container[last])
    match = NUMBERED.fullmatch(name)
    if match is not None and match[1]:  # at the end: those behind would be renamed
        key = f"{match[1]}{int(match[2]) + 1}"
        container.add_module(key, block)
        return f"{here}.add_module({quoted(key)}, copy.deepcopy({source}))"
    container.insert(last + 1, block)
    return f"{here}.insert({last + 1}, copy.deepcopy({source}))"
