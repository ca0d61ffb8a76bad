"""FLOPs of single operations (2 per multiply-accumulate), by the formulas of `torch.utils.flop_counter`.

Most formulas want the shapes of an operation's arguments, and stand in a wrapper that finds those in any nesting, which
takes longer than all else that is noted of an operation. They are given shapes directly here. Those that want the
tensors themselves get them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, shape_wrapper

from evolve.structure.tracing.tape import Op, Shape, Value

_WRAPPER = shape_wrapper(max).__code__


def flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Returns the FLOPs of an operation that has run; 0 where there is no formula for it."""
    formula = flop_registry.get(func._overloadpacket)
    if formula is None:
        return 0
    if not _wants_shapes(formula):
        return int(formula(*args, **kwargs, out_val=out))
    args, kwargs, shapes = _each(Tensor, lambda tensor: tensor.shape, (args, kwargs, out))
    return int(formula.__wrapped__(*args, **kwargs, out_shape=shapes))


def flops_if(op: Op, shape_of: Callable[[Value], Shape]) -> int:
    """Returns the FLOPs of a recorded operation that has a formula, if its tensors had other shapes."""
    formula = flop_registry[op.func._overloadpacket]
    returns = op.func._schema.returns
    alone = len(returns) == 1 and not isinstance(returns[0].type, torch.ListType)
    out = op.outputs[0] if alone else tuple(op.outputs)
    if not _wants_shapes(formula):

        def stand_in(value: Value) -> Tensor:
            return torch.empty(shape_of(value), dtype=value.dtype, device="meta")

        args, kwargs, out = _each(Value, stand_in, (op.args, op.kwargs, out))
        return int(formula(*args, **kwargs, out_val=out))
    args, kwargs, out = _each(Value, shape_of, (op.args, op.kwargs, out))
    return int(formula.__wrapped__(*args, **kwargs, out_shape=out))


def _wants_shapes(formula: Any) -> bool:
    return getattr(formula, "__code__", None) is _WRAPPER


def _each(kind: type, change: Callable[[Any], Any], values: Any) -> Any:
    """Returns nested arguments with what is of a kind changed."""
    if isinstance(values, kind):
        return change(values)
    if isinstance(values, (list, tuple)):
        return type(values)([_each(kind, change, item) for item in values])
    if isinstance(values, dict):
        return {key: _each(kind, change, value) for key, value in values.items()}
    return values
