"""Where an optimizer keeps what belongs to a parameter, and where it lists parameters.

Most keep it in `state[parameter]`. Others have dictionaries by parameter, by its id or by its name, or lists in the
order of the parameters, as attributes or in their groups. These are found by what is in them, not by their names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from evolve.structure.tracing.tape import Shape
from evolve.surgery.optimizer.layers import reachable
from evolve.surgery.parts import renamed_keys

Path = tuple[str, ...]


@dataclass(frozen=True)
class Owned:
    """Something that belongs to one parameter.

    Attributes:
        owner: The parameter.
        holder: The mapping or list that it is kept in.
        place: Its key or index there.
        path: Names on the way to it: () for the state of a parameter, the names of attributes elsewhere.
        layer: The optimizer whose `state` it is in; None where it is kept elsewhere.
    """

    owner: Parameter
    holder: Any
    place: Any
    path: Path
    layer: Optimizer | None = None

    @property
    def value(self) -> Any:
        """What is kept."""
        return self.holder[self.place]


@dataclass
class Mirror:
    """A list that has one item for each parameter of a group, or of all groups, in their order.

    Attributes:
        items: The list.
        order: The parameters that the items belong to, as long as nothing has changed.
        groups: The groups whose parameters these are.
        path: Names on the way to it.
    """

    items: list[Any]
    order: list[Parameter]
    groups: list[dict[str, Any]]
    path: Path

    @property
    def lists_parameters(self) -> bool:
        """Whether the items are the parameters themselves."""
        return all(item is owner for item, owner in zip(self.items, self.order, strict=True))


class Places:
    """What an optimizer (without those inside it) keeps for its parameters, found before a change.

    Args:
        optimizer: The optimizer.
        shapes: Of parameters by id, as its state knows them.
        names: Of the model's parameters.
        shared: Ids of states that belong to an optimizer inside this one, which look after them.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        shapes: Mapping[int, Shape],
        names: Mapping[str, Parameter],
        shared: Collection[int] = (),
    ) -> None:
        self.optimizer = optimizer
        self.owned: list[Owned] = []
        self.mirrors: list[Mirror] = []
        self.tables: list[tuple[MutableMapping[Any, Any], str, Path]] = []
        self._shapes = shapes
        self._names = names
        groups = optimizer.param_groups
        self._known = {id(p): p for group in groups for p in group["params"]}
        self._known |= {id(p): p for p in names.values()}
        self._orders = [([p for group in groups for p in group["params"]], list(groups))]
        if len(groups) > 1:
            self._orders += [(list(group["params"]), [group]) for group in groups]
        self._seen = {id(groups), *(id(group["params"]) for group in groups)}
        state = optimizer.state
        self._seen.add(id(state))
        for key, value in state.items() if id(state) not in shared else ():
            if isinstance(key, Tensor):
                self.owned.append(Owned(key, state, key, (), optimizer))  # type: ignore[arg-type]
            else:
                self._look(value, (str(key),))
        for group in groups:
            for option, value in group.items():
                if option not in ("params", "param_names"):
                    self._look(value, (option,))
        for attribute, value in vars(optimizer).items():
            self._look(value, (attribute,))

    def _look(self, value: Any, path: Path, depth: int = 6) -> None:
        if id(value) in self._seen or not depth or not isinstance(value, (dict, list, tuple, deque)) or not value:
            return
        self._seen.add(id(value))
        if isinstance(value, dict):
            by = self._keyed_by(value)
            if by is not None:
                self.tables.append((value, by, path))
            for key, item in value.items():
                if by is not None and (by != "parameter" or isinstance(key, Tensor)):
                    self.owned.append(Owned(self._owner(key, by), value, key, path))
                else:
                    self._look(item, (*path, str(key)), depth - 1)
            return
        if isinstance(value, list) and (mirror := self._mirror(value, path)) is not None:
            self.mirrors.append(mirror)
            if not mirror.lists_parameters:
                self.owned += [Owned(p, value, index, path) for index, p in enumerate(mirror.order)]
            return
        for index, item in enumerate(value):
            self._look(item, (*path, str(index)), depth - 1)

    def _keyed_by(self, table: Mapping[Any, Any]) -> str | None:
        """Whether a dictionary is by parameter, by id or by name."""
        if any(isinstance(key, Tensor) and id(key) in self._known for key in table):
            return "parameter"  # of them alone, or with other keys between
        if all(isinstance(key, int) for key in table) and all(key in self._known for key in table):
            return "id"
        if all(isinstance(key, str) and key in self._names for key in table):
            fits = [isinstance(v, (Tensor, Mapping)) or v is None for v in table.values()]
            return "name" if all(fits) else None
        return None

    def _owner(self, key: Any, by: str) -> Parameter:
        if by == "parameter":
            owner: Parameter = key
            return owner
        return self._known[key] if by == "id" else self._names[key]

    def _mirror(self, items: list[Any], path: Path) -> Mirror | None:
        for order, groups in self._orders:
            if len(order) == len(items) and order and self._belong(items, order):
                return Mirror(items, order, groups, path)
        return None

    def _belong(self, items: Sequence[Any], order: Sequence[Parameter]) -> bool:
        """Whether items are parameters, or go with them, one by one."""
        if all(item is owner for item, owner in zip(items, order, strict=True)):
            return True
        fitting = 0
        for item, owner in zip(items, order, strict=True):
            tensors = [item] if isinstance(item, Tensor) else list(item.values()) if isinstance(item, dict) else []
            tensors = [t for t in tensors if isinstance(t, Tensor) and t.dim()]
            shape = self._shapes.get(id(owner), tuple(owner.shape))
            if item is not None and not isinstance(item, (Tensor, dict)):
                return False
            if any(tuple(t.shape) != shape for t in tensors):
                return False
            fitting += bool(tensors)
        return fitting > 0

    def put_in_place(self, replaced: Mapping[int, Parameter]) -> None:
        """Lets parameters take the place of others, which are told by id, in tables and lists."""
        for table, by, _ in self.tables:
            for key in list(table):
                new = None if by == "name" else replaced.get(key if by == "id" else id(key))
                if new is not None:
                    table[id(new) if by == "id" else new] = table.pop(key)
        for mirror in self.mirrors:
            mirror.items[:] = [replaced.get(id(item), item) for item in mirror.items]
            mirror.order = [replaced.get(id(p), p) for p in mirror.order]

    def drop(self, gone: set[int]) -> None:
        """Takes parameters, told by id, out of tables; lists follow in `complete`."""
        names = {name for name, p in self._names.items() if id(p) in gone}
        for table, by, _ in self.tables:
            for key in list(table):
                if (key in names) if by == "name" else ((key if by == "id" else id(key)) in gone):
                    del table[key]

    def rename(self, names: Mapping[str, str]) -> None:
        """Lets tables by name follow parameters that have others now: old names, with the new ones."""
        for table, by, _ in self.tables:
            if by == "name":
                items = renamed_keys(table, names)
                table.clear()
                table.update(items)

    def complete(self, holds_weights: Callable[[Path], bool]) -> None:
        """Gives lists that go with the parameters the order of the groups again; new parameters come into tables."""

        def first(parameter: Parameter, path: Path) -> Tensor:
            value = parameter.detach()
            return value.clone() if holds_weights(path) else torch.zeros_like(value)

        for mirror in self.mirrors:
            order = [p for group in mirror.groups for p in group["params"]]
            items = {id(p): item for p, item in zip(mirror.order, mirror.items, strict=True)}
            whole = mirror.lists_parameters
            mirror.items[:] = [p if whole else items[id(p)] if id(p) in items else first(p, mirror.path) for p in order]
            mirror.order = order
        for table, by, path in self.tables:
            values = [v for key, v in table.items() if by == "id" or isinstance(key, Tensor)]
            if by == "name" or not all(isinstance(value, Tensor) for value in values):
                continue  # made at the first step
            for parameter in (p for group in self.optimizer.param_groups for p in group["params"]):
                if id(parameter) not in self._known:
                    table.setdefault(id(parameter) if by == "id" else parameter, first(parameter, path))


