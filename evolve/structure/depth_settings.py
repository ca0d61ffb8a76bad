"""Where a model keeps how many blocks it has (`num_hidden_layers`, `depths`), and lists of one item for each of them.

Which number of a config that is, is found out: a model is built from a config with another number, on no device, and
compared with what the model is to become. Where a class cannot be built from its config alone, names tell.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from evolve.errors import NotApplicable
from evolve.runtime.generators import preserved_rng
from evolve.structure.configs import configs_in, exchange_fields, fields_of
from evolve.structure.stacks import NUMBERED, Run, own_children, plain_settings

logger = logging.getLogger(__name__)

# What says how many blocks there are, and not how large they are or which is meant.
_COUNTS = re.compile(r"^(?!.*(size|dim|norm|width|group|channel|head|every|freq|index|idx)).*(layer|block|depth)")
_LISTS = re.compile(r"layer|block|depth|type|pattern")
_DEPTH = 2  # configs in configs


@dataclass(frozen=True)
class Field:
    """A number or list in a module, or in a config that it holds.

    Attributes:
        module: Dotted name of the module.
        path: Name of the attribute; dotted for a field of a config.
        position: Of a number in a list or tuple; None for what stands alone.
    """

    module: str
    path: str
    position: int | None = None


@dataclass(frozen=True)
class DepthSettings:
    """What has to follow when a run gets more or fewer blocks: numbers, and lists of one item a block."""

    counts: tuple[Field, ...] = ()
    lists: tuple[Field, ...] = ()


def change_depth(model: nn.Module, settings: DepthSettings, run: Run, order: Sequence[int]) -> None:
    """Lets numbers and lists follow a run whose blocks were put in another order.

    Args:
        model: Its modules' attributes are exchanged, and their configs for changed copies.
        settings: What has to follow.
        run: As it was.
        order: As for `restack`.
    """
    more = len(order) - len(run.blocks)
    changed: dict[int, dict[str, Any]] = {}
    seen: set[tuple[int, str, int | None]] = set()  # modules share configs
    for field in (*settings.counts, *settings.lists):
        holder, name = _holder(model, field), _last(field)
        if (key := (id(holder), name, field.position)) in seen:
            continue
        seen.add(key)
        table = vars(holder) if isinstance(holder, nn.Module) else changed.setdefault(id(holder), {})
        old = table.get(name, fields_of(holder)[name])
        table[name] = _spliced(old, run, order) if field in settings.lists else _counted(old, field.position, more)
    if changed:
        exchange_fields(model, lambda config: changed.get(id(config), {}))


def depth_settings(model: nn.Module, run: Run, order: Sequence[int]) -> DepthSettings:
    """Finds what has to follow when a run's blocks are put in another order.

    Raises:
        NotApplicable: If the model is built from a config that has no words for what it is to become.
    """
    candidates = list(_in_configs(model, run))
    before = _built(model, DepthSettings(), run, order) if candidates else None
    if before is None or _form(before) != _form(model):
        named = [fields for fields in candidates if _COUNTS.search(_last(fields[0]))][:1]
        counts = (*_in_modules(model, run), *(field for fields in named for field in fields))
        return DepthSettings(counts, _lists(model, run, counts, hinted=True))
    wanted = _form(model, run, order)
    for fields in candidates:
        ways = [_lists(model, run, fields, hinted=True), (), _lists(model, run, fields, hinted=False)]
        for lists in dict.fromkeys(ways):
            built = _built(model, DepthSettings(fields, lists), run, order)
            if built is not None and _form(built) == wanted:
                return _that_differ(model, run, order, before, built)
    raise NotApplicable(
        f"The config of a {type(model).__name__} has no words for these blocks in {run.called}: a model that is built "
        "from it would differ. Stack all blocks of the container, or as many as their settings take turns."
    )


def _that_differ(
    model: nn.Module, run: Run, order: Sequence[int], before: nn.Module, after: nn.Module
) -> DepthSettings:
    """Returns the numbers and lists that have followed in a model that was built with another number of blocks."""
    more, children = len(order) - len(run.blocks), len(own_children(model.get_submodule(run.container)))
    others = dict(after.named_modules())
    own = tuple(f"{name}." for name in run.names)
    counts, lists = [], []
    seen = set()
    for name, module in before.named_modules():
        if f"{name}.".startswith(own) or name not in others:
            continue
        for field, old in _kept_by(module, name):
            holder = _holder(model, field)
            if (id(holder), _last(field)) in seen:  # modules share configs
                continue
            seen.add((id(holder), _last(field)))
            new = _value(after, field)
            if type(old) in (list, tuple) and type(new) is type(old):
                if new != old and _length(old) == children and new == _spliced(old, run, order):
                    lists.append(field)
                pairs = enumerate(zip(old, new, strict=True)) if len(new) == len(old) else ()
                counts += [Field(name, field.path, at) for at, (one, two) in pairs if _grew(one, two, more)]
            elif _grew(old, new, more):
                counts.append(field)
    return DepthSettings(tuple(counts), tuple(lists))


def _grew(old: Any, new: Any, more: int) -> bool:
    return type(old) is int and type(new) is int and new - old == more


def _kept_by(module: nn.Module, name: str) -> Iterator[tuple[Field, Any]]:
    """Yields the numbers that a module keeps, and the fields of its configs."""
    for key, value in vars(module).items():
        if type(value) is int:
            yield Field(name, key), value
    for path, config in configs_in(vars(module)):
        yield from _fields(name, path, config, _DEPTH)


def _holder(module: nn.Module, field: Field) -> Any:
    """Returns what a field is of: a module of a model, or a config that it holds."""
    holder: Any = module.get_submodule(field.module)
    for step in field.path.split(".")[:-1]:
        holder = fields_of(holder)[step]
    return holder


def _value(model: nn.Module, field: Field) -> Any:
    try:
        return fields_of(_holder(model, field)).get(_last(field))
    except KeyError:
        return None


def _last(field: Field) -> str:
    return field.path.rpartition(".")[2]


def _in_modules(model: nn.Module, run: Run) -> tuple[Field, ...]:
    """Returns the number of blocks as the container, or the module that it is a part of, keeps it."""
    for name in reversed(_around(run)):
        module = model.get_submodule(name)
        found = [
            Field(name, key)
            for key, value in vars(module).items()
            if type(value) is int and value in _sizes(model, run) and _COUNTS.search(key)
        ]
        if found or (name != run.container and not isinstance(module, nn.ModuleDict)):
            return tuple(found)
    return ()


def _in_configs(model: nn.Module, run: Run) -> Iterator[tuple[Field, ...]]:
    """Yields what may be the number of blocks, likely ones first; a number may be in several configs."""
    found: dict[tuple[str, int | None], list[Field]] = {}
    for field, value in _config_fields(model, run):
        for position, item in enumerate(value) if type(value) in (list, tuple) else [(None, value)]:
            if type(item) is int and item in _sizes(model, run):
                found.setdefault((_last(field), position), []).append(Field(field.module, field.path, position))
    stages = [int(step) for step in run.container.split(".") if step.isdigit()]
    ranked = sorted(found, key=lambda key: (not _COUNTS.search(key[0]), key[1] is not None and key[1] not in stages))
    for key in ranked:
        yield tuple(found[key])


def _lists(model: nn.Module, run: Run, counts: Sequence[Field], *, hinted: bool) -> tuple[Field, ...]:
    """Returns the lists that have one item for each child of the container, those left out that count blocks."""
    counting = {(field.module, field.path) for field in counts}
    count = len(own_children(model.get_submodule(run.container)))
    return tuple(
        field
        for field, value in _config_fields(model, run)
        if type(value) in (list, tuple) and _length(value) == count and (field.module, field.path) not in counting
        if not hinted or _LISTS.search(_last(field))
    )


def _config_fields(model: nn.Module, run: Run) -> Iterator[tuple[Field, Any]]:
    """Yields the fields of the configs that modules around a run hold; those of the innermost one with depth."""
    innermost = True
    for name in reversed(_around(run)):
        configs = configs_in(vars(model.get_submodule(name)))
        for path, config in configs:
            yield from _fields(name, path, config, _DEPTH if innermost else 1)
        innermost = innermost and not configs


def _fields(module: str, path: str, config: Any, depth: int) -> Iterator[tuple[Field, Any]]:
    for name, value in fields_of(config).items():
        if isinstance(name, str) and name[0] != "_" and "." not in name:
            yield Field(module, f"{path}.{name}"), value
    for name, value in configs_in(fields_of(config)) if depth > 1 else ():
        yield from _fields(module, f"{path}.{name}", value, depth - 1)


def _around(run: Run) -> list[str]:
    """Returns the names of the container and the modules around it, outermost first."""
    steps = run.container.split(".") if run.container else []
    return [".".join(steps[:count]) for count in range(len(steps) + 1)]


def _sizes(model: nn.Module, run: Run) -> set[int]:
    return {len(run.blocks), len(own_children(model.get_submodule(run.container)))}


def _counted(old: Any, position: int | None, more: int) -> Any:
    if position is None:
        return old + more
    return type(old)(item + more if at == position else item for at, item in enumerate(old))


def _length(value: Sequence[Any]) -> int:
    return sum(len(items) * times for items, times in value) if _repeats(value) else len(value)


def _repeats(value: Sequence[Any]) -> bool:
    """Whether a list says how many times items come, as in GPT-Neo's `[[["global", "local"], 6]]`."""
    return bool(value) and all(
        type(one) in (list, tuple) and [type(part) for part in one] == [list, int] for one in value
    )


