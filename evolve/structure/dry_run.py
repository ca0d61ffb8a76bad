"""Runs a model as if some of its axes had other sizes, to find out which of its settings have to follow.

A forward often keeps sizes as Python integers: `view(batch, self.heads, -1)`, `groups`, `normalized_shape`. The run, on
fake tensors, is held against what the analysis predicts for the new sizes. Where it departs, the settings of the
modules at work there that equal an old size are changed to the new one, and kept if the run then gets further.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from torch import nn

from evolve.errors import NotApplicable
from evolve.structure.analysis import Analysis
from evolve.structure.axes.algebra import Axis
from evolve.structure.axes.flow import keeps_no_size
from evolve.structure.configs import config_integers
from evolve.structure.settings import Setting, Sizes, changed_sources, known_settings, read_setting
from evolve.structure.sized_run import DepartureError, SizedRuns
from evolve.structure.tracing.tape import Op, Tape


class CannotFollow(NotApplicable):
    """The forward keeps a size that cannot follow.

    Attributes:
        axes: The plain axes of other sizes that are at work where it was seen.
        module: Dotted name of the module whose forward it was seen in.
    """

    def __init__(self, message: str, axes: set[Axis], module: str) -> None:
        super().__init__(message)
        self.axes, self.module = axes, module


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
    runs = SizedRuns(model, analysis, sizes)
    try:
        return _rehearse(runs, together=True)
    except CannotFollow:  # layers of one class need not all follow
        return _rehearse(runs, together=False)


def _rehearse(runs: SizedRuns, *, together: bool) -> list[Setting]:
    model = runs.model
    settings = known_settings(model, runs.analysis, runs.sizes)
    for script in _scripts(runs.analysis):
        departure = runs.departure(script, settings)
        while departure is not None:
            repaired = _repaired(runs, script, settings, departure, together)
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
    runs: SizedRuns, script: Tape, settings: list[Setting], found: DepartureError, together: bool
) -> tuple[list[Setting], DepartureError | None] | None:
    """Tries settings of the modules at work, innermost first; returns those that got further.

    One at a time first: an integer that equals the old size by chance must stay as it is.
    """
    modules = dict(runs.model.named_modules())
    around = {**_source_changes(runs.analysis, runs.sizes), **found.sizes}
    for matches, name in product((_matching, _matching_in_configs), found.modules):
        for changes in (found.sizes, around):
            matching = list(matches(name, modules[name], changes, settings))
            trials = [*([one] for one in matching), *([matching] if len(matching) > 1 else [])]
            for trial in trials:
                siblings = [_with_siblings(trial, modules, runs.analysis, runs.sizes)] if together else []
                for attempt in (*siblings, trial):
                    further = runs.departure(script, [*settings, *attempt])
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
