"""What is known of a model, as plain data: the form that `evolve inspect --json` prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from evolve.structure.tracing.tape import Shape

Widening = Literal["any_copy", "whole_copies", "none"]


@dataclass(frozen=True)
class ModuleFacts:
    """One module; costs are of one sample and include those of its children.

    Attributes:
        name: Dotted name, "" for the model.
        class_name: Its class.
        calls: How often one forward pass in eval mode calls it. A container whose children are called one by one has
            none; its costs are theirs.
        inputs: Shapes of the tensors among its arguments, in its first call; likewise `outputs`.
        parameters: Elements of its parameters.
        flops: Floating-point operations (2 per multiply-accumulate).
        activation_bytes: Bytes of all tensors that its operations make.
        latency_ms: Measured milliseconds of a forward pass of the whole batch; None where it was not measured.
        inserted: Names of the blocks that evolve set to work at it.
    """

    name: str
    class_name: str
    calls: int
    inputs: list[Shape]
    outputs: list[Shape]
    parameters: int
    flops: int
    activation_bytes: int
    latency_ms: float | None
    inserted: list[str]


@dataclass(frozen=True)
class PlaceFacts:
    """A place where a group is kept.

    Attributes:
        name: Parameter or buffer.
        axis: Its axis.
        length: Positions of that axis; more than the group has where it lies in it together with others.
        reads: Whether the model sums over the axis there: the input side of a layer.
    """

    name: str
    axis: int
    length: int
    reads: bool


@dataclass(frozen=True)
class GroupFacts:
    """Channels, units or heads that can only change together.

    Attributes:
        name: Site name for `widen` and `narrow`.
        size: How many.
        inner: Positions that one of them takes up: the width of a head, 1 for channels.
        widening: What keeps the function when it is widened: "any_copy" of some of them, only "whole_copies" of all of
            them, or "none".
        reason: Why not any copy.
        places: Where it is kept.
    """

    name: str
    size: int
    inner: int
    widening: Widening
    reason: str
    places: list[PlaceFacts]


@dataclass(frozen=True)
class PinFacts:
    """Positions that cannot change; attributes as in `GroupFacts`."""

    name: str
    size: int
    reason: str
    places: list[PlaceFacts]


@dataclass(frozen=True)
class OperatorFacts:
    """Where an operator applies with its default options.

    Attributes:
        name: Registered name.
        preserves: Its declaration: "exact", "approximate" or "no".
        sites: The places.
        objection: Why no places could be looked for ("" where they could).
    """

    name: str
    preserves: str
    sites: list[str]
    objection: str


@dataclass(frozen=True)
class Inspection:
    """Everything known about a model; `as_json` gives the same keys.

    Attributes:
        version: Of this form.
        model: What was asked for.
        device: Where the model is; likewise `dtype`.
        inputs: Shapes of the batch that it was run on.
        modules: Every module, outermost first; the first is the model itself.
        groups: What can change.
        pins: What cannot change, with the reason.
        unreached: Parameters that the batch does not reach: nothing is known about them.
        operators: Where each operator applies.
        mutations: What an evolved model went through: applied records, as in `lineage.jsonl`.
    """

    version: int
    model: str
    device: str
    dtype: str
    inputs: list[Shape]
    modules: list[ModuleFacts]
    groups: list[GroupFacts]
    pins: list[PinFacts]
    unreached: list[str]
    operators: list[OperatorFacts]
    mutations: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Returns JSON values: the attributes by name."""
        return asdict(self)