def _spliced(old: Any, run: Run, order: Sequence[int]) -> Any:
    if _repeats(old):
        whole = [item for items, times in old for item in items * times]
        return [[_spliced(whole, run, order), 1]]
    middle = [old[run.first + at] for at in order]
    return type(old)([*old[: run.first], *middle, *old[run.first + len(run.blocks) :]])


def _built(model: nn.Module, settings: DepthSettings, run: Run, order: Sequence[int]) -> nn.Module | None:
    """Returns a model of the same class from a config with other numbers, on no device; None where that fails."""
    config = vars(model).get("config")
    if config is None:
        return None
    holder = nn.Module()
    holder.config = copy.deepcopy(config)
    own = [tuple(field for field in fields if not field.module) for fields in (settings.counts, settings.lists)]
    try:
        change_depth(holder, DepthSettings(*own), run, order)
        changed: Any = holder.config
        if hasattr(changed, "to_dict") and hasattr(type(changed), "from_dict"):  # as it is read from a file
            changed = type(changed).from_dict(changed.to_dict())
        with preserved_rng(), torch.device("meta"):
            built: nn.Module = getattr(type(model), "_evolve_base", type(model))(changed)
    except Exception as error:  # a constructor of somebody else's
        logger.debug("A %s cannot be built from its config alone: %s", type(model).__name__, error)
        return None
    return built


