"""Follows axes through a recorded run: which axes are one, what is contracted with what, what cannot change.

Each operation has a rule (`rules_*.py`) that says what its outputs' axes are and which axes it brings together. An
operation without a rule fixes every axis it touches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from evolve.structure.axes.algebra import Axis, MismatchError, unify
from evolve.structure.tracing.tape import Op, Tape, Value

# What a tensor that depends on no input is made of: a sum of products of parameters and buffers, by name. The empty
# product is a constant, or something that is not linear in its parameters.
Weight = frozenset[frozenset[str]]
CONSTANT: Weight = frozenset({frozenset()})

Rule = Callable[["Flow", Op], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Files a rule for operations such as "view"."""

    def add(function: Rule) -> Rule:
        RULES.update({f"aten.{name}": function for name in names})
        return function

    return add


@dataclass(frozen=True)
class Use:
    """An axis of a parameter at work in an operation with an activation.

    Attributes:
        axis: The axis as the operation saw it.
        weight: What the tensor is made of.
        contracted: Whether the operation sums over it.
    """

    axis: Axis
    weight: Weight
    contracted: bool


@dataclass(eq=False)
class Flow:
    """What is known after following one or more tapes of the same model.

    Attributes:
        axes: Axes of each tensor.
        sources: Axes of each parameter and buffer, by name.
        weights: What the tensors are made of that depend on no input.
        uses: Axes of parameters at work.
        literals: For operations by `id`: an integer argument's name and the axis whose size it has to be.
        unknown: Names of operations without a rule.
    """

    axes: dict[Value, list[Axis]] = field(default_factory=dict)
    sources: dict[str, list[Axis]] = field(default_factory=dict)
    weights: dict[Value, Weight] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    literals: dict[int, tuple[str, Axis]] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    _contracted: set[int] = field(default_factory=set)

    def follow(self, tape: Tape) -> None:
        """Follows one run."""
        for name, value in tape.parameters.items():
            self.axes[value] = self.sources.setdefault(name, [Axis(size) for size in value.shape])
            self.weights[value] = frozenset({frozenset({name})})
        for value in tape.inputs:
            self._fix_new(value, "an axis of the model's input")
        for position, op in enumerate(tape.ops):
            self._tie(tape, position)
            self._step(op, tape)
        self._tie(tape, len(tape.ops))
        for value in tape.outputs:
            for axis in self.of(value):
                axis.mark("fixed", "an axis of the model's output")

    def _tie(self, tape: Tape, position: int) -> None:
        for tie in tape.ties.get(position, ()):
            one, other = self.of(tie.value)[tie.axis], self.of(tie.other)[tie.other_axis]
            if one.kind == other.kind == "product" and Counter(one.parts) == Counter(other.parts):
                continue  # of one size already, whatever the order: a shuffle of channels
            try:
                unify(one, other)
            except MismatchError:
                for axis in (one, other):
                    axis.mark("fixed", "the forward gives its size to a view that is made up in another way")

    def of(self, value: Value) -> list[Axis]:
        """Returns a tensor's axes."""
        if value not in self.axes:  # a tensor that the forward found somewhere else
            self._fix_new(value, "an axis of a tensor that is neither parameter nor buffer")
            self.weights[value] = CONSTANT
        return self.axes[value]

    def give(self, value: Value | None, axes: Sequence[Axis]) -> None:
        """States a result's axes; one that has some already (an in-place operation's) gets them unified."""
        if value is None:
            return
        known = self.axes.get(value)
        if known is None:
            self.axes[value] = list(axes)
        else:
            for one, other in zip(known, axes, strict=True):
                if one.size != 1 or other.size == 1:
                    unify(one, other)

    def contract(self, one: Value, axis: Axis, other: Value, other_axis: Axis) -> None:
        """States that an operation multiplies two tensors and sums over an axis of both."""
        unify(axis, other_axis)
        self._contracted.update((id(axis), id(other_axis)))
        left, right = self.weights.get(one), self.weights.get(other)
        if left is None and right is None:
            axis.mark("mixed", "two activations are multiplied over it")
        elif right is not None and (left is not None or right != CONSTANT):
            self.uses.append(Use(other_axis, right, contracted=True))
        elif left is not None:
            self.uses.append(Use(axis, left, contracted=True))
        else:
            axis.mark("mixed", "an activation is multiplied with a constant over it")

    def _step(self, op: Op, tape: Tape) -> None:
        tensors = op.tensors
        rule_ = _rule_for(op)
        self._contracted.clear()
        if rule_ is None:
            self.unknown.add(op.name)
            computed = any("parametrizations" in name.split(".") for name in tape.modules_of(op))
            self._give_up(
                op,
                f"a parametrization computes a weight by {op.name}, which has no rule"
                if computed
                else f"there is no rule for {op.name}",
            )
        else:
            try:
                rule_(self, op)
            except MismatchError as error:
                self._give_up(op, f"{op.name} brings together axes that do not match ({error})")
        for value in op.outputs:
            if value is not None and value not in self.axes:
                self._fix_new(value, f"an axis that {op.name} made")
        known = [self.weights.get(value) for value in tensors]
        if None not in known:
            made_of = _made_of(op, [weight for weight in known if weight is not None])
            self.weights.update({value: made_of for value in op.outputs if value is not None})
            return
        for output in op.outputs:
            if output is not None:  # a constant that an activation was written into is one no more
                self.weights.pop(output, None)
        for value, weight in zip(tensors, known, strict=True):
            if weight is not None and weight != CONSTANT:
                free = [axis for axis in self.of(value) if id(axis) not in self._contracted]
                self.uses.extend(Use(axis, weight, contracted=False) for axis in free)

    def _give_up(self, op: Op, reason: str) -> None:
        for value in op.tensors:
            for axis in self.of(value):
                axis.mark("fixed", reason)
        for output in op.outputs:
            if output is not None:
                self._fix_new(output, reason)

    def _fix_new(self, value: Value, reason: str) -> None:
        if value in self.axes:
            for axis in self.axes[value]:
                axis.mark("fixed", reason)
        else:
            self.axes[value] = [Axis(size, fixed=reason) for size in value.shape]


