"""The residual branches of a block, read off a recorded run: what has to be zero for the block to pass its input on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set

from torch import nn

from evolve.errors import NotApplicable
from evolve.structure.analysis import Analysis
from evolve.structure.tracing.tape import ModuleCall, Op, Tape, Value

Ends = dict[str, float]

# What passes a tensor on as it is in eval mode; a ReLU does so with what another ReLU has made.
_SAME = {"view", "_unsafe_view", "clone", "contiguous", "_to_copy", "alias", "detach", "native_dropout", "dropout"}
_RECTIFIERS = {"relu", "relu_", "hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min", "clamp_min_"}
# What makes zero of zero.
_KEEPS_ZERO = {"gelu", "gelu_", "silu", "silu_", "tanh", "div", "div_", "sum", "mean", "neg", "roll"}
_KEEPS_ZERO |= {
    "avg_pool2d",
    "max_pool2d",
    "max_pool2d_with_indices",
    "_adaptive_avg_pool2d",
    "mean",
    "constant_pad_nd",
}
_SUMS = {"add", "add_", "sub", "sub_"}
_PRODUCTS = {"mul", "mul_", "mm", "bmm", "matmul"}
# Products plus a bias: positions among the arguments of the factors, of which one has to be zero, and of the bias.
_LAYERS = {
    "addmm": ((2, 1), 0),
    "baddbmm": ((2, 1), 0),
    "convolution": ((1,), 2),
    "native_batch_norm": ((1,), 2),
    "cudnn_batch_norm": ((1,), 2),
    "_native_batch_norm_legit": ((1,), 2),
    "_native_batch_norm_legit_no_training": ((1,), 2),
    "native_layer_norm": ((2,), 3),
    "native_group_norm": ((1,), 2),
    "_fused_rms_norm": ((2,), None),
}


def identity_values(model: nn.Module, analysis: Analysis, block: str) -> Ends:
    """Returns parameters of a block, with the values at which each of its residual branches adds nothing.

    They are weight and bias of what is last on each branch: a linear layer or convolution, a norm, a scale of each
    channel. A norm that multiplies by `1 + weight` gets -1.

    Args:
        model: The model.
        analysis: Of this model.
        block: Dotted name of a submodule.

    Returns:
        Values by the name of the parameter within the block.

    Raises:
        NotApplicable: If the block cannot pass its input on; says why.
    """
    tape = analysis.tapes[0]
    parameters = {name for name, _ in model.named_parameters()}
    each = [_Walk(tape, call, parameters).ends() for call in tape.calls if call.module == block]
    if not each or any(ends != each[0] for ends in each):
        raise NotApplicable("it does something else each time it runs" if each else "no forward pass runs it")
    found = each[0]
    own = {f"{block}.{name}": name for name, _ in model.get_submodule(block).named_parameters()}
    outside = [name for name in found if name not in own]
    if outside:
        raise NotApplicable(f"'{outside[0]}', which ends one of its branches, lies elsewhere in the model")
    return {own[name]: value for name, value in found.items()}


class _Walk:
    """Goes back from the output of a module to its input, and from the ends of its branches to parameters."""

    def __init__(self, tape: Tape, call: ModuleCall, parameters: Set[str]) -> None:
        self._tape, self._call, self._parameters = tape, call, parameters
        self._writers: dict[int, list[int]] = defaultdict(list)  # a tensor that is changed in place has several
        for position in range(*call.ops):
            for value in tape.ops[position].outputs:
                if value is not None:
                    self._writers[id(value)].append(position)
        self._fault = "it does not add to its input"

    def ends(self) -> Ends:
        """Returns the parameters that end the branches, with their values.

        Raises:
            NotApplicable: If the output is not the input plus branches, or one of these ends in no parameter.
        """
        branches = self._stream(self._call.outputs[0], self._call.ops[1]) if self._call.outputs else None
        if not branches:
            raise NotApplicable(self._fault)
        found: Ends = {}
        for value, before in branches:
            ends = self._zero(value, before)
            if ends is None:
                op = self._maker(value, before)[0]
                where = self._tape.modules_of(op)[0] if op is not None else self._call.module
                raise NotApplicable(f"a branch of it ends in no layer with weights ('{where}')")
            found |= ends
        return found

    def _stream(self, value: Value, before: int, *, summed: bool = False) -> list[tuple[Value, int]] | None:
        """Returns what is added to the input on the way to a value; None where the value is not the input plus that."""
        op, position = self._maker(value, before)
        if op is None:
            inputs = self._call.inputs
            return [] if (value is inputs[0] if inputs else not value.source) else None
        name = _name(op)
        if name in _SUMS and len(op.tensors) == 2 and op.argument("alpha", 1) == 1:
            ways = [op.tensors] if name.startswith("sub") else [op.tensors, op.tensors[::-1]]
            for one, other in ways:
                found = self._stream(one, position, summed=True) if one.shape == value.shape else None
                if found is not None:
                    return [*found, (other, position)]
        elif (op.func.is_view or name in _SAME | _RECTIFIERS) and op.tensors:
            return self._stream(op.tensors[0], position, summed=summed)
        elif not summed:
            where = self._tape.modules_of(op)[0]
            what = "a norm, as in post-norm blocks" if "norm" in name or "norm" in where.lower() else f"'{name}'"
            self._fault = f"the sum with its input goes through {what} ('{where}'), which makes something else of x + 0"
        return None

    def _zero(  # noqa: PLR0911 - one for each kind of operation
        self, value: Value, before: int, target: float = 0.0
    ) -> Ends | None:
        """Returns which parameters to set to what for a value to be zero (or a number); None: unknown."""
        if value.source:
            return {value.source: target} if value.source in self._parameters else None
        op, position = self._maker(value, before)
        if op is None:
            return None
        name, tensors = _name(op), op.tensors
        if op.func.is_view or name in _SAME:
            return self._zero(tensors[0], position, target) if tensors else None
        if name in _SUMS and len(tensors) == 1 and isinstance(op.args[1], int | float):
            added = float(op.args[1]) if name.startswith("add") else -float(op.args[1])
            return self._zero(tensors[0], position, target - added) if self._fixed(tensors[0], position) else None
        if target:
            return None
        if name in _KEEPS_ZERO | _RECTIFIERS:
            return self._zero(tensors[0], position)
        if name in _SUMS or name in ("cat", "stack"):
            return self._all(tensors, position)
        if name in _PRODUCTS:
            return self._any(tensors, position)
        if name in _LAYERS:
            places, bias = _LAYERS[name]
            arguments = [
                op.args[place] if place < len(op.args) else None for place in (*places, bias) if place is not None
            ]
            factors, offsets = arguments[: len(places)], arguments[len(places) :]
            scaled = self._any([one for one in factors if isinstance(one, Value)], position)
            shifted = self._all([one for one in offsets if isinstance(one, Value)], position)
            return None if scaled is None or shifted is None else scaled | shifted
        return None

    def _all(self, values: list[Value], before: int) -> Ends | None:
        found: Ends = {}
        for value in values:
            ends = self._zero(value, before)
            if ends is None:
                return None
            found |= ends
        return found

    def _any(self, values: list[Value], before: int) -> Ends | None:
        """Of factors one is enough: a parameter first, then what a layer has made."""
        for value in sorted(values, key=lambda one: not self._fixed(one, before)):
            ends = self._zero(value, before)
            if ends is not None:
                return ends
        return None

    def _fixed(self, value: Value, before: int) -> bool:
        """Whether a value is made of parameters alone."""
        if value.source:
            return True
        op, position = self._maker(value, before)
        return op is not None and bool(op.tensors) and all(self._fixed(one, position) for one in op.tensors)

    def _maker(self, value: Value, before: int) -> tuple[Op | None, int]:
        """Returns what gave a value what it holds at a position, with its own; None for what came from outside."""
        position = next((at for at in reversed(self._writers[id(value)]) if at < before), None)
        return (None, -1) if position is None else (self._tape.ops[position], position)


def _name(op: Op) -> str:
    return op.name.rpartition(".")[2]
