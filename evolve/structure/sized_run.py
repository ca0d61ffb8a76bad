"""Runs of a model as if some of its axes had other sizes, on fake tensors, each held against the recorded one."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from evolve.errors import described
from evolve.structure.analysis import Analysis
from evolve.structure.axes.algebra import Axis
from evolve.structure.containers import empty_caches
from evolve.structure.isolation import undisturbed
from evolve.structure.outputs import output_tensors
from evolve.structure.settings import Setting, Sizes, change_settings, holder_of
from evolve.structure.tracing.hooks import leave_out
from evolve.structure.tracing.lines import line_of
from evolve.structure.tracing.recorder import Recorder, plain_operations
from evolve.structure.tracing.tape import Op, Tape, Value


class DepartureError(Exception):
    """The run did not do what was predicted."""

    def __init__(self, step: int, modules: list[str], sizes: dict[int, int], axes: set[Axis], reason: str) -> None:
        super().__init__(reason)
        self.step, self.modules, self.sizes, self.axes, self.reason = step, modules, sizes, axes, reason


class _Rehearsal(Recorder):
    """Holds each operation against the recorded one."""

    def __init__(self, model: nn.Module, analysis: Analysis, script: Tape, sizes: Sizes, fake: FakeTensorMode) -> None:
        super().__init__(model, Tape(script.training), fake)
        self.analysis, self.script, self.sizes = analysis, script, sizes
        self.lost: int | None = None  # the step at which it took another way

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and compares the sizes of what it gives."""
        step = len(self.tape.ops)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if self.lost is not None or len(self.tape.ops) == step:  # nothing that is written down
            return out
        op = self.tape.ops[step]
        if step >= len(self.script.ops) or self.script.ops[step].func is not func:
            self.lost = step  # another way through the forward, such as one for a single head: its end will tell
            return out
        wanted = self.script.ops[step]
        for value, old in zip(op.outputs, wanted.outputs, strict=True):
            if value is not None and old is not None:
                expected = tuple(axis.resized(self.sizes) for axis in self.analysis.flow.of(old))
                if value.shape != expected:
                    raise self.departure(step, f"{op.name} gave {value.shape} instead of {expected}")
        self._check_literal(step, op, wanted)
        return out

    def _check_literal(self, step: int, op: Op, wanted: Op) -> None:
        literal = self.analysis.flow.literals.get(id(wanted))
        if literal is not None:
            expected = literal[1].resized(self.sizes)
            if op.argument(literal[0]) != expected:
                raise self.departure(
                    step, f"{op.name} got {literal[0]}={op.argument(literal[0])} instead of {expected}"
                )

    def departure(self, step: int, reason: str) -> DepartureError:
        """Returns where the run stands, and the sizes that matter there."""
        modules, call = [], self._stack[-1]
        while call >= 0:
            modules.append(self.tape.calls[call].module)
            call = self.tape.calls[call].parent
        sizes: dict[int, int] = {}
        axes: set[Axis] = set()
        if step < len(self.script.ops):
            op = self.script.ops[step]
            sizes = _changes(self.analysis, op, self.sizes)
            around = [axis for value in _around(op) for axis in self.analysis.flow.of(value)]
            axes = {leaf for axis in around for leaf in axis.leaves() if leaf in self.sizes}
        return DepartureError(step, modules, sizes, axes, reason)


def _around(op: Op) -> list[Value]:
    return [*(out for out in op.outputs if out is not None), *op.tensors]


def _changes(analysis: Analysis, op: Op, sizes: Sizes) -> dict[int, int]:
    """Returns old and new size of every axis around an operation, changed or a part of one that is."""
    found: dict[int, int] = {}
    literal = analysis.flow.literals.get(id(op))
    if literal is not None:
        found[literal[1].size] = literal[1].resized(sizes)
    for value in _around(op):
        for axis in analysis.flow.of(value):
            for part in (axis, *axis.leaves()):
                new = part.resized(sizes)
                if new != part.size:
                    found.setdefault(part.size, new)
    return found


