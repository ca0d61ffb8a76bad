"""Everything that is known of a model's structure, from recorded runs: groups, costs, calls."""

from __future__ import annotations

import logging
import weakref
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

import evolve.structure.axes.rules_compute
import evolve.structure.axes.rules_index
import evolve.structure.axes.rules_layout  # noqa: F401 - importing the rules files them
from evolve.errors import NotApplicable, described, did_you_mean
from evolve.runtime.exclusive import exclusive
from evolve.structure.axes.algebra import Axis
from evolve.structure.axes.flow import Flow
from evolve.structure.axes.groups import Group, find_groups
from evolve.structure.fingerprint import fingerprint
from evolve.structure.gradients import without_gradients
from evolve.structure.inputs import Inputs, as_inputs, infer_inputs
from evolve.structure.isolation import undisturbed
from evolve.structure.tracing.flops import flops_if
from evolve.structure.tracing.hooks import observing_hooks
from evolve.structure.tracing.record import record
from evolve.structure.tracing.tape import Op, Shape, Tape, Value
from evolve.structure.unworkable import refuse_lazy, refuse_wrapped

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """What one module costs in a forward pass of one sample, its children included.

    Attributes:
        parameters: Elements of its parameters, shared ones once.
        flops: Floating-point operations (2 per multiply-accumulate).
        activation_bytes: Bytes of all tensors that its operations make: what training keeps, at most.
    """

    parameters: int
    flops: int
    activation_bytes: int


