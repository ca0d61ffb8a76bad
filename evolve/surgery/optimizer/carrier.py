"""Brings optimizers in line with a model: state is cut, what was replaced is followed, what is new joins a group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer

from evolve.errors import NotApplicable, RejectedError
from evolve.surgery.optimizer.changes import Changed, ParameterTable, changes_of
from evolve.surgery.optimizer.cutting import UnfitError, follow_cuts, follow_shape
from evolve.surgery.optimizer.faults import called, counts_of, left_behind, optimizer_faults
from evolve.surgery.optimizer.groups import begin, home, join
from evolve.surgery.optimizer.kinds import Kinds
from evolve.surgery.optimizer.layers import Optimizers, all_layers, as_optimizers, groups_of, held_by, layers
from evolve.surgery.optimizer.places import places_of
from evolve.surgery.optimizer.rehearsal import Rehearsal
from evolve.surgery.resize import Cut


class Carrier:
    """Carries optimizers through one change of a model.

    It is made before the change, and looks at everything that the optimizers keep for the parameters; `carry` is
    called after it.

    Args:
        model: The model.
        optimizer: One optimizer, several or none.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizers | None) -> None:
        self.optimizers = as_optimizers(optimizer)
        self.before = ParameterTable(model)
        self._layers = all_layers(self.optimizers)
        self._counts = counts_of(self.optimizers)
        self._remarks: list[str] = []
        trainable = any(p.requires_grad for p in self.before.by_name.values())
        if held_by(self.optimizers) and trainable and not any(p in self.before for p in held_by(self.optimizers)):
            raise NotApplicable(
                f"{called(self.optimizers)} holds no parameter of this model: it was made for another one, or keeps "
                "copies (a flattened or higher-precision one). Pass the optimizer that steps these parameters."
            )
        self._kinds = Kinds(self.optimizers, self.before.by_name)
        self._places = places_of(self._layers, self.before.shapes, self.before.by_name)

    def carry(
        self,
        model: nn.Module,
        site: str,
        cuts: Sequence[Cut] = (),
        redrawn: Iterable[str] = (),
        copies: Mapping[str, str] = MappingProxyType({}),
    ) -> list[str]:
        """Brings the optimizers in line with the model.

        State that holds values of parameters is cut as weights are, averages of gradients as gradients, those of their
        squares as squares; what was added starts as a new optimizer would start it. State that cannot be cut begins
        anew for its parameter.

        Args:
            model: After the change.
            site: Dotted name of the place of the change.
            cuts: How axes were made anew.
            redrawn: Parameters, by name, whose state begins anew.
            copies: New parameters, by name, with the names before the change of those whose groups they join.

        Returns:
            Sentences for the log.

        Raises:
            NotApplicable: If the optimizers cannot follow.
            RejectedError: If something is wrong with them afterwards.
        """
        if not self.optimizers:
            return []
        after = dict(model.named_parameters(remove_duplicate=False))
        changed = changes_of(model, self.before, cuts)
        new = {n: p for n, p in after.items() if p.requires_grad and p not in self.before}
        living = {id(parameter) for parameter in after.values()}
        gone = {id(p) for p in self.before.by_name.values() if id(p) not in living}
        trial = self._kinds.trial
        if (changed or new or gone) and trial is not None and trial.fault is not None:
            raise NotApplicable(
                f"Whether {called(self.optimizers)} can follow is not known, as {trial.fault}. Mutate without "
                "optimizer= and make it anew over the parameters, or pass the optimizer inside it."
            )
        self._restart_history(bool(changed or new or gone))
        anew = self._follow({id(change.old): change for change in changed})
        self._put_in_place({id(c.old): c.new for c in changed if c.new is not c.old and c.new.requires_grad})
        self._drop(gone)
        self._rename(model, after)
        self._adopt(model, new, site, copies)
        for places in self._places:
            places.complete(self._kinds.holds_weights)
        for layer, parameter in anew:
            _restart(layer, parameter)
        forget(self.optimizers, [model.get_parameter(name) for name in redrawn])
        faults = optimizer_faults(model, self.optimizers, self.before, self._counts)
        if not faults and self._kinds.rehearsal is not None and (changed or new or gone):
            faults = self._rehearsed(self._kinds.rehearsal, [c.new for c in changed], anew)
        if faults:
            more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise RejectedError("Verification failed: " + "; ".join(faults[:3]) + more + ".")
        return [*self._remarks, *left_behind(self.optimizers, self.before, self._counts)]

    def _rehearsed(
        self, rehearsal: Rehearsal, changed: Sequence[Parameter], anew: Sequence[tuple[Optimizer, Parameter]]
    ) -> list[str]:
        """Returns what a rehearsal finds; where state that was cut may be at fault, it is tried without."""
        faults = rehearsal.faults()
        cut = [p for p in changed if any(p in layer.state for layer in self._layers)]
        if not faults or not cut:
            return faults
        forget(self.optimizers, cut)
        if again := rehearsal.faults():
            return again
        count = len({id(p) for p in cut} | {id(p) for _, p in anew})
        self._remarks = [f"The optimizer's state of {count} parameters begins anew, as {faults[0]} with what was cut."]
        return []

    def _restart_history(self, changed: bool) -> None:
        """L-BFGS keeps one flattened history of all parameters."""
        for layer in self._layers:
            if isinstance(layer, LBFGS) and changed and layer.state:
                layer.state.clear()
                self._remarks.append("The history of LBFGS begins anew.")
            if isinstance(layer, LBFGS):
                layer._numel_cache = None

    def _follow(self, changed: Mapping[int, Changed]) -> list[tuple[Optimizer, Parameter]]:
        """Cuts all entries; returns the parameters whose state has to begin anew, with the optimizer it is in."""
        anew: dict[tuple[int, int], tuple[Optimizer, Parameter]] = {}
        reasons = []
        for places in self._places:
            for entry in places.owned:
                change = changed.get(id(entry.owner))
                if change is None or (entry.layer is not None and entry.owner not in entry.layer.state):
                    continue
                try:
                    if change.cuts:
                        follow_cuts(entry, self._kinds, change.shape, change.cuts)
                    elif tuple(change.new.shape) != change.shape:
                        follow_shape(entry, self._kinds, change.shape, tuple(change.new.shape), change.new)
                except UnfitError as error:
                    if entry.layer is None:
                        raise NotApplicable(
                            f"{type(places.optimizer).__name__} keeps '{'.'.join(entry.path)}', which cannot follow a "
                            f"change of shape ({error}). Use another optimizer, or mutate without optimizer= and make "
                            "it anew."
                        ) from error
                    anew[id(entry.layer), id(change.new)] = (entry.layer, change.new)
                    reasons.append(str(error))
        if anew:
            self._remarks.append(
                f"The optimizer's state of {len(anew)} parameters begins anew, as it cannot be cut ({reasons[0]})."
            )
        return list(anew.values())

    def _put_in_place(self, replaced: Mapping[int, Parameter]) -> None:
        """Lets a parameter that replaces another take its place in groups, states, tables and lists."""
        for group in groups_of(self.optimizers):
            group["params"][:] = [replaced.get(id(p), p) for p in group["params"]]
        for layer in self._layers:
            for old in [p for p in layer.state if id(p) in replaced]:
                layer.state[replaced[id(old)]] = layer.state.pop(old)
        for places in self._places:
            places.put_in_place(replaced)

    def _drop(self, gone: set[int]) -> None:
        for group in groups_of(self.optimizers):
            kept = [index for index, parameter in enumerate(group["params"]) if id(parameter) not in gone]
            if len(kept) < len(group["params"]):
                if "param_names" in group:
                    group["param_names"][:] = [group["param_names"][index] for index in kept]
                group["params"][:] = [group["params"][index] for index in kept]
        for layer in self._layers:
            for parameter in [p for p in layer.state if id(p) in gone]:
                del layer.state[parameter]
        for places in self._places:
            places.drop(gone)

    def _rename(self, model: nn.Module, after: Mapping[str, Parameter]) -> None:
        """Blocks that were put in or taken out give those behind them other names."""
        now = {id(parameter): name for name, parameter in model.named_parameters()}
        moved = {n: now[id(p)] for n, p in self.before.by_name.items() if after.get(n) is not p and id(p) in now}
        if not moved:
            return
        for group in groups_of(self.optimizers):
            if "param_names" in group:
                group["param_names"][:] = [moved.get(name, name) for name in group["param_names"]]
        for places in self._places:
            places.rename(moved)

    def _adopt(self, model: nn.Module, new: Mapping[str, Parameter], site: str, copies: Mapping[str, str]) -> None:
        """New trainable parameters join the group of what they are copies of, or that of most of their neighbours."""
        roots = {id(group): one for one in reversed(self.optimizers) for group in one.param_groups}
        groups = list({id(group): group for one in self.optimizers for group in one.param_groups}.values())
        held = {id(p) for group in groups for p in group["params"]}

        def chosen(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
            before, whose = self.before, called(self.optimizers)
            like = before.by_name.get(copies.get(name, ""))
            if (own := next((group for group in groups if _holds(group, like)), None)) is not None:
                return own
            return home(model, name, parameter, groups, before.by_name, before.layers, site, whose)

        for name, parameter in new.items():
            if id(parameter) in held:  # it took the place of another, or is tied and comes under a second name
                continue
            held.add(id(parameter))
            found = chosen(groups)
            outer, *inside = layers(roots[id(found)])
            join(outer, found, parameter, name, [outer, *inside])
            for layer in inside:
                if not {id(group) for group in layer.param_groups} & set(roots):  # it has groups of its own
                    chosen(layer.param_groups)["params"].append(parameter)


def _holds(group: Mapping[str, Any], parameter: Parameter | None) -> bool:
    return any(held is parameter for held in group["params"])


def forget(optimizer: Optimizers, parameters: Iterable[Parameter]) -> None:
    """Lets the state of parameters begin anew, as a new optimizer would begin it."""
    chosen = list(parameters)
    for layer in all_layers(as_optimizers(optimizer)):
        for parameter in chosen:
            _restart(layer, parameter)


def _restart(layer: Optimizer, parameter: Parameter) -> None:
    layer.state.pop(parameter, None)
    group: dict[str, Any] | None = next(
        (group for group in layer.param_groups if any(p is parameter for p in group["params"])), None
    )
    if group is not None:
        begin(layer, parameter, group)