class SizedRuns:
    """Runs a model with other sizes and settings, and remembers where each run departed from its script.

    Whoever looks for the settings that follow comes by the same ones on several ways.

    Args:
        model: The model that was analysed; each run leaves it as it was.
        analysis: Its structure.
        sizes: The new sizes.
    """

    def __init__(self, model: nn.Module, analysis: Analysis, sizes: Sizes) -> None:
        self.model, self.analysis, self.sizes = model, analysis, sizes
        self._known: dict[Any, DepartureError | None] = {}

    def departure(self, script: Tape, settings: list[Setting]) -> DepartureError | None:
        """Returns where the run departs from a recorded one; None where it does not."""
        values = {(id(holder_of(self.model, s)), s.field, s.position): s.value for s in settings}
        key = id(script), frozenset(values.items())
        if key not in self._known:
            self._known[key] = _run(self.model, self.analysis, script, self.sizes, settings)
        return self._known[key]


def _run(
    model: nn.Module, analysis: Analysis, script: Tape, sizes: Sizes, settings: list[Setting]
) -> DepartureError | None:
    """Runs the model with other sizes and settings; returns where it departs from the script."""
    fakes: list[weakref.ref[Tensor]] = []
    departure = _run_on_fakes(model, analysis, script, sizes, settings, fakes)
    empty_caches(fakes)
    return departure


def _run_on_fakes(
    model: nn.Module,
    analysis: Analysis,
    script: Tape,
    sizes: Sizes,
    settings: list[Setting],
    fakes: list[weakref.ref[Tensor]],
) -> DepartureError | None:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with undisturbed(model, seed=0), torch.set_grad_enabled(script.gradients), plain_operations(model):
        model.train(script.training)
        leave_out(model, analysis.observers)
        change_settings(model, settings)
        with fake:
            _exchange(model, analysis, sizes)
        rehearsal = _Rehearsal(model, analysis, script, sizes, fake)

        def ready(leaf: Any) -> Any:
            return rehearsal.stand_in(leaf) if isinstance(leaf, Tensor) else leaf

        args, kwargs = tree_map(ready, analysis.inputs.args), tree_map(ready, dict(analysis.inputs.kwargs))
        try:
            with fake, rehearsal, rehearsal.modules():
                outputs = model(*args, **kwargs)
        except DepartureError as departure:
            departure.reason += line_of(departure)
            return departure.with_traceback(None)  # which holds every frame that it came through
        except Exception as error:  # whatever a user's forward raises when sizes do not fit
            return rehearsal.departure(len(rehearsal.tape.ops), f"{described(error)}{line_of(error)}")
        finally:
            fakes += rehearsal.let_go()
        shapes = [tuple(tensor.shape) for tensor in output_tensors(outputs)]
    if shapes != [value.shape for value in script.outputs]:
        return rehearsal.departure(len(rehearsal.tape.ops), f"the outputs have the shapes {shapes}")
    if idle := _idle(script, rehearsal.tape):
        return rehearsal.departure(rehearsal.lost or 0, f"it would no longer run '{idle}'")
    return None


def _idle(script: Tape, tape: Tape) -> str | None:
    """Returns a module that a recorded run calls and another one does not; None where there is none."""
    called = {call.module for call in tape.calls}
    return next((call.module for call in script.calls if call.module not in called), None)


def _exchange(model: nn.Module, analysis: Analysis, sizes: Sizes) -> None:
    """Puts fake tensors of the new shapes where parameters and buffers are; `undisturbed` puts the old ones back."""
    names = {id(tensor): name for name, tensor in (*model.named_buffers(), *model.named_parameters())}
    made: dict[str, Tensor] = {}  # tied tensors stay tied
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                name = names.get(id(tensor), "")
                if tensor is None or name not in analysis.flow.sources:
                    continue
                shape = analysis.shape_of(name, sizes)
                if shape != tuple(tensor.shape) and name not in made:
                    new = torch.empty(shape, dtype=tensor.dtype, device=_place(tensor))
                    made[name] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
                table[key] = made.get(name, tensor)  # type: ignore[assignment]


def _place(tensor: Tensor) -> torch.device:
    return tensor.device if tensor.device.type != "meta" else torch.device("cpu")
