"""FLOPs of single operations: the one place where they are counted, on real tensors and on fake ones.

The convention: 2 for each multiply-accumulate of matrix products, convolutions, attention (all of it, masked or not)
and recurrent layers. Element-wise operations, norms, softmax, look-ups, sorting and Fourier transforms count nothing.
The formulas are those of `torch.utils.flop_counter`, and `_MORE` for kernels that it does not know: what counts must
not depend on the kernel that happens to run.

Most formulas want the shapes of an operation's arguments, and stand in a wrapper that finds those in any nesting, which
takes longer than all else that is noted of an operation. They are given shapes directly here. Those that want the
tensors themselves get them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from evolve.structure.tracing.tape import Op, Shape, Value

_WRAPPER = shape_wrapper(max).__code__


def flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Returns the FLOPs of an operation that has run; 0 where there is no formula for it."""
    formula = formula_of(func)
    if formula is None:
        return 0
    if not _wants_shapes(formula):
        return int(formula(*args, **kwargs, out_val=out))
    args, kwargs, shapes = _each(Tensor, lambda tensor: tensor.shape, (args, kwargs, out))
    return int(formula.__wrapped__(*args, **kwargs, out_shape=shapes))


def formula_of(func: Any) -> Any:
    """Returns the formula of an operation; None where it counts nothing."""
    packet = func._overloadpacket
    return flop_registry.get(packet) or _MORE.get(str(packet))


def hidden_parts(mode: TorchDispatchMode, func: Any, args: Any, kwargs: Any) -> Any:
    """Runs an operation by its parts where PyTorch would not show them to a mode, as in inference mode.

    Returns:
        What it gives, `NotImplemented` where it has no parts.
    """
    if not torch.is_inference_mode_enabled() or formula_of(func) is not None:
        return NotImplemented
    with mode:
        return func.decompose(*args, **kwargs)


def flops_if(op: Op, shape_of: Callable[[Value], Shape]) -> int:
    """Returns the FLOPs of a recorded operation that has a formula, if its tensors had other shapes."""
    formula = formula_of(op.func)
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


def _size(shape: Sequence[int]) -> int:
    return int(math.prod(shape))


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Queries by keys, then weights by values; fewer heads of keys and values are repeated for those of the queries."""
    return 2 * _size(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _mkldnn_rnn(x: Shape, weight: Shape, recurrent: Shape, *_: Any, **__: Any) -> int:
    """One direction of one layer of an LSTM."""
    return 2 * _size(x[:-1]) * (_size(weight) + _size(recurrent))


def _fused_rnn(x: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    """All layers of a recurrent network; biases are vectors."""
    return 2 * _size(x[:-1]) * sum(_size(shape) for shape in weights if len(shape) > 1)


def _product(one: Shape, other: Shape, *_: Any, **__: Any) -> int:
    """A matrix or vector by another, also in batches."""
    columns = other[-1] if len(other) > 1 else 1
    return 2 * _size(one) * columns


def _added_product(base: Shape, one: Shape, other: Shape, *_: Any, **__: Any) -> int:
    return _product(one, other)


def _transposed_product(one: Shape, other: Shape, *_: Any, **__: Any) -> int:
    return 2 * _size(one) * other[0]


def _trilinear(one: Shape, two: Shape, three: Shape, new1: Any, new2: Any, new3: Any, *_: Any, **__: Any) -> int:
    """Three factors that are broadcast and multiplied, as in `nn.Bilinear`."""
    shapes = []
    for shape, new in ((one, new1), (two, new2), (three, new3)):
        sizes = list(shape)
        for axis in sorted(new):
            sizes.insert(axis, 1)
        shapes.append(sizes)
    return 2 * _size(torch.broadcast_shapes(*shapes))


def _distances(one: Shape, other: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * _size(out_shape) * one[-1]


def _sequence_convolution(x: Shape, weight: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * _size(out_shape) * weight[0] * weight[1]


def _grouped_product(one: Shape, other: Shape, *_: Any, **__: Any) -> int:
    """Matrices of different heights one below the other, each by its own; or along what is summed over."""
    return 2 * _size(one) * other[-1]


def _fused_attention(query: Shape, key: Shape, value: Shape, *more: Any, **__: Any) -> int:
    """`nn.MultiheadAttention` in one kernel: all weights, then the attention."""
    weights = sum(_size(shape) for shape in (more[2], more[4]))
    return 2 * _size(query[:-1]) * (weights + 2 * key[-2] * query[-1])


def _fused_encoder_layer(x: Shape, *more: Any, **__: Any) -> int:
    """`nn.TransformerEncoderLayer` in one kernel."""
    weights = sum(_size(shape) for shape in more if isinstance(shape, Sequence) and len(shape) == 2)
    return 2 * _size(x[:-1]) * (weights + 2 * x[-2] * x[-1])


_MORE: dict[str, Callable[..., Any]] = {
    f"aten.{name}": shape_wrapper(formula)
    for formula, names in {
        _attention: (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_fused_attention_overrideable",
            "_scaled_dot_product_attention_math_for_mps",
        ),
        _fused_attention: ("_native_multi_head_attention",),
        _fused_encoder_layer: ("_transformer_encoder_layer_fwd",),
        _mkldnn_rnn: ("mkldnn_rnn_layer",),
        _fused_rnn: ("_cudnn_rnn", "miopen_rnn"),
        _product: ("mv", "dot", "vdot", "_int_mm"),
        _added_product: ("addmv", "addmv_", "addmm_", "addbmm", "addbmm_", "baddbmm_", "_addmm_activation"),
        _transposed_product: ("_weight_int8pack_mm",),
        _trilinear: ("_trilinear",),
        _distances: ("_cdist_forward",),
        _sequence_convolution: ("conv_tbc",),
        _grouped_product: ("_grouped_mm",),
    }.items()
    for name in names
}
