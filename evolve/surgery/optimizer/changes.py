"""What a mutation did to the parameters of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn import Parameter

from evolve.structure.tracing.tape import Shape
from evolve.surgery.resize import Cut


class ParameterTable:
    """The parameters of a model by name, with their shapes and the classes of their layers, before a change."""

    def __init__(self, model: nn.Module) -> None:
        self.by_name = dict(model.named_parameters(remove_duplicate=False))
        self.shapes: dict[int, Shape] = {id(p): tuple(p.shape) for p in self.by_name.values()}
        modules = dict(model.named_modules(remove_duplicate=False))
        self.layers = {name: type(modules[name.rpartition(".")[0]]) for name in self.by_name}

    def __contains__(self, parameter: Parameter) -> bool:
        return id(parameter) in self.shapes


@dataclass(frozen=True)
class Changed:
    """What happened to a parameter.

    Attributes:
        old: As it was.
        new: What stands in its place: itself, if it was resized.
        shape: The old shape.
        cuts: How its axes were cut; empty where that is not told.
    """

    old: Parameter
    new: Parameter
    shape: Shape
    cuts: Sequence[Cut]


def changes_of(model: nn.Module, before: ParameterTable, cuts: Sequence[Cut]) -> list[Changed]:
    """Returns the parameters that were cut, resized or replaced under their names, each once."""
    after = dict(model.named_parameters(remove_duplicate=False))
    living = {id(parameter) for parameter in after.values()}
    own: dict[str, list[Cut]] = {}
    for cut in cuts:
        own.setdefault(cut.name, []).append(cut)
    found: dict[int, Changed] = {}
    for name in sorted(before.by_name, key=lambda name: name not in own):  # of tied names the one that the cuts give
        old, new = before.by_name[name], after.get(name)
        if new is None or id(old) in found:
            continue
        shape = before.shapes[id(old)]
        replaced = id(old) not in living and new not in before
        resized = old is new and (name in own or tuple(new.shape) != shape)
        if replaced or resized:
            found[id(old)] = Changed(old, new, shape, own.get(name, ()))
    return list(found.values())
