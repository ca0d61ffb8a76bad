"""A hash of a model's structure: equal for two models that compute the same function of weights of the same shapes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from evolve.structure.analysis import Analysis
from evolve.structure.tracing.tape import Op, Tape, Value

# Their first two arguments may change places; with `alpha`, an addition is no longer one of them.
_COMMUTATIVE = {"aten.add", "aten.mul", "aten.maximum", "aten.minimum", "aten.add_", "aten.mul_"}


def structure_key(structure: Analysis) -> str:
    """Returns the canonical hash of a structure, 32 hexadecimal digits.

    Each tensor of the recorded run is known by the operation that made it and by what that took (a Merkle tree), each
    parameter by its shape and by how often it is used. So names do not count, nor the order in which independent
    branches run, nor which of two addends comes first; what no output depends on does not count either.

    Args:
        structure: As `analyse` returned it; two are compared on inputs of the same shapes.
    """
    return _digest(_tape_key(tape) for tape in structure.tapes)[:32]


def _tape_key(tape: Tape) -> str:
    used = Counter(id(value) for op in tape.ops for value in op.tensors)
    known: dict[int, str] = {}
    for value in tape.parameters.values():
        known[id(value)] = _digest(("parameter", value.shape, value.dtype, used[id(value)]))
    for position, value in enumerate(tape.inputs):
        known[id(value)] = _digest(("input", position, value.shape[1:], value.dtype))
    for op in tape.ops:
        made = _op_key(op, known)
        for position, output in enumerate(op.outputs):
            if output is not None:
                known[id(output)] = _digest((made, position))
    return _digest((tape.training, *(_value_key(value, known) for value in tape.outputs)))


def _op_key(op: Op, known: dict[int, str]) -> str:
    args = [_argument(arg, known) for arg in op.args]
    if op.name in _COMMUTATIVE and len(args) >= 2 and not op.kwargs:
        args[:2] = sorted(args[:2])
    return _digest((op.name, *args, *sorted((name, _argument(arg, known)) for name, arg in op.kwargs.items())))


def _argument(arg: Any, known: dict[int, str]) -> str:
    if isinstance(arg, Value):
        return _value_key(arg, known)
    if isinstance(arg, list | tuple):
        return f"[{', '.join(_argument(item, known) for item in arg)}]"
    return repr(arg)


def _value_key(value: Value, known: dict[int, str]) -> str:
    """The hash of a tensor; a constant is known by its shape alone."""
    return known.get(id(value)) or _digest(("constant", value.shape, value.dtype))


def _digest(parts: Iterable[Any]) -> str:
    return hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()
