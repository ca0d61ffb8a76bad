"""Runs a model as if some of its axes had other sizes, to find out which of its settings have to follow.

A forward often keeps sizes as Python integers: `view(batch, self.heads, -1)`, `groups`, `normalized_shape`. The run, on
fake tensors, is held against what the analysis predicts for the new sizes. Where it departs, the settings of the
modules at work there that equal an old size are changed to the new one, and kept if the run then gets further.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from evolve.errors import NotApplicable, described
from evolve.runtime.generators import preserved_rng
from evolve.structure.analysis import Analysis
from evolve.structure.axes.algebra import Axis
from evolve.structure.axes.flow import keeps_no_size
from evolve.structure.configs import config_integers
from evolve.structure.containers import empty_caches
from evolve.structure.isolation import undisturbed
from evolve.structure.outputs import output_tensors
from evolve.structure.settings import Setting, Sizes, change_settings, changed_sources, known_settings, read_setting
from evolve.structure.tracing.hooks import leave_out
from evolve.structure.tracing.lines import line_of
from evolve.structure.tracing.recorder import Recorder, plain_operations
from evolve.structure.tracing.tape import Op, Tape, Value

logger = logging.getLogger(__name__)


class CannotFollow(NotApplicable):
    """The forward keeps a size that cannot follow.

    Attributes:
        axes: The plain axes of other sizes that are at work where it was seen.
        module: Dotted name of the module whose forward it was seen in.
    """

    def __init__(self, message: str, axes: set[Axis], module: str) -> None:
        super().__init__(message)
        self.axes, self.module = axes, module


class _DepartureError(Exception):
    """The run did not do what was predicted."""

    def __init__(self, step: int, modules: list[str], sizes: dict[int, int], axes: set[Axis], reason: str) -> None:
        super().__init__(reason)
        self.step, self.modules, self.sizes, self.axes, self.reason = step, modules, sizes, axes, reason


class _Rehearsal(Recorder):
    """Holds each operation against the recorded one."""

    def __init__(self, model: nn.Module, analysis: Analysis, script: Tape, sizes: Sizes, fake: FakeTensorMode) -> None:
        super().__init__(model, Tape(script.training), fake)
        self.analysis, self.script, self.sizes = analysis, script, sizes
        self.lost = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and compares the sizes of what it gives."""
        step = len(self.tape.ops)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if self.lost or len(self.tape.ops) == step:  # nothing that is written down
            return out
        op = self.tape.ops[step]
        if step >= len(self.script.ops) or self.script.ops[step].func is not func:
            self.lost = True  # another way through the forward, such as one for a single head: its end will tell
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

    def departure(self, step: int, reason: str) -> _DepartureError:
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
        return _DepartureError(step, modules, sizes, axes, reason)


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


def rehearse(model: nn.Module, analysis: Analysis, sizes: Sizes) -> list[Setting]:
    """Finds the settings that have to follow if plain axes of a model had other sizes.

    Args:
        model: The model that was analysed; it is left as it was.
        analysis: Its structure.
        sizes: The new sizes.

    Raises:
        CannotFollow: If the forward would not do what it did, whatever settings are changed.
    """
    if not analysis.asks_size:
        return _changed(model, known_settings(model, analysis, sizes))
    try:
        return _rehearse(model, analysis, sizes, together=True)
    except CannotFollow:  # layers of one class need not all follow
        return _rehearse(model, analysis, sizes, together=False)


def _rehearse(model: nn.Module, analysis: Analysis, sizes: Sizes, *, together: bool) -> list[Setting]:
    settings = known_settings(model, analysis, sizes)
    for script in _scripts(analysis):
        departure = _run(model, analysis, script, sizes, settings)
        while departure is not None:
            repaired = _repaired(model, analysis, script, sizes, settings, departure, together)
            if repaired is None:
                module = departure.modules[0] if departure.modules else ""
                whose = f"'{module}'" if module else f"the model ({type(model).__name__})"
                raise CannotFollow(
                    f"The forward of {whose} keeps a size that cannot follow: {departure.reason}.",
                    departure.axes,
                    module,
                )
            settings, departure = repaired
    return _changed(model, settings)


def _changed(model: nn.Module, settings: list[Setting]) -> list[Setting]:
    return [setting for setting in settings if read_setting(model, setting) != setting.value]


def _scripts(analysis: Analysis) -> list[Tape]:
    """Returns the runs to rehearse: the one in train mode only where it holds more than the other one does."""
    scripts = [tape for tape in analysis.tapes if not tape.real]
    if len(scripts) < 2:
        return scripts
    known = {_role(scripts[0], op) for op in scripts[0].ops}
    more = [op for op in scripts[1].ops if not keeps_no_size(op) and _role(scripts[1], op) not in known]
    return scripts if more else scripts[:1]