def _form(model: nn.Module, run: Run | None = None, order: Sequence[int] = ()) -> Mapping[str, Any]:
    """Returns classes, shapes and settings by module; with another order of blocks, as the model is to become."""
    found = {}
    for name, module in model.named_modules():
        shapes = tuple((key, tuple(p.shape)) for key, p in module._parameters.items() if p is not None)
        for now in _names(name, run, order):
            inside = any(step.isdigit() for step in now.split("."))
            found[now] = type(module).__name__, shapes, plain_settings(module) if inside else ()
    return found


def _names(name: str, run: Run | None, order: Sequence[int]) -> list[str]:
    """Returns what a module is called with another order of blocks; several names where it is copied."""
    prefix = f"{run.container}." if run is not None and run.container else ""
    if run is None or not name.startswith(prefix):
        return [name]
    first, dot, rest = name.removeprefix(prefix).partition(".")
    match = NUMBERED.fullmatch(first)
    at = int(match[2]) - run.number if match is not None and match[1] == run.prefix else -1
    if at < 0:
        return [name]
    places = [p for p, source in enumerate(order) if source == at]
    if at >= len(run.blocks):
        places = [at + len(order) - len(run.blocks)]
    return [f"{prefix}{run.prefix}{run.number + place}{dot}{rest}" for place in places]
