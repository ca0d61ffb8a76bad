"""Puts copies of blocks into the container that the blocks stand in, or takes some out; those behind are renumbered."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from evolve.errors import NotApplicable, described
from evolve.structure.containers import SIMPLE
from evolve.structure.gradients import detached
from evolve.structure.sites import STORE
from evolve.structure.stacks import NUMBERED, Run, index_attributes, own_children
from evolve.surgery.attach import Link, free_key


def restack(
    model: nn.Module, run: Run, order: Sequence[int], new: Collection[int] = ()
) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Lets a run consist of other blocks.

    Later blocks get later names, and attributes that hold a block's number follow. What the copied block shares with
    the rest of the model (tied weights, a config, a table of positions) is shared by the copy.

    Args:
        model: The root.
        run: Of this model.
        order: For each block of the new run, the position in the old run of the block that it is, or is a copy of.
        new: Positions in `order` of those that are copies.

    Returns:
        The parameters of the copies, each with the one that it was copied from.

    Raises:
        NotApplicable: If a block cannot be copied, or a block of evolve's stands at the one that is taken out.
    """
    blocks = [_copied(model, run.blocks[at]) if place in new else run.blocks[at] for place, at in enumerate(order)]
    copies = [
        (parameter, old)
        for place in new
        for parameter, old in zip(_parameters(blocks[place]), _parameters(run.blocks[order[place]]), strict=True)
        if parameter is not old
    ]
    container = model.get_submodule(run.container)
    _move_links(container, run, order, new)
    _renumber(container, run, blocks)
    _fill(container, run, blocks)
    for place in new:
        _store(model, blocks[place])
    return copies


def _copied(model: nn.Module, block: nn.Module) -> nn.Module:
    """Returns a copy of a block that shares what others hold too."""
    parts = [block, *_inserted(block)]
    own = {id(module) for part in parts for module in part.modules()}
    shared: dict[int, Any] = {}
    for module in (module for module in model.modules() if id(module) not in own):
        held = [*module._parameters.values(), *module._buffers.values(), *module._modules.values()]
        for value in (module, *held, *vars(module).values()):
            items = value if type(value) in (list, tuple) else ()
            shared |= {id(item): item for item in (value, *items) if type(item) not in SIMPLE}
    for part in parts:
        shared.pop(id(part), None)
        shared |= detached(part)
    try:
        return copy.deepcopy(block, shared)
    except Exception as error:  # a class may define how it is copied
        raise NotApplicable(f"A {type(block).__name__} cannot be copied: {described(error)}") from error


def _inserted(block: nn.Module) -> list[nn.Module]:
    """Returns the blocks of evolve's that are at work in a block."""
    return [link.block for module in block.modules() for link in vars(module).get("_evolve_links", ())]


def _parameters(block: nn.Module) -> Iterator[nn.Parameter]:
    for part in (block, *_inserted(block)):
        yield from part.parameters()


def _store(model: nn.Module, block: nn.Module) -> None:
    """Gives the blocks of evolve's that were copied along their places in the store."""
    for module in block.modules():
        links: tuple[Link, ...] = vars(module).get("_evolve_links", ())
        moved = []
        for link in links:
            store = model.get_submodule(STORE)
            key = free_key(store, link.name.rpartition("_")[0])
            store.add_module(key, link.block)
            moved.append(replace(link, name=key))
        if links:
            module._evolve_links = tuple(moved)  # type: ignore[assignment]


def _move_links(container: nn.Module, run: Run, order: Sequence[int], new: Collection[int]) -> None:
    """Keeps what stands at runs of the container's children where it stands."""
    stay = {run.first + at: run.first + place for place, at in enumerate(order) if place not in new}
    behind, delta = run.first + len(run.blocks), len(order) - len(run.blocks)

    def now(position: int) -> int:
        if position >= behind:
            return position + delta
        if position >= run.first and position not in stay:
            raise NotApplicable(f"A block of evolve's begins or ends at '{run.name(position - run.first)}'.")
        return stay.get(position, position)

    links: tuple[Link, ...] = vars(container).get("_evolve_links", ())
    if any(link.span for link in links):
        spans = [link.span and (now(link.span[0]), now(link.span[1] - 1) + 1) for link in links]
        container._evolve_links = tuple(replace(link, span=s) for link, s in zip(links, spans, strict=True))  # type: ignore[assignment]


def _renumber(container: nn.Module, run: Run, blocks: Sequence[nn.Module]) -> None:
    """Gives blocks, and those behind the run, the numbers that they hold."""
    indices = index_attributes(run.blocks)
    for place, block in enumerate(blocks):
        for (path, name), first in indices.items():
            vars(block.get_submodule(path))[name] = first + place
    delta, counted = len(blocks) - len(run.blocks), {name: first for (_, name), first in indices.items()}
    behind = list(own_children(container).values())[run.first + len(run.blocks) :]
    for distance, block in enumerate(behind, len(run.blocks)):
        for module in block.modules():
            for name, first in counted.items():
                if vars(module).get(name) == first + distance:
                    vars(module)[name] += delta


def _fill(container: nn.Module, run: Run, blocks: Sequence[nn.Module]) -> None:
    """Puts blocks where the run stood; children behind it whose names count on are renamed."""
    delta = len(blocks) - len(run.blocks)
    modules: dict[str, nn.Module | None] = {}
    for name, child in container._modules.items():
        match = NUMBERED.fullmatch(name)
        number = int(match[2]) - run.number if match is not None and match[1] == run.prefix else -1
        if number == 0:
            modules |= {f"{run.prefix}{run.number + place}": block for place, block in enumerate(blocks)}
        elif number >= len(run.blocks):
            modules[f"{run.prefix}{run.number + number + delta}"] = child
        elif number < 0:
            modules[name] = child
    container._modules.clear()
    container._modules.update(modules)
