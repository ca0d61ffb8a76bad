"""Proves that a change did what it promised: outputs as declared, nothing newly infinite, gradients that arrive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from torch import nn

from evolve.errors import NotApplicable, RejectedError, described
from evolve.mutation.compare import (
    Difference,
    difference,
    newly_infinite,
    structure_faults,
    uncompared,
    why_not_measured,
    without_recounted,
)
from evolve.mutation.health import LookCloserError
from evolve.mutation.runs import GradRun, grad_run, rounding
from evolve.operators import MutationOperator
from evolve.operators.regroup import structure_of
from evolve.runtime.memory import out_of_memory
from evolve.structure.analysis import Analysis
from evolve.structure.asks import asks_how_it_runs
from evolve.structure.inputs import Inputs
from evolve.structure.outputs import Part
from evolve.structure.probe import OutputLoss, Probe, mixed_outputs, outputs_in_use, probe
from evolve.structure.tracing.hooks import global_hooks

T = TypeVar("T")
# How messages call a run.
_NAMES = {"eval": "eval mode", "train": "train mode", "mixed": "eval or train mode"}


class Verification:
    """What a model computed before a mutation, to hold it against what it computes afterwards.

    Args:
        model: The model before the mutation.
        inputs: The probe batch.
        operator: What is going to change the model.
        before: The first look at the model, by `first_look`.
        seed: Of all that is drawn.
        closely: Look at the gradients before the change too, which takes a backward pass.

    Attributes:
        before: What the model gave, by run: "eval" as it is used, "mixed" with `mixed_statistics`, "train".
        after: The same of the changed model, after `run_again`.
        max_abs_diff: Largest |difference| found by `compare`; None where no number could be compared.
        remarks: What could not be looked at, and why.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        operator: MutationOperator,
        before: Probe,
        seed: int,
        *,
        closely: bool = False,
    ) -> None:
        self._model, self._inputs, self._operator, self._seed = model, inputs, operator, seed
        self._flops = before.flops
        structure = structure_of(model, before) if operator.on_groups else None
        self._still = operator.redraws and (structure is None or structure.drops)
        self._trains = structure is None or not _modes_alike(operator, structure)
        self._had_trainable = any(p.requires_grad for p in model.parameters())
        self.remarks: list[str] = []
        self.max_abs_diff: float | None = None
        self.before: dict[str, Sequence[Part]] = {}
        self.after: dict[str, Sequence[Part]] = {}
        if operator.on_groups:
            self.before["mixed" if _mixes(operator) else "eval"] = before.outputs
        asks = asks_how_it_runs(model)
        if "eval" not in self.before and (not operator.on_groups or asks):
            self.before["eval"] = outputs_in_use(model, inputs, seed) if asks else before.outputs
        self._other_way = before.outputs
        self._closely = closely
        self._grad_before = self._train_before() if self._trains else None
        self._grad_after: GradRun | None = None

    def _train_before(self) -> GradRun | None:
        """Runs the model as in training; in eval mode with gradients where its user's forward fails in train mode."""
        try:
            looked_at: dict[str, nn.Parameter] | None = {} if self._closely else None
            found = grad_run(self._model, self._inputs, self._seed, still=self._still, new=looked_at)
        except Exception as error:
            if out_of_memory(error):
                raise
            self._trains = False
            self.remarks.append(f"Train mode was not compared: the model itself fails in it ({described(error)}).")
            return None
        self.before["train"] = found.outputs
        return found

    def run_again(self, new: Mapping[str, nn.Parameter] | None) -> None:
        """Runs the changed model in the same ways.

        Args:
            new: New parameters, whose gradients have to arrive; None to look at no gradients.

        Raises:
            RejectedError: If it does not run.
        """
        runs = {"eval": outputs_in_use, "mixed": mixed_outputs}
        for mode in self.before.keys() - {"train"}:
            self.after[mode] = self._attempted(partial(runs[mode], self._model, self._inputs, self._seed))
        if self._trains or new is not None:
            self._grad_after = self._attempted(
                lambda: grad_run(
                    self._model, self._inputs, self._seed, training=self._trains, still=self._still, new=new
                )
            )
            if self._trains:
                self.after["train"] = self._grad_after.outputs

    def _attempted(self, run: Callable[[], T]) -> T:
        try:
            return run()
        except Exception as error:  # whatever a user's forward makes of the change
            if out_of_memory(error):
                raise
            raise RejectedError(f"The changed model does not run: {described(error)}") from error

    def flops_after(self) -> int | None:
        """Returns the FLOPs of one sample in eval mode.

        They are those of the run in train mode if the modes cost the same before; else the model is run once more.
        """
        if self._grad_before is not None and self._grad_after is not None and self._grad_before.flops == self._flops:
            return self._grad_after.flops
        return self._attempted(lambda: probe(self._model, self._inputs, self._seed)).flops

    def compare(self) -> None:
        """Holds the outputs of all runs against each other.

        Raises:
            RejectedError: If they differ by more than the operator declares, if nothing could be compared though it
                declares something, or if an output has become NaN or infinite.
        """
        preserves = self._operator.preserves
        measured = []
        for mode, old in self.before.items():
            new = self.after[mode]
            if self._operator.recounts:
                old, new = without_recounted(old, new)
            faults = structure_faults(old, new)
            if faults and mode == "eval" and not structure_faults(self._other_way, new):
                # Fused transformer layers cut off what is padding in all samples; the changed model may not be fused.
                old, faults = self._other_way, []
            if preserves != "no":
                reject_if(faults)
            reject_if([f"in {_NAMES[mode]}, {fault}" for fault in newly_infinite(old, new)])
            if faults:  # an operator that promises nothing may change what the model returns
                continue
            found = difference(old, new, self._other_way if mode == "eval" else ())
            self._hold(mode, found)
            measured += [found.absolute] if found.absolute is not None else []
        self.max_abs_diff = max(measured, default=None)
        if self.max_abs_diff is None and preserves != "no":
            raise RejectedError(
                f"'{self._operator.name}' declares to preserve the function ({preserves}), but that was not measured: "
                f"{self._why_not()}. Pass example_inputs for which the model returns finite numbers."
            )
        self.remarks += uncompared(next(iter(self.before.values())))

    def _hold(self, mode: str, found: Difference) -> None:
        """Holds a difference against the declaration; where that is exact, rounding is allowed what it does here."""
        preserves = self._operator.preserves
        beyond = [leaf for leaf in found.leaves if leaf.relative > leaf.allowed(preserves)]
        if not beyond:
            return
        allowed = {leaf.path: leaf.allowed(preserves) for leaf in beyond}
        if preserves == "exact":
            rounds = rounding(self._model, self._inputs, self.after[mode], self._seed, mode=mode, still=self._still)
            allowed = {k.path: max(allowed[k.path], rounds.get(k.path, 0.0) / (k.scale or 1.0)) for k in beyond}
        for leaf in beyond:
            if leaf.relative > allowed[leaf.path]:
                raise RejectedError(
                    f"'{self._operator.name}' declares to preserve the function ({preserves}), but in "
                    f"{_NAMES[mode]} the output{leaf.path} changed by {leaf.absolute:.3g}, {leaf.relative:.3g} "
                    f"relative; allowed is {allowed[leaf.path]:.3g}."
                )

    def gradient_faults(self, new: Mapping[str, nn.Parameter] | None) -> list[str]:
        """Says why the changed model could not be trained.

        Raises:
            LookCloserError: If gradients of old parameters are infinite, and it is not known whether they were before.
        """
        before, after = self._grad_before, self._grad_after
        if after is None:
            return []
        if after.depends:
            suspects = [name for name in after.infinite if name not in (new or {})]
            if suspects and before is not None and not self._closely:
                raise LookCloserError
            return [*after.faults, *_newly_infinite(before, after, suspects)]
        if before is not None and before.depends:
            return ["no output depends on a trainable parameter any more"]
        if new and before is not None and self._had_trainable:
            self.remarks.append(
                "Gradients were not checked: no output depends on a trainable parameter, as none did before."
            )
            return []
        return [f"no gradient reaches the new parameter '{name}'" for name in new or ()]

    def measured(self) -> str:
        """Says what was measured, or why nothing was."""
        if self.max_abs_diff is not None:
            return f"max|Δ| = {self.max_abs_diff:.3g}."
        return f"Not measured: {self._why_not()}."

    def _why_not(self) -> str:
        for mode, old in self.before.items():
            faults = structure_faults(old, self.after[mode])
            if faults:
                return f"the outputs cannot be compared ({faults[0]})"
        return why_not_measured(next(iter(self.before.values())))


