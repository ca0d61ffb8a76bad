"""What a recorded run is: a list of operations, with the module that each of them belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch

Shape = tuple[int, ...]


@dataclass(eq=False)
class Value:
    """One tensor of the run.

    Attributes:
        shape: Its sizes.
        dtype: Its element type.
        source: Name of the parameter or buffer it is; "" for what was computed or passed in.
        made_by: Position of the operation that made it; None for parameters, buffers, inputs and constants.
    """

    shape: Shape
    dtype: torch.dtype
    source: str = ""
    made_by: int | None = None

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(eq=False)
class Op:
    """One operation.

    Attributes:
        func: The ATen overload.
        args: Its arguments, with `Value` in place of tensors; likewise `kwargs`.
        outputs: What it returned, flattened; None where that is no tensor.
        call: Position in `Tape.calls` of the innermost module call it ran in.
        flops: Floating-point operations (2 per multiply-accumulate).
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Value | None]
    call: int
    flops: int

    @property
    def name(self) -> str:
        """Name without overload, such as "aten.view"."""
        return str(self.func._overloadpacket)

    def argument(self, name: str, default: Any = None) -> Any:
        """Returns an argument by its name in the operation's schema."""
        for position, known in enumerate(self.func._schema.arguments):
            if known.name == name:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, known.default_value if known.has_default_value() else default)
        return default

    @cached_property
    def tensors(self) -> list[Value]:
        """The tensors among its arguments."""
        found: list[Value] = []
        for arg in (*self.args, *self.kwargs.values()):
            found += [item for item in (arg if isinstance(arg, (list, tuple)) else (arg,)) if isinstance(item, Value)]
        return found


@dataclass(eq=False)
class ModuleCall:
    """One call of a module.

    Attributes:
        module: Its dotted name, "" for the root.
        parent: Position of the enclosing call; -1 for the root's.
        inputs: Tensors among its arguments; likewise `outputs`.
        ops: First operation and the one after the last.
    """

    module: str
    parent: int
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    ops: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Tie:
    """Two axes of one size: the forward gave the second one's to the first."""

    value: Value
    axis: int
    other: Value
    other_axis: int


@dataclass(eq=False)
class Tape:
    """One recorded run.

    Attributes:
        ops: In the order in which they ran.
        calls: Module calls in the order in which they began; the first is the root's.
        parameters: The parameters and buffers that were used, by name.
        inputs: Tensors among the model's arguments; likewise `outputs`.
        ties: Axes that got the size of another axis because the forward said so, by the number of operations before.
        settings: For integers that modules keep, by module, attribute and position in it: a tensor and its axis that
            got this size.
        training: The mode of the run.
        real: Whether it had to be recorded on real tensors.
        gradients: Whether it had to be recorded with gradients enabled.
        asks_size: Whether the forward may have looked at a size; likewise `asks_mode` for the mode, layers that act on
            each channel alone in either (BatchNorm, dropout) left out.
    """

    training: bool
    ops: list[Op] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    parameters: dict[str, Value] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    ties: dict[int, list[Tie]] = field(default_factory=dict)
    settings: dict[tuple[str, str, int | None], tuple[Value, int]] = field(default_factory=dict)
    real: bool = False
    gradients: bool = False
    asks_size: bool = True
    asks_mode: bool = True

    def modules_of(self, op: Op) -> list[str]:
        """Returns the names of the modules that an operation ran in, innermost first."""
        names, call = [], op.call
        while call >= 0:
            names.append(self.calls[call].module)
            call = self.calls[call].parent
        return names
