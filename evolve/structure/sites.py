"""Sites: places in a model, named by dotted paths.

`features` is a submodule; `features.0:3` is the run of the children 0, 1 and 2 of the `Sequential` `features`
(`0:3` in a model that is a `Sequential` itself). `attention.qkv:1` is a part of a submodule: the second of the groups
of channels, units or heads that it makes; `*` stands for all groups of the model at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from evolve.errors import NotApplicable, did_you_mean

EVERYWHERE = "*"  # every group of channels and units at once
STORE = "evolved"  # the child of the root in which inserted blocks live


@dataclass(frozen=True)
class Site:
    """A resolved place.

    Attributes:
        name: Its dotted name.
        module: The submodule, or the `Sequential` whose children form the run.
        span: First child and the one after the last, for a run; None for the whole submodule.
        part: Number of a group of channels or units that the submodule makes; None for the whole submodule.
    """

    name: str
    module: nn.Module
    span: tuple[int, int] | None = None
    part: int | None = None

    @property
    def layers(self) -> list[nn.Module]:
        """Every module inside the site, in order of registration."""
        if self.span is None:
            return list(self.module.modules())
        return [module for child in list(self.module.children())[slice(*self.span)] for module in child.modules()]

    @property
    def ends(self) -> tuple[str, str]:
        """Dotted names of the submodules where the site begins and ends."""
        if self.name == EVERYWHERE:
            return "", ""
        if self.part is not None:
            return (self.name.rpartition(":")[0],) * 2
        if self.span is None:
            return self.name, self.name
        prefix = self.name.rpartition(".")[0]
        names = [name for name, _ in self.module.named_children()]
        first, last = names[self.span[0]], names[self.span[1] - 1]
        return (f"{prefix}.{first}", f"{prefix}.{last}") if prefix else (first, last)


def resolve(model: nn.Module, name: str, *, groups: bool = False) -> Site:
    """Finds the place called `name`.

    Args:
        model: The root module.
        name: Its dotted name.
        groups: Whether a number behind a colon is that of a group of channels, also where it could be a run.

    Raises:
        NotApplicable: If the model has no such place; the message names the closest one.
    """
    if name == EVERYWHERE:
        return Site(name, model)
    parent, _, last = name.rpartition(".")
    span = re.fullmatch(r"(\d+):(\d+)", last)
    whole, colon, part = name.rpartition(":")
    if colon and part.isdigit() and (groups or not span) and (owner := _submodule(model, whole)) is not None:
        return Site(name, owner, part=int(part))
    target = parent if span else name
    module = _submodule(model, target)
    if isinstance(module, torch.jit.ScriptModule):
        raise NotApplicable(
            f"'{name}' is a ScriptModule or lies in one: its code cannot be changed. Put the Python module in its "
            "place, and script the model again afterwards."
        )
    if module is None:
        known = dict(model.named_modules())
        raise NotApplicable(
            f"The model has no submodule '{target}'.{did_you_mean(target, known)} "
            f"Its children are: {', '.join(n for n, _ in model.named_children()) or 'none'}."
        )
    if span is None:
        return Site(name, module)
    start, stop = int(span[1]), int(span[2])
    if not isinstance(module, nn.Sequential) or not _runs_as_sequential(module):
        raise NotApplicable(
            f"'{name}' asks for a run of children, but '{target or 'the model'}' is a {type(module).__name__}: "
            "only a plain Sequential runs its children in order. Name one submodule instead."
        )
    if not 0 <= start < stop <= len(module):
        raise NotApplicable(f"'{name}' asks for children {start} to {stop - 1}; '{target}' has {len(module)} children.")
    return Site(name, module, (start, stop))


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    """The submodule called `name`, None where there is none; `named_modules` would go through all of them."""
    module: nn.Module | None = model
    for part in name.split(".") if name else ():
        known = module is not None and part in module._modules
        module = module._modules[part] if known and module is not None else None
    return module


def _runs_as_sequential(module: nn.Module) -> bool:
    """True where the class's forward is that of Sequential, evolved or not."""
    base = getattr(type(module), "_evolve_base", type(module))
    return bool(base.forward is nn.Sequential.forward)


def parametrised(model: nn.Module) -> Iterator[str]:
    """Yields the names of the submodules that hold parameters, outermost first; the root is not among them.

    Neither are ScriptModules, which cannot be changed.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if name not in ("", STORE) and next(module.parameters(), None) is not None:
            yield name
