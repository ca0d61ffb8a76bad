"""Applies recorded mutations to a model, with all that goes with its parameters, or leaves everything as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from torch import nn
from torch.optim.swa_utils import AveragedModel

from evolve.errors import EvolveError, NotApplicable, RejectedError, UnknownNameError
from evolve.lineage import Record
from evolve.mutation.api import MutationResult, create_operator, underneath
from evolve.mutation.recording import as_records, check_model, no_exit
from evolve.operators import Change
from evolve.runtime.device import making_parts_for
from evolve.runtime.exclusive import exclusive
from evolve.runtime.generators import preserved_rng
from evolve.structure.probe import count_parameters
from evolve.structure.sites import resolve
from evolve.surgery.gradients import Gradients
from evolve.surgery.optimizer import Carrier, Optimizers, as_optimizers, changes_of
from evolve.surgery.parts import ParametersBefore
from evolve.surgery.resize import Cut
from evolve.surgery.transaction import Transaction


class Follower(Protocol):
    """Keeps tensors of the parameters' shapes, such as `evolve.care.EMA`."""

    def rename(self, names: Mapping[str, str]) -> None:
        """Keeps them under the names that parameters have now: old names, with the new ones."""

    def follow(self, model: nn.Module, cuts: Sequence[Cut] = (), redrawn: Sequence[str] = ()) -> None:
        """Follows one mutation; an error in it must leave nothing half done."""


@exclusive
def replay(
    model: nn.Module,
    records: Iterable[Record],
    optimizer: Optimizers | None = None,
    ema: Follower | AveragedModel | None = None,
) -> None:
    """Rebuilds the structure that the applied records describe on a base model; needs no data and measures nothing.

    Optimizers are carried as `mutate` carries them. Their parameters end up in the same order as in the run that was
    recorded, so that torch's own `optimizer.load_state_dict` fits. Whatever fails, model, optimizers and averages are
    as before.

    Args:
        model: Any module; compiled models (`torch.compile`) are changed underneath.
        records: In their order, of mutations of this model or, where their `root` says so, of a submodule.
        optimizer: One or a sequence of several over parameters of this model, or of one that it is a part of.
        ema: What keeps averages of the parameters: it follows each mutation; in torch's `AveragedModel` the averaged
            module is mutated in the same way.

    Raises:
        UnknownNameError: If a record's operator is not registered: import the plugin first.
        EvolveError: If an argument is of another type, a record does not fit the model, or the optimizers cannot
            follow.
    """
    check_model(model)
    follows = not isinstance(ema, type) and callable(getattr(ema, "follow", None))
    if ema is not None and not isinstance(ema, AveragedModel) and not follows:
        raise EvolveError(
            f"ema: expected evolve.care.ema.EMA or torch's AveragedModel, found '{type(ema).__name__}'. Pass "
            "EMA(model, decay), or None."
        )
    model, optimizers, records = underneath(model), as_optimizers(optimizer), as_records(records)
    twin = underneath(ema.module) if isinstance(ema, AveragedModel) else None
    done: list[Change] = []
    start = ParametersBefore(model)
    with Transaction(model, optimizers), Transaction(nn.Module() if twin is None else twin):
        for record in records:
            if record.status != "applied":
                continue
            before = ParametersBefore(model)
            change = _applied(model, record, optimizers)
            names = before.renamed(model)
            done = [*(_renamed(one, names) for one in done), change]
            if twin is not None:
                _applied(twin, record, [])
        if ema is not None and not isinstance(ema, AveragedModel):
            _follow(ema, model, start.renamed(model), done)


def _renamed(change: Change, names: Mapping[str, str]) -> Change:
    """Returns a change with the names that parameters were given by a later one."""
    cuts = [replace(cut, name=names.get(cut.name, cut.name)) for cut in change.cuts]
    return replace(change, cuts=cuts, redrawn=[names.get(name, name) for name in change.redrawn])


def _follow(ema: Follower, model: nn.Module, names: Mapping[str, str], changes: Sequence[Change]) -> None:
    if names:
        ema.rename(names)
    try:
        ema.follow(
            model,
            [cut for change in changes for cut in change.cuts],
            [name for change in changes for name in change.redrawn],
        )
    except Exception:
        if names:
            ema.rename({new: old for old, new in names.items()})
        raise


@exclusive
def follow(model: nn.Module, records: Iterable[Record], optimizer: Optimizers) -> list[MutationResult]:
    """Carries out what another process did to the same model, as `replay` does; averages are the caller's to carry.

    Args:
        model: As it was there before.
        records: Of all attempts there; those that were not applied are answered as they were.
        optimizer: One or several, as they were there.

    Raises:
        EvolveError: If a record does not fit; model and optimizers are as before.
    """
    model, optimizers, answers = underneath(model), as_optimizers(optimizer), []
    with Transaction(model, optimizers):
        for record in records:
            change = _applied(model, record, optimizers) if record.status == "applied" else Change("")
            answers.append(MutationResult(record.made_on(model), change.cuts, change.redrawn))
    return answers


def _applied(whole: nn.Module, record: Record, optimizers: Optimizers) -> Change:
    """Applies one record, with the optimizers and gradients that go with the model; names are those in the whole."""
    what = f"Record {record.index} ('{record.operator}' at '{record.site}')"
    try:
        model = whole.get_submodule(record.root)
    except AttributeError as error:
        raise EvolveError(f"{what} is of the submodule '{record.root}', which this model does not have.") from error
    try:
        acting = create_operator(record.operator, record.options)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error} Record {record.index} needs it: import or list its plugin first.") from error
    carrier, gradients = Carrier(model, optimizers), Gradients(model)
    try:
        with preserved_rng(record.seed), making_parts_for(model), no_exit(record.operator):
            change = acting.apply(model, resolve(model, record.site, groups=acting.on_groups), record.plan)
    except NotApplicable as error:
        raise EvolveError(
            f"{what} does not fit this model: {error} Was the base model built as it was then?"
        ) from error
    if count_parameters(model) != record.params_after:
        raise EvolveError(
            f"After record {record.index} ('{record.operator}' at '{record.site}') the model should have "
            f"{record.params_after:,} parameters; it has {count_parameters(model):,}. Is the base model the same?"
        )
    gradients.put_back(changes_of(model, carrier.before, change.cuts))
    try:
        carrier.carry(model, record.site, change.cuts, change.redrawn if change.forget else (), change.copies)
    except (NotApplicable, RejectedError) as error:
        raise EvolveError(f"{what} is applied, but the optimizer cannot follow: {error}") from error
    if not record.root:
        return change
    cuts = [replace(cut, name=f"{record.root}.{cut.name}") for cut in change.cuts]
    return replace(change, cuts=cuts, redrawn=[f"{record.root}.{name}" for name in change.redrawn])
