"""Runs of alike blocks, as most deep models have them: where they stand, and what tells them apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from evolve.errors import NotApplicable
from evolve.structure.sites import STORE

NUMBERED = re.compile(r"(.*?)(0|[1-9]\d*)")
# What modules call the number of the block that they are in, and what nothing else is called.
_INDEX = re.compile(r"(^|_)(idx|index|id|number|num|depth|level|layer|block)$")
_CERTAIN = re.compile(r"(^|_)(idx|index)$|^(layer|block)_(id|number|num)$")
_PLAIN = (bool, int, str, type(None))


@dataclass(frozen=True)
class Run:
    """Blocks of one class and one form that stand behind each other in an `nn.ModuleList` or `nn.Sequential`.

    Attributes:
        container: Dotted name of what they stand in; "" for the model.
        first: Position of the first block among its children.
        prefix: What the names of the blocks begin with; "" where they are numbers.
        number: That of the first block, in its name.
        blocks: The blocks.
    """

    container: str
    first: int
    prefix: str
    number: int
    blocks: tuple[nn.Module, ...]

    def name(self, position: int) -> str:
        """Returns the dotted name of the block at a position in the run."""
        return f"{self.container}.{self.prefix}{self.number + position}".removeprefix(".")

    @property
    def called(self) -> str:
        """What messages call it."""
        return f"'{self.container}'" if self.container else "the model"

    @property
    def names(self) -> list[str]:
        """Dotted names of the blocks."""
        return [self.name(position) for position in range(len(self.blocks))]


def find_runs(model: nn.Module, *, of_one_class: bool = False) -> list[Run]:
    """Returns all runs of a model, outermost first; a block that is alone among others of its kind is one, too.

    A block has parameters and modules inside it, or a forward of its own: one of PyTorch's layers is none.

    Args:
        model: The model.
        of_one_class: Let blocks of one class be alike whatever is in them, such as layers of other widths.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and name.partition(".")[0] != STORE:
            found += list(_runs_in(name, module, _kind if of_one_class else _form))
    return found


def run_of(model: nn.Module, block: str, *, of_one_class: bool = False) -> tuple[Run, int] | None:
    """Returns the run that a block belongs to, by its dotted name, and its position in it; None where it is in none."""
    for run in find_runs(model, of_one_class=of_one_class):
        if block in run.names:
            return run, run.names.index(block)
    return None


def run_at(model: nn.Module, container: str, first: int, count: int) -> Run:
    """Returns the run of so many children of a container, from a position on.

    Raises:
        NotApplicable: If the model has none there.
    """
    try:
        children = list(own_children(model.get_submodule(container)).items())[first : first + count]
    except AttributeError:
        children = []
    match = NUMBERED.fullmatch(children[0][0]) if children else None
    if match is None or len(children) < count:
        raise NotApplicable(f"The model has no {count} numbered blocks from position {first} of '{container}' on.")
    return Run(container, first, match[1], int(match[2]), tuple(child for _, child in children))


def own_children(container: nn.Module) -> dict[str, nn.Module]:
    """Returns the children of a module by name, the store of inserted blocks left out."""
    return {name: child for name, child in container._modules.items() if name != STORE and child is not None}


def _runs_in(name: str, container: nn.Module, form: Callable[[nn.Module], Any]) -> Iterator[Run]:
    children = list(own_children(container).items())
    start = 0
    for end in range(1, len(children) + 1):
        if end < len(children) and _follows(children[end - 1], children[end], form):
            continue
        match = NUMBERED.fullmatch(children[start][0])
        if match is not None and _is_block(children[start][1]):
            blocks = tuple(child for _, child in children[start:end])
            yield Run(name, start, match[1], int(match[2]), blocks)
        start = end


def _follows(one: tuple[str, nn.Module], other: tuple[str, nn.Module], form: Callable[[nn.Module], Any]) -> bool:
    names = NUMBERED.fullmatch(one[0]), NUMBERED.fullmatch(other[0])
    if names[0] is None or names[1] is None:
        return False
    counts_on = names[0][1] == names[1][1] and int(names[0][2]) + 1 == int(names[1][2])
    return counts_on and one[1] is not other[1] and form(one[1]) == form(other[1])


def _is_block(module: nn.Module) -> bool:
    if next(module.parameters(), None) is None or isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False
    return bool(module._modules) or not type(module).__module__.startswith("torch.nn.modules")


def _kind(block: nn.Module) -> type:
    kind: type = getattr(type(block), "_evolve_base", type(block))
    return kind


def _form(block: nn.Module) -> tuple[Any, ...]:
    """Returns what two blocks have to share: classes, and shapes of parameters."""
    classes = tuple((name, type(module)) for name, module in block.named_modules())
    shapes = tuple((name, tuple(p.shape), p.dtype) for name, p in block.named_parameters())
    return classes, shapes


def index_attributes(blocks: Sequence[nn.Module]) -> dict[tuple[str, str], int]:
    """Returns the attributes that hold a block's number, by submodule and name, with what they are in the first block.

    Such as `self_attn.layer_idx` in transformers, which says where a cache keeps the keys of the block.
    """
    found = {}
    told = _INDEX if len(blocks) > 1 else _CERTAIN
    inside = [dict(block.named_modules()) for block in blocks]
    for path, module in blocks[0].named_modules():
        for name, value in vars(module).items():
            if type(value) is not int or not told.search(name):
                continue
            values = [vars(modules[path]).get(name) if path in modules else None for modules in inside]
            if values == list(range(value, value + len(blocks))):
                found[path, name] = value
    return found


def period(blocks: Sequence[nn.Module]) -> int:
    """Returns after how many blocks their settings come again: 1 where all are alike, all where they never do.

    Numbers with fractions do not count (rates of dropout that rise with depth), nor do the numbers of the blocks.
    """
    kinds = [[plain_settings(module) for module in block.modules()] for block in blocks]
    count = len(blocks)
    return next(
        p for p in range(1, count + 1) if count % p == 0 and all(kinds[i] == kinds[i % p] for i in range(count))
    )


def plain_settings(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    """Returns what a module keeps in words and whole numbers, but for the number of the block that it is in."""
    found = []
    for name, value in vars(module).items():
        passing = name[0] == "_" or name == "training" or _INDEX.search(name)
        kinds, items = (int, value) if isinstance(value, list) else (_PLAIN, value)
        items = items if isinstance(items, tuple | list) else (items,)
        if not passing and all(isinstance(item, kinds) for item in items):
            found.append((name, value))
    return tuple(found)