class Analysis:
    """The structure of a model as it stood when it was analysed.

    Attributes:
        inputs: The arguments of the recorded runs.
        observers: Forward hooks that were left out of them, because they only look on.
        tapes: The run in eval mode, and the one in train mode where the forward asks for the mode and can train on
            these inputs.
        drops: Whether dropout may be at work in train mode.
        flow: The axes of every tensor.
        groups: What can change together, groups that cannot (with the reason) included.
        together: By name of a group those that have to change with it, or why it cannot; filled by `together.py`.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.inputs = inputs
        self.observers = observing_hooks(model, inputs)
        self.tapes: list[Tape] = [record(model, inputs, training=False, observers=self.observers)]
        if self.tapes[0].asks_mode:
            try:
                self.tapes.append(record(model, inputs, training=True, observers=self.observers))
            except Exception as error:  # such as BatchNorm with one value per channel
                logger.debug("%s does not run in train mode on these inputs: %s", type(model).__name__, error)
        modules = dict(model.named_modules())
        self.drops = self.asks_mode or any(map(_drops, modules.values()))
        self.flow = Flow()
        for tape in self.tapes:
            self.flow.follow(tape)
        self.groups: list[Group] = find_groups(model, self.flow, gradients=any(tape.gradients for tape in self.tapes))
        self._by_name = {group.name: group for group in self.groups}
        self.together: dict[str, list[str] | NotApplicable] = {}
        self._elements = {name: parameter.numel() for name, parameter in model.named_parameters()}
        self._names = list(modules)

    @property
    def asks_mode(self) -> bool:
        """Whether the forward may do something else in train mode, beyond what BatchNorm and dropout do."""
        return any(tape.asks_mode for tape in self.tapes)

    @property
    def asks_size(self) -> bool:
        """Whether the forward may look at a size, or keep one in another place than PyTorch's own layers do."""
        return any(tape.asks_size for tape in self.tapes)

    @property
    def unreached(self) -> list[str]:
        """Parameters that no recorded run uses: nothing is known of them."""
        return [name for name in self._elements if name not in self.flow.sources]

    @property
    def changeable(self) -> list[Group]:
        """The groups whose size can change."""
        return [group for group in self.groups if not group.fixed]

    def group(self, name: str) -> Group:
        """Returns the group called `name`.

        Raises:
            NotApplicable: If there is none, or if its size cannot change.
        """
        group = self._by_name.get(name)
        if group is None or (group.fixed and ":" not in name):
            group = self._made_at(name) or group
        if group is None:
            known = [group.name for group in self.changeable]
            raise NotApplicable(
                f"The model has no group of channels or units called '{name}'.{did_you_mean(name, known)} "
                "`evolve.analyse(model)` lists them."
            )
        if group.fixed:
            raise NotApplicable(f"The {group.size} positions of '{name}' cannot change: {group.fixed}.")
        return group

    def _made_at(self, name: str) -> Group | None:
        """Returns the one group that a layer, or a layer inside it, makes with others; None where it makes none.

        Raises:
            NotApplicable: If it makes several.
        """
        inside = f"{name}." if name else ""
        makers = ((group, slot) for group in self.changeable for slot in group.slots if not slot.reads)
        found = list(dict.fromkeys(group for group, slot in makers if slot.name.startswith(inside))) if inside else []
        if len(found) > 1:
            names = ", ".join(f"'{group.name}'" for group in found[:5])
            raise NotApplicable(f"'{name}' makes several groups of channels or units: {names}. Name one of them.")
        return found[0] if found else None

    def shape_of(self, source: str, sizes: Mapping[Axis, int]) -> Shape:
        """Returns the shape of a parameter or buffer if plain axes had other sizes."""
        return tuple(axis.resized(sizes) for axis in self.flow.sources[source])

    def flops(self, sizes: Mapping[Axis, int]) -> int:
        """Returns the FLOPs of a forward pass of one sample (2 a multiply-accumulate) if plain axes had other sizes."""

        def shape(value: Value) -> Shape:
            return tuple(axis.resized(sizes) for axis in self.flow.of(value))

        def stays(op: Op) -> bool:
            values = (value for value in (*op.tensors, *op.outputs) if value is not None)
            return all(axis.resized(sizes) == axis.size for value in values for axis in self.flow.of(value))

        counted = [op for op in self.tapes[0].ops if op.flops]
        total = sum(op.flops if not sizes or stays(op) else flops_if(op, shape) for op in counted)
        return total // max(self.inputs.batch_size, 1)

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """The cost of each module by name, "" for the whole model."""
        tape, batch = self.tapes[0], max(self.inputs.batch_size, 1)
        flops: dict[str, int] = defaultdict(int)
        memory: dict[str, int] = defaultdict(int)
        for op in tape.ops:
            made = 0
            if not op.func.is_view:
                old = set(op.tensors)
                made = sum(value.bytes for value in op.outputs if value is not None and value not in old)
            for name in set(tape.modules_of(op)):
                flops[name] += op.flops
                memory[name] += made
        parameters = _by_module(self._elements, self._names)
        return {name: Cost(count, flops[name] // batch, memory[name] // batch) for name, count in parameters.items()}


@exclusive
def analyse(model: nn.Module, example_inputs: Any = None) -> Analysis:
    """Returns the structure of a model, analysed anew only where the model or the inputs have changed since.

    Args:
        model: Any module, on any device, `meta` too; it is left as it was.
        example_inputs: A tensor, a sequence of arguments or a mapping of keyword arguments; only shapes matter, unless
            the forward looks at values. If None, they are made up for the model's first layer with weights.

    Raises:
        NotApplicable: If no inputs are known, or the model does not run on them.
    """
    inner = getattr(model, "_orig_mod", None)  # a compiled model is analysed underneath
    model = inner if isinstance(inner, nn.Module) else model
    if isinstance(example_inputs, Inputs):
        inputs = example_inputs
    else:
        refuse_wrapped(model)
        refuse_lazy(model)
        found = infer_inputs(model) if example_inputs is None else as_inputs(model, example_inputs)
        if found is None:
            raise NotApplicable(f"No inputs are known that a {type(model).__name__} runs on: pass example_inputs.")
        inputs = found
    key = fingerprint(model, inputs)
    known = _MEMO.get(model)
    if known is None and inputs is not example_inputs:  # an operator's probe has run it already
        _warm(model, inputs)
    if known is None or known[0] != key:
        try:
            known = (key, Analysis(model, inputs))
        except Exception as error:  # whatever a user's forward raises
            shapes = ", ".join(str(tuple(t.shape)) for t in inputs.tensors)
            raise NotApplicable(f"The model fails on inputs of shape {shapes}: {described(error)}") from error
        if not any(tape.real for tape in known[1].tapes):  # a forward that looks at values may read others next time
            _MEMO[model] = known
    return known[1]


def _drops(module: nn.Module) -> bool:
    attends = isinstance(module, nn.MultiheadAttention) and module.dropout > 0
    return attends or isinstance(module, nn.modules.dropout._DropoutNd)


def _warm(model: nn.Module, inputs: Inputs) -> None:
    """Runs the model on real tensors, so that what a forward caches somewhere (masks, positions) is real."""
    if any(tensor.device.type == "meta" for tensor in (*model.parameters(), *model.buffers())):
        return

    def run() -> None:
        with undisturbed(model):
            inputs.run(model.eval())

    try:
        without_gradients(model, run)
    except Exception as error:  # the recording will say so
        logger.debug("%s does not run: %s", type(model).__name__, error)


# A memo, not a state: it is looked at only where the fingerprint says that nothing has changed.
_MEMO: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Analysis]] = weakref.WeakKeyDictionary()


def _by_module(elements: Mapping[str, int], modules: Sequence[str]) -> dict[str, int]:
    """Returns the elements of the parameters in each module, its children included."""
    counts = dict.fromkeys(modules, 0)
    for name, count in elements.items():
        owner = name.rpartition(".")[0]
        while True:
            counts[owner] += count
            if not owner:
                break
            owner = owner.rpartition(".")[0]
    return counts
