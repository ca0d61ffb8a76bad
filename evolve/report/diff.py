"""Two models side by side: layers, costs, and how far apart their outputs are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from evolve.errors import EvolveError, NotApplicable, described
from evolve.mutation.compare import difference, structure_faults, why_not_measured
from evolve.structure.analysis import Analysis, analyse
from evolve.structure.comparing import LayerChange, compare_layers, layers_of
from evolve.structure.gradients import without_gradients
from evolve.structure.inputs import Inputs, as_inputs
from evolve.structure.isolation import undisturbed
from evolve.structure.outputs import Part, copied_parts
from evolve.structure.probe import count_parameters

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Attributes:
        name: What was asked for.
        what: What it is, such as "epoch 3, step 120".
        parameters: Elements of all parameters, shared ones once.
        flops: Floating-point operations of one sample; None where it does not run on the batch.
    """

    name: str
    what: str
    parameters: int
    flops: int | None


@dataclass(frozen=True)
class ModelDiff:
    """What differs between two models.

    Attributes:
        one: The first model; likewise `two`.
        layers: Layers that differ.
        same: Layers that do not: of the same class, settings and shapes.
        inputs: Shapes of the batch that both were run on.
        batch: Where it comes from.
        max_abs_diff: Largest |difference| of the outputs; None where they were not compared.
        why_not: Why not.
    """

    one: Side
    two: Side
    layers: list[LayerChange]
    same: int
    inputs: list[tuple[int, ...]]
    batch: str
    max_abs_diff: float | None
    why_not: str

    def as_json(self) -> dict[str, Any]:
        """Returns JSON values: the attributes by name."""
        return {"version": 1, **asdict(self)}


@dataclass(frozen=True)
class Shown:
    """A model to be compared.

    Attributes:
        model: The model.
        name: What was asked for.
        what: What it is.
        untrained: Why its outputs say nothing, where its weights were drawn just now; "" where they were not.
    """

    model: nn.Module
    name: str
    what: str = ""
    untrained: str = ""


def diff_models(one: Shown, two: Shown, example_inputs: Any, batch: str) -> ModelDiff:
    """Returns what differs between two models; both are left as they were.

    Args:
        one: The first model.
        two: The second one.
        example_inputs: What both are run on: a tensor, a sequence of arguments, a mapping of keyword arguments; None
            where nothing is known.
        batch: Where that comes from.
    """
    runs = [_Looked(shown, example_inputs) for shown in (one, two)]
    before, after = (layers_of(run.model, run.analysis) for run in runs)
    changes = compare_layers(before, after)
    why_not = one.untrained or two.untrained or runs[0].fault or runs[1].fault
    delta = None
    if not why_not:
        delta, why_not = _apart(runs[0].outputs, runs[1].outputs)
    inputs = next((run.inputs for run in runs if run.inputs is not None), None)
    return ModelDiff(
        one=runs[0].side,
        two=runs[1].side,
        layers=changes,
        same=len(before) - sum(change.before is not None for change in changes),
        inputs=[tuple(tensor.shape) for tensor in inputs.tensors] if inputs is not None else [],
        batch=batch,
        max_abs_diff=delta,
        why_not=why_not,
    )


class _Looked:
    """A model that was run on the batch, if it can be."""

    def __init__(self, shown: Shown, example_inputs: Any) -> None:
        self.model = shown.model.eval()
        self.analysis: Analysis | None = None
        self.inputs: Inputs | None = None
        self.outputs: Sequence[Part] = ()
        self.fault = "no batch is known that both run on"
        if example_inputs is not None:
            self.fault = self._run(shown.name, example_inputs)
        flops = None if self.analysis is None else self.analysis.flops({})
        self.side = Side(shown.name, shown.what, count_parameters(self.model), flops)

    def _run(self, name: str, example_inputs: Any) -> str:
        """Runs the model; returns why it cannot be."""
        try:
            self.inputs = inputs = as_inputs(self.model, example_inputs)
            self.analysis = analyse(self.model, inputs)
            self.outputs = without_gradients(self.model, lambda: self._outputs(inputs))
        except NotApplicable as error:
            return f"{name}: {error}"
        except EvolveError:
            raise
        except Exception as error:  # whatever a user's forward raises
            logger.debug("%s does not run on the batch.", name, exc_info=True)
            return f"{name} does not run on the batch: {described(error)}"
        return ""

    def _outputs(self, inputs: Inputs) -> list[Part]:
        with undisturbed(self.model, seed=0):
            return copied_parts(inputs.run(self.model))


def _apart(one: Sequence[Part], two: Sequence[Part]) -> tuple[float | None, str]:
    """Returns the largest difference, or why there is none."""
    if faults := structure_faults(one, two):
        return None, f"{faults[0]}{f' (and {len(faults) - 1} more)' if len(faults) > 1 else ''}"
    found = difference(one, two).absolute
    return (found, "") if found is not None else (None, why_not_measured(one))