def _role(tape: Tape, op: Op) -> tuple[Any, ...]:
    return tape.calls[op.call].module, op.func, tuple(value.shape for value in op.outputs if value is not None)


def _repaired(
    model: nn.Module,
    analysis: Analysis,
    script: Tape,
    sizes: Sizes,
    settings: list[Setting],
    found: _DepartureError,
    together: bool,
) -> tuple[list[Setting], _DepartureError | None] | None:
    """Tries settings of the modules at work, innermost first; returns those that got further.

    One at a time first: an integer that equals the old size by chance must stay as it is.
    """
    modules = dict(model.named_modules())
    around = {**_source_changes(analysis, sizes), **found.sizes}
    for matches, name in product((_matching, _matching_in_configs), found.modules):
        for changes in (found.sizes, around):
            matching = list(matches(name, modules[name], changes, settings))
            trials = [*([one] for one in matching), *([matching] if len(matching) > 1 else [])]
            for trial in trials:
                siblings = [_with_siblings(trial, modules, analysis, sizes)] if together else []
                for attempt in (*siblings, trial):
                    further = _run(model, analysis, script, sizes, [*settings, *attempt])
                    if further is None or further.step > found.step:
                        return [*settings, *attempt], further
    return None


def _with_siblings(
    trial: list[Setting], modules: Mapping[str, nn.Module], analysis: Analysis, sizes: Sizes
) -> list[Setting]:
    """Adds the same settings of modules of the same class that hold changed tensors too: twelve layers, one repair."""
    owners = {name.rpartition(".")[0] for name in changed_sources(analysis, sizes)}
    found = list(trial)
    for setting in trial:
        if "." in setting.attribute:  # in a config, which layers share or do not
            continue
        module = modules[setting.module]
        for name, other in modules.items():
            inside = name == "" or any(owner == name or owner.startswith(f"{name}.") for owner in owners)
            if other is module or type(other) is not type(module) or not inside:
                continue
            if vars(other).get(setting.attribute) == vars(module)[setting.attribute]:
                found.append(Setting(name, setting.attribute, setting.position, setting.value))
    return found


def _matching(name: str, module: nn.Module, changes: Mapping[int, int], known: list[Setting]) -> Iterator[Setting]:
    """Yields the settings of a module that equal an old size."""
    changed = {(setting.module, setting.attribute, setting.position) for setting in known}
    for attribute, value in vars(module).items():
        items = list(enumerate(value)) if isinstance(value, (tuple, list)) else [(None, value)]
        for position, item in items:
            fits = isinstance(item, int) and not isinstance(item, bool) and item in changes
            if fits and (name, attribute, position) not in changed:
                yield Setting(name, attribute, position, changes[item])


def _matching_in_configs(
    name: str, module: nn.Module, changes: Mapping[int, int], known: list[Setting]
) -> Iterator[Setting]:
    """Yields the settings that equal an old size in the configs that a module holds."""
    changed = {(setting.module, setting.attribute, setting.position) for setting in known}
    for path, position, item in config_integers(module):
        if item in changes and (name, path, position) not in changed:
            yield Setting(name, path, position, changes[item])


def _source_changes(analysis: Analysis, sizes: Sizes) -> dict[int, int]:
    changes = {axis.size: size for axis, size in sizes.items()}
    for axes in analysis.flow.sources.values():
        for axis in axes:
            new = axis.resized(sizes)
            if new != axis.size:
                changes.setdefault(axis.size, new)
    return changes


def _run(
    model: nn.Module, analysis: Analysis, script: Tape, sizes: Sizes, settings: list[Setting]
) -> _DepartureError | None:
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
) -> _DepartureError | None:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with undisturbed(model), preserved_rng(0), torch.set_grad_enabled(script.gradients), plain_operations(model):
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
        except _DepartureError as departure:
            departure.reason += line_of(departure)
            return departure.with_traceback(None)  # which holds every frame that it came through
        except Exception as error:  # whatever a user's forward raises when sizes do not fit
            return rehearsal.departure(len(rehearsal.tape.ops), f"{described(error)}{line_of(error)}")
        finally:
            fakes += rehearsal.let_go()
        shapes = [tuple(tensor.shape) for tensor in output_tensors(outputs)]
    if shapes != [value.shape for value in script.outputs]:
        return rehearsal.departure(len(rehearsal.tape.ops), f"the outputs have the shapes {shapes}")
    return None


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