def _rule_for(op: Op) -> Rule | None:
    found = RULES.get(op.name)
    if found is None and torch.Tag.pointwise in op.func.tags:
        return RULES["aten.pointwise"]
    if found is None and op.name.endswith("_"):  # not every in-place operation bears its tag
        packet = getattr(torch.ops.aten, op.name.removeprefix("aten.").rstrip("_"), None)
        if packet is not None and any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads()):
            return RULES["aten.pointwise"]
    return found


def keeps_no_size(op: Op) -> bool:
    """Whether an operation takes all its sizes from its tensors: pointwise ones, dropout, BatchNorm."""
    return _rule_for(op) in {RULES["aten.pointwise"], RULES["aten.native_batch_norm"], RULES["aten.empty"]}


_SAME = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "clone", "_to_copy", "detach", "alias", "neg"}
_SAME |= {"unsqueeze", "squeeze", "slice", "select", "split", "split_with_sizes", "unbind", "repeat", "lift_fresh"}
_JOINED = {"add", "sub", "cat", "stack"}
_MULTIPLIED = {"mul", "mm", "bmm"}


def _made_of(op: Op, weights: list[Weight]) -> Weight:
    """Returns what a result is made of whose arguments depend on no input."""
    name = op.name.removeprefix("aten.").rstrip("_")
    if not weights:
        return CONSTANT
    if name in _SAME or (len(weights) == 1 and name in {"mul", "div"}) or (name == "div" and weights[1] == CONSTANT):
        return weights[0]
    if name in _JOINED:
        return frozenset().union(*weights)
    if name in _MULTIPLIED and len(weights) == 2:
        return frozenset(one | other for one in weights[0] for other in weights[1])
    return CONSTANT


def dims_of(op: Op, rank: int, name: str = "dim") -> list[int]:
    """Returns the axes that a reduction is told to take, all of them where it is told none."""
    told: Any = op.argument(name)
    if told is None or told == []:
        return list(range(rank))
    return [dim % rank if rank else 0 for dim in (told if isinstance(told, (list, tuple)) else [told])]
