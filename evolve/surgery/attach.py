"""Puts a block beside or behind a site without renaming anything that was there.

The block is registered once, in a child `evolved` of the root, so every old `state_dict` key stays. The site gets a
dynamic subclass of its own class (the technique of `torch.nn.utils.parametrize`) whose forward calls the old one and
then the block: references to the site, isinstance, attribute access, deepcopy, pickle and torch.compile stay right.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from evolve.errors import NotApplicable
from evolve.structure.sites import STORE, Site


class BlockStore(nn.Module):
    """Holds the inserted blocks at the root. Calling it returns its input: a root that chains its children works."""

    def forward(self, x: Any) -> Any:
        """Returns `x`."""
        return x


@dataclass(frozen=True)
class Link:
    """A block at work at a site.

    Attributes:
        name: The block's name in the store.
        block: Called as `block(x, out)` where it is parallel to the site, else as `block(out)`.
        parallel: Whether the block sees the site's input.
        span: The run of children it stands at; None for the whole submodule.
    """

    name: str
    block: nn.Module
    parallel: bool
    span: tuple[int, int] | None

    def __call__(self, x: Any, out: Any) -> Any:
        return self.block(x, out) if self.parallel else self.block(out)


class _Evolved:
    """What every dynamic subclass adds: pickling by way of the original class."""

    _evolve_base: type
    _evolve_links: tuple[Link, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        if not isinstance(reduced, tuple) or type(self) not in reduced[1]:
            return reduced  # the class pickles itself in a way of its own
        return (_rebuild, (type(self)._evolve_base,), *reduced[2:])


class _EvolvedModule(_Evolved):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the site as before, then its blocks."""
        x = args[0] if args else next(iter(kwargs.values()), None)
        out = super().forward(*args, **kwargs)  # type: ignore[misc]
        for link in self._evolve_links:
            out = link(x, out)
        return out


class _EvolvedSequential(_Evolved, nn.Sequential):
    """A `Sequential` with blocks at runs of children, or with the store among its children."""

    def forward(self, input: Any) -> Any:
        """Runs the children in order, each run's blocks behind its last child."""
        x = input
        spans = [(link, *link.span) for link in self._evolve_links if link.span is not None]
        starts = {first for _, first, _ in spans}
        entries: dict[int, Any] = {}
        for index, child in enumerate(self):
            if index in starts:
                entries[index] = x
            x = child(x)
            for link, first, end in spans:
                if end == index + 1:
                    x = link(entries[first], x)
        for link in self._evolve_links:
            if link.span is None:
                x = link(input, x)
        return x

    def _own(self) -> OrderedDict[str, nn.Module]:
        return OrderedDict(
            (name, child) for name, child in self._modules.items() if name != STORE and child is not None
        )

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._own().values())

    def __len__(self) -> int:
        return len(self._own())

    def __getitem__(self, index: Any) -> Any:
        own = nn.Sequential(self._own())
        return own[index]

    def __dir__(self) -> list[str]:
        return [key for key in super().__dir__() if not key.isdigit()]


@functools.cache
def _evolved_class(base: type) -> type:
    mixin = _EvolvedSequential if base.forward is nn.Sequential.forward else _EvolvedModule  # type: ignore[attr-defined]
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "_evolve_base": base}
    return type(base.__name__, (mixin, base), names)


def _rebuild(base: type) -> Any:
    return object.__new__(_evolved_class(base))


def _evolve_class_of(module: nn.Module) -> None:
    """Gives the module the dynamic subclass, once."""
    if isinstance(module, _Evolved):
        return
    cls = type(module)
    if "forward" in vars(module):
        raise NotApplicable(
            f"This {cls.__name__} carries a forward function of its own in the instance, which a change of its class "
            "cannot reach. Define forward in the class."
        )
    try:
        module.__class__ = _evolved_class(cls)  # type: ignore[arg-type]
    except TypeError as error:  # __slots__, C classes, ScriptModules
        raise NotApplicable(f"A {cls.__name__} does not allow its class to be changed: {error}.") from error
    module._evolve_links = ()  # type: ignore[assignment]