def _newly_infinite(before: GradRun | None, after: GradRun, suspects: Sequence[str]) -> list[str]:
    """Names the old parameters whose gradients were finite, and are not any longer, whatever they are called now."""
    if before is None or before.faults:
        return []
    known = {id(parameter) for parameter in before.infinite.values()}
    names = [name for name in suspects if id(after.infinite[name]) not in known and name not in before.infinite]
    return [f"the gradient of '{name}' has become NaN or infinite" for name in names]


def _mixes(operator: MutationOperator) -> bool:
    """Whether an operator is held to its declaration by one run that mixes the statistics of both modes."""
    return operator.on_groups and operator.preserves != "no"


def _modes_alike(operator: MutationOperator, structure: Analysis) -> bool:
    """Whether one run tells of both modes: the one that mixes their statistics, or either where nothing is promised."""
    return not structure.asks_mode and not global_hooks() and (operator.redraws or not structure.drops)


def first_look(
    model: nn.Module,
    inputs: Inputs | None,
    seed: int,
    loss: OutputLoss | None = None,
    operator: MutationOperator | None = None,
) -> Probe:
    """Runs the model for the first time, as the operator needs it: one on groups needs its outputs alone.

    Raises:
        NotApplicable: If the model does not run.
    """
    try:
        if inputs is None or operator is None or not operator.on_groups:
            return probe(model, inputs, seed, loss)
        run = mixed_outputs if _mixes(operator) else outputs_in_use
        return Probe(inputs, {}, None, run(model, inputs, seed), loss)
    except Exception as error:
        if out_of_memory(error):
            raise
        shapes = ", ".join(str(tuple(t.shape)) for t in inputs.tensors) if inputs else ""
        given = f"of shape {shapes}" if shapes else "without a tensor"
        fault = described(error)
        raise NotApplicable(f"The model fails on example inputs {given} before any change: {fault}") from error


def reject_if(faults: Sequence[str]) -> None:
    """Refuses a mutation for what is wrong with it.

    Raises:
        RejectedError: If there is anything.
    """
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise RejectedError("Verification failed: " + "; ".join(faults[:3]) + more + ".")
