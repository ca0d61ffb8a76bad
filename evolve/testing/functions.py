"""Clauses of the contract: a mutated model is the function that was declared, in every mode in which it may run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from evolve.lineage import Preserves
from evolve.mutation.compare import difference, structure_faults, without_recounted
from evolve.mutation.runs import WithoutDropout
from evolve.structure.inputs import Inputs, as_inputs
from evolve.structure.isolation import undisturbed
from evolve.structure.outputs import Part, copied_parts

EVAL, EVAL_WITH_GRADIENTS = "eval", "eval with gradients"


def outputs_of(model: nn.Module, example_inputs: Any, *, still: bool) -> dict[str, list[Part]]:
    """Returns the outputs in eval mode, without and with gradients, and in train mode.

    Args:
        model: The model; it is left as it was.
        example_inputs: What to run it on.
        still: Leave dropout out in train mode.
    """
    inputs = as_inputs(model, example_inputs)
    found = {mode: _run(model, inputs, gradients=mode != EVAL) for mode in (EVAL, EVAL_WITH_GRADIENTS)}
    with WithoutDropout() if still else nullcontext():
        return {**found, "train": _run(model, inputs, gradients=True, training=True)}


def _run(model: nn.Module, inputs: Inputs, *, gradients: bool, training: bool = False) -> list[Part]:
    with undisturbed(model, seed=4), torch.set_grad_enabled(gradients):
        return copied_parts(inputs.run(model.train(training)))


def check_outputs(
    before: Mapping[str, list[Part]],
    after: Mapping[str, list[Part]],
    preserves: Preserves,
    where: str,
    *,
    recounts: bool = False,
) -> None:
    """In every mode the model returns the same kind of thing, as near to what it returned as the operator declares."""
    if preserves == "no":
        return
    for mode in before:
        old, new = without_recounted(before[mode], after[mode]) if recounts else (before[mode], after[mode])
        faults = structure_faults(old, new)
        assert not faults, f"{where}: in {mode} mode {faults[0]}"
        found = difference(old, new)
        assert found.absolute is not None, f"{where}: in {mode} mode no output could be compared"
        for leaf in found.leaves:
            within = leaf.relative <= leaf.allowed(preserves)
            assert within, f"{where}: in {mode} mode the output{leaf.path} changed by {leaf.relative:g} relative"


def check_alike(outputs: Mapping[str, list[Part]], rebuilt: Mapping[str, list[Part]], where: str) -> None:
    """What replay builds computes the same, bit for bit."""
    for mode, expected in outputs.items():
        alike = not structure_faults(expected, rebuilt[mode]) and difference(expected, rebuilt[mode]).relative == 0
        assert alike, f"{where}: in {mode} mode what replay builds computes something else"


def check_grad_modes(model: nn.Module, example_inputs: Any, where: str) -> None:
    """With and without gradients the changed model is the same function, also once its new parts have moved.

    PyTorch's transformer layers take another path without gradients, past whatever does not belong to them.
    """
    inputs = as_inputs(model, example_inputs)
    with_gradients, without = (_run(model, inputs, gradients=gradients) for gradients in (True, False))
    faults = structure_faults(with_gradients, without)
    assert not faults, f"{where}: after training, without gradients {faults[0] if faults else ''}"
    for leaf in difference(with_gradients, without).leaves:
        assert leaf.relative <= 10 * leaf.rounds, (
            f"{where}: after training, the output{leaf.path} in eval mode differs by {leaf.relative:g} relative "
            "with and without gradients: one of the two runs past a new part"
        )
