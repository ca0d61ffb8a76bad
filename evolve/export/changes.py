"""What was changed in a model of somebody else's class, as statements that change a new one likewise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from evolve.blocks.pass_through import PassThrough
from evolve.errors import MisfitError
from evolve.export.depth import same_depth
from evolve.export.layers import base_class, differing, kind
from evolve.export.parts import Writer, links_of, takes_one
from evolve.export.source import Call, Origins, access, access_own, attribute, below, call, literal, quoted
from evolve.structure.configs import config_integers, fields_of
from evolve.surgery.attach import BlockStore


class Changes:
    """The way from a base model to the evolved one.

    Args:
        base: As its class builds it.
        evolved: As it became.
        writer: Writes parts.

    Attributes:
        statements: In the order in which they are to be made.
        origins: Where the tensors of the evolved model lie afterwards.
        needs: Plain classes that the statements use.
    """

    def __init__(self, base: nn.Module, evolved: nn.Module, writer: Writer) -> None:
        self.statements: list[str] = []
        self.origins: Origins = {}
        self.needs: set[str] = set()
        self._root, self._writer = base, writer
        self._seen: dict[int, str] = {}
        if kind(evolved) is not kind(base):
            raise MisfitError(
                f"The base model is a {type(base).__qualname__}, but the evolved one is a "
                f"{base_class(evolved).__qualname__}. Say how the base model of this run is built."
            )
        self.statements += same_depth(base, evolved)
        self._module("", base, evolved)
        self._configs(base, evolved)

    def _module(self, path: str, base: nn.Module, evolved: nn.Module) -> None:
        own, tensors = differing(base, evolved), list(_other_tensors(base, evolved))
        if path and (own or tensors or kind(evolved) is not kind(base)):
            replaced = self._replaced(path, base, evolved)
            if replaced is not None:
                self._assign(path, self._writer.with_blocks(evolved, replaced))
                return
        if kind(evolved) is not kind(base):
            raise MisfitError(
                f"'{path}' became a {base_class(evolved).__qualname__}, which has no source that would make it. An "
                "operator of yours may have put it there: export the weights alone, or give the operator layers of "
                "torch.nn to insert."
            )
        self.origins[path] = evolved
        self._children(path, base, evolved)
        here = access(self._root, path)
        for name, value in own.items():
            self.statements.append(f"{attribute(here, name)} = {literal(value)}")
        for name, table, tensor in tensors:
            self.statements.append(_tensor(access_own(self._root, path, name), table, tensor))
        self._blocks(path, evolved)

    def _replaced(self, path: str, base: nn.Module, evolved: nn.Module) -> Call | None:
        if type(evolved) is PassThrough and not takes_one(base, strictly=True):
            return call("Passed", origins={"": evolved}, needs=["Passed"])
        cls = base_class(evolved)
        whole = cls in (nn.Sequential, nn.ModuleList, nn.ModuleDict) or cls.__module__.startswith("evolve.models.")
        if kind(base) is kind(evolved) and whole:
            return None
        try:
            return self._writer.bare(evolved, path)
        except MisfitError:
            return None

    def _children(self, path: str, base: nn.Module, evolved: nn.Module) -> None:
        before, after = base._modules, evolved._modules
        for name, child in after.items():
            where = f"{path}.{name}" if path else name
            if isinstance(child, BlockStore) or child is None:
                continue
            old = before.get(name)
            if id(child) in self._seen:  # it goes by several names, and was changed by the first
                self._again(where, child)
                continue
            self._seen[id(child)] = where
            if old is None:
                self._assign(where, self._writer.part(child, where))
            else:
                self._module(where, old, child)
        for name in before:
            if after.get(name) is None and before[name] is not None:
                here = access(self._root, path)
                self.statements.append(f"{attribute(here, name)} = None")

    def _again(self, path: str, child: nn.Module) -> None:
        first = self._seen[id(child)]
        if any(statement.startswith(f"{self._target(first)} = ") for statement in self.statements):
            self.statements.append(f"{self._target(path)} = {access(self._root, first)}")

    def _assign(self, path: str, part: Call) -> None:
        self.needs |= part.needs
        self.origins.update(below(path, part))
        target = self._target(path)
        self.statements.append(f"{target} = {part.text(4, len(target) + 3)}")

    def _target(self, path: str) -> str:
        parent, _, name = path.rpartition(".")
        here = access(self._root, path)
        if here.endswith((f".{name}", f"[{name}]")):
            return here
        return f"{access(self._root, parent)}._modules[{quoted(name)}]"

    def _blocks(self, path: str, evolved: nn.Module) -> None:
        """Sets blocks to work at a module that stays as it was built."""
        links = links_of(evolved)
        if not links:
            return
        whole = [link for link in links if link.span is None]
        runs = [link for link in links if link.span is not None]
        before = {name: module for name, module in self.origins.items() if _inside(name, path)}
        stand = Call(access(self._root, path), None, {_relative(name, path): m for name, m in before.items()})
        if runs:
            children = [name for name, child in evolved._modules.items() if not isinstance(child, BlockStore)]
            parts = [
                Call(
                    access(self._root, where := f"{path}.{name}" if path else name),
                    None,
                    {_relative(key, where): m for key, m in before.items() if _inside(key, where)},
                )
                for name in children
            ]
            listed = self._writer.in_runs(parts, runs, path)
            origins = {k: m for index, part in enumerate(listed) for k, m in below(str(index), part).items()}
            stand = call("nn.Sequential", *listed, origins=origins)
        for link in whole:
            stand = self._writer.attached(stand, link, evolved)
        for name in before:
            del self.origins[name]
        if not path:
            self.needs |= stand.needs
            self.origins.update(stand.origins)
            self.statements.append(f"model = {stand.text(4, 8)}")
        else:
            self._assign(path, stand)

    def _configs(self, base: nn.Module, evolved: nn.Module) -> None:
        """Integers in config objects that modules hold; one object is held by many."""
        seen: set[tuple[int, str]] = set()
        modules = dict(evolved.named_modules())
        for name, module in base.named_modules():
            if name not in modules or name not in self.origins:
                continue
            now = {(path, at): value for path, at, value in config_integers(modules[name])}
            for path, at, value in config_integers(module):
                new = now.get((path, at), value)
                if new == value:
                    continue
                holder: Any = module
                target = access(self._root, name)
                *steps, field = path.split(".")
                for step in steps:
                    target, holder = _field(target, holder, step), fields_of(holder)[step]
                if (id(holder), f"{field}{at}") in seen:
                    continue
                seen.add((id(holder), f"{field}{at}"))
                target = _field(target, holder, field)
                self.statements.append(f"{target}{'' if at is None else f'[{at}]'} = {new}")


def _other_tensors(base: nn.Module, evolved: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yields a module's own tensors that have another shape or type, or are new: name, table, tensor."""
    for table in ("_parameters", "_buffers"):
        before = getattr(base, table)
        for name, tensor in getattr(evolved, table).items():
            old = before.get(name)
            if tensor is not None and (old is None or (old.shape, old.dtype) != (tensor.shape, tensor.dtype)):
                yield name, table, tensor


def _tensor(target: str, table: str, tensor: Tensor) -> str:
    dtype = "" if tensor.dtype.is_floating_point and str(tensor.dtype) == "torch.float32" else f", dtype={tensor.dtype}"
    sizes = ", ".join(map(str, tensor.shape)) or "()"
    zeros = f"torch.zeros({sizes}{dtype})"
    value = f"nn.Parameter({zeros})" if table == "_parameters" else zeros
    return f"{target} = {value}"


def _field(here: str, holder: Any, name: str) -> str:
    return f"{here}[{quoted(name)}]" if isinstance(holder, dict) else attribute(here, name)


def _inside(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")


def _relative(name: str, path: str) -> str:
    return name[len(path) :].lstrip(".")