def attach(model: nn.Module, site: Site, block: nn.Module, *, name: str, parallel: bool) -> str:
    """Sets `block` to work at a site of `model`.

    Args:
        model: The root; the block becomes a child of its `evolved`.
        site: Where.
        block: Called as `block(x, out)` if `parallel`, else as `block(out)`.
        name: What the block does; a number is added.
        parallel: Whether the block gets the site's input too.

    Returns:
        The block's dotted name.

    Raises:
        NotApplicable: If the site's class cannot be extended or the root has another `evolved`.
    """
    store = getattr(model, STORE, None)
    if store is None:
        if isinstance(model, nn.Sequential):
            _evolve_class_of(model)
        store = BlockStore().train(model.training)
        model.add_module(STORE, store)
    if not isinstance(store, BlockStore):
        raise NotApplicable(
            f"The model has an attribute '{STORE}' of its own; rename it to let evolve keep its blocks."
        )
    key = free_key(store, name)
    block.train(site.module.training)
    _evolve_class_of(site.module)
    call_parts_around(model, site.module)
    store.add_module(key, block)
    links: tuple[Link, ...] = site.module._evolve_links  # type: ignore[assignment]
    site.module._evolve_links = (*links, Link(key, block, parallel, site.span))  # type: ignore[assignment]
    return f"{STORE}.{key}"


def free_key(store: nn.Module, name: str) -> str:
    """Returns the name that the next block called `name` has in the store."""
    taken = [int(key.rpartition("_")[2]) for key in store._modules if key.rpartition("_")[0] == name]
    return f"{name}_{max(taken, default=-1) + 1}"


def call_parts_around(model: nn.Module, part: nn.Module) -> None:
    """Lets PyTorch's transformer encoders call the part of theirs that was changed.

    In eval mode without gradients their fused forward reads the tensors of its parts and calls none of them, so that it
    would compute the model as it was before.

    Args:
        model: The root.
        part: The module that was changed or put in.
    """
    for module in model.modules():
        fuses = isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder)
        if not fuses or module is part or part not in module.modules():
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # what it keeps for an activation that the fused forward does not know
        else:
            module.use_nested_tensor = False  # type: ignore[assignment]  # only fused layers understand them


def part_from_nested_tensors(model: nn.Module) -> None:
    """Lets PyTorch's transformer encoders go without nested tensors where a layer has an odd number of heads.

    Their fused forward takes even numbers only, which an encoder looks at when it is made, not when it runs.

    Args:
        model: The root.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            attentions = (layer for layer in module.modules() if isinstance(layer, nn.MultiheadAttention))
            if any(attention.num_heads % 2 for attention in attentions):
                module.use_nested_tensor = False


def detach(model: nn.Module, name: str) -> int:
    """Takes a block out again that `attach` set to work.

    Where a module has no block left it gets its own class back, and a root without blocks loses `evolved`: the model is
    as it was before, but for the fused forward of a transformer encoder around the site, which stays off.

    Args:
        model: The root.
        name: The block's dotted name, as `attach` returned it.

    Returns:
        How many parameters went with it.
    """
    store: BlockStore = getattr(model, STORE)
    key = name.removeprefix(f"{STORE}.")
    block = store.get_submodule(key)
    for module in model.modules():
        links: tuple[Link, ...] = vars(module).get("_evolve_links", ())
        if any(link.name == key for link in links):
            module._evolve_links = tuple(link for link in links if link.name != key)  # type: ignore[assignment]
    before = {id(p): p.numel() for p in model.parameters()}
    del store._modules[key]
    if not store._modules:
        del model._modules[STORE]
    for module in model.modules():
        needed = module is model and STORE in model._modules and isinstance(model, nn.Sequential)
        if isinstance(module, _Evolved) and not module._evolve_links and not needed:
            module.__class__ = type(module)._evolve_base
            del vars(module)["_evolve_links"]
    del block
    kept = {id(p) for p in model.parameters()}
    return sum(count for key_, count in before.items() if key_ not in kept)


def blocks_inside(site: nn.Module) -> list[str]:
    """Returns the names in the store of the blocks at work at a module or at one inside it."""
    found = [link.name for module in site.modules() for link in vars(module).get("_evolve_links", ())]
    return list(dict.fromkeys(found))


def links_at(site: Site) -> list[Link]:
    """Returns the blocks at work at exactly this site."""
    links: tuple[Link, ...] = getattr(site.module, "_evolve_links", ())
    return [link for link in links if link.span == site.span]
