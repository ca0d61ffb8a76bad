"""What differs between the layers of two models, by the names of their modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from evolve.errors import described
from evolve.structure.analysis import Analysis
from evolve.structure.tracing.tape import Shape


@dataclass(frozen=True)
class Layer:
    """A module that has parameters of its own, or no children.

    Attributes:
        name: Dotted name, "" for the model.
        class_name: Its class.
        settings: What the module says of itself, such as `in_features=4, out_features=2, bias=True`.
        shapes: Shapes of its own parameters, by name.
        parameters: Their elements.
        flops: Floating-point operations of one sample, without those of modules that it calls (2 per
            multiply-accumulate); None where they were not counted.
    """

    name: str
    class_name: str
    settings: str
    shapes: dict[str, Shape]
    parameters: int
    flops: int | None = None

    @property
    def is_as(self) -> tuple[object, ...]:
        """What makes two layers the same."""
        return self.class_name, self.settings, self.shapes


@dataclass(frozen=True)
class LayerChange:
    """A layer that one of two models has, or both in another way.

    Attributes:
        name: Dotted name.
        kind: Whether the second model alone has it, the first alone, or both.
        before: As it is in the first model; None where that has none.
        after: Likewise in the second.
    """

    name: str
    kind: Literal["added", "removed", "changed"]
    before: Layer | None
    after: Layer | None


def layers_of(model: nn.Module, analysis: Analysis | None = None) -> dict[str, Layer]:
    """Returns the layers of a model by name, in the order in which it holds them.

    Args:
        model: Any module; one that lies in several places is told under the first of its names.
        analysis: Of this model, for FLOPs.
    """
    found, flops = {}, None if analysis is None else _own_flops(analysis)
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if own or next(module.children(), None) is None:
            found[name] = Layer(
                name=name,
                class_name=type(module).__name__,
                settings=_settings(module),
                shapes={key: tuple(parameter.shape) for key, parameter in own.items()},
                parameters=sum(parameter.numel() for parameter in own.values()),
                flops=None if flops is None else flops[name],
            )
    return found


def compare_layers(one: Mapping[str, Layer], two: Mapping[str, Layer]) -> list[LayerChange]:
    """Returns what differs, removed and changed layers in the order of the first model, added ones behind them."""
    changes = []
    for name, before in one.items():
        after = two.get(name)
        if after is None:
            changes.append(LayerChange(name, "removed", before, None))
        elif after.is_as != before.is_as:
            changes.append(LayerChange(name, "changed", before, after))
    return changes + [LayerChange(name, "added", None, after) for name, after in two.items() if name not in one]


def _own_flops(analysis: Analysis) -> Counter[str]:
    """The FLOPs of the operations that no module inside does: a site calls the blocks that hang at it."""
    tape, found = analysis.tapes[0], Counter[str]()
    for op in tape.ops:
        found[next(iter(tape.modules_of(op)), "")] += op.flops
    return Counter({name: count // max(analysis.inputs.batch_size, 1) for name, count in found.items()})


def _settings(module: nn.Module) -> str:
    try:
        return module.extra_repr()
    except Exception as error:  # a user's own, which may raise anything
        return described(error)