def places_of(layers: Sequence[Optimizer], shapes: Mapping[int, Shape], names: Mapping[str, Parameter]) -> list[Places]:
    """Returns the places of optimizers that hold one another; what they share belongs to the innermost."""
    found, shared = list[Places](), set[int]()
    for layer in reversed(layers):
        found.append(Places(layer, shapes, names, shared))
        shared.add(id(layer.state))
    return found


def mapped(value: Any, change: Callable[[Tensor, Path], Tensor], path: Path = ()) -> Any:
    """Returns a value with all tensors in it changed; dictionaries and lists in it stay the objects they are."""
    if isinstance(value, Tensor):
        return change(value, path)
    if isinstance(value, dict):
        for key, item in list(value.items()):
            value[key] = mapped(item, change, (*path, str(key)))
    elif isinstance(value, (list, deque)):
        for index, item in enumerate(list(value)):
            value[index] = mapped(item, change, (*path, str(index)))
    elif isinstance(value, tuple):
        items = [mapped(item, change, (*path, str(index))) for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def tensors_in(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Returns the tensors in a value with the names on the way to them."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, (*path, str(key)))
    elif isinstance(value, (list, tuple, deque)):
        for index, item in enumerate(value):
            yield from tensors_in(item, (*path, str(index)))


def hidden_tensors(value: Any) -> bool:
    """Whether there are tensors in objects that we cannot look into, such as the projector of GaLore."""
    shown = {id(tensor) for _, tensor in tensors_in(value)}
    return any(isinstance(thing, Tensor) and id(thing) not in shown and thing.dim() for thing in reachable(value))


def as_float(value: Tensor) -> Tensor:
    """Returns the values of any tensor, quantised and sparse ones too, as new floats; of complex ones the size."""
    value = value.detach()
    if hasattr(value, "dequantize") and type(value) is not Tensor and not isinstance(value, Parameter):
        value = value.dequantize()
    value = value.to_dense() if value.layout != torch.strided else value
    return value.abs().float().clone() if value.is_complex() else value.float().clone()
