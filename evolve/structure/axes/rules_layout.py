"""Rules for operations that move, cut and join axes, and for those that make tensors from nothing."""

from __future__ import annotations

from math import prod

from evolve.structure.axes.algebra import Axis, MismatchError, cut, product, reshape, total, unify
from evolve.structure.axes.flow import Flow, dims_of, rule
from evolve.structure.tracing.tape import Op, Value


def _first(flow: Flow, op: Op) -> list[Axis]:
    value: Value = op.args[0] if op.args else op.tensors[0]
    return flow.of(value)


def _fixed_like(value: Value | None, dim: int, reason: str) -> Axis:
    assert value is not None
    return Axis(value.shape[dim], fixed=reason)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "pixel_shuffle", "pixel_unshuffle")
def _view(flow: Flow, op: Op) -> None:
    value, out = op.args[0], op.outputs[0]
    assert out is not None
    if "pixel" in op.name:
        _pixels(flow, op)
    elif 0 in value.shape or not isinstance(op.argument("size", ()), (list, tuple)):
        return
    else:
        flow.give(out, reshape(flow.of(value), out.shape))


def _pixels(flow: Flow, op: Op) -> None:
    """(..., C r r, H, W) to (..., C, H r, W r), or back."""
    *lead, channels, height, width = flow.of(op.args[0])
    out, factor = op.outputs[0], int(op.args[1])
    for axis in (height, width):
        axis.mark("fixed", "a spatial size")
    assert out is not None
    few, many = (out, channels) if "unshuffle" not in op.name else (op.args[0], None)
    count = few.shape[-3]
    if many is not None:
        kept, pixels = reshape([many], [count, factor * factor])
        pixels.mark("fixed", "the channels that become pixels")
        flow.give(out, [*lead, kept, *(_fixed_like(out, dim, "a spatial size") for dim in (-2, -1))])
    else:
        repeated = Axis(factor * factor, fixed="the pixels that become channels")
        grown = product([channels, repeated])
        flow.give(out, [*lead, grown, *(_fixed_like(out, dim, "a spatial size") for dim in (-2, -1))])


@rule("as_strided", "as_strided_", "resize_")
def _strided(flow: Flow, op: Op) -> None:
    """A new memory layout of the same shape says nothing; of another shape, it may mean anything."""
    value, out = op.args[0], op.outputs[0]
    if out is None or out.shape != value.shape:
        raise MismatchError("a view by strides")
    flow.give(out, flow.of(value))


@rule("permute")
def _permute(flow: Flow, op: Op) -> None:
    axes = _first(flow, op)
    flow.give(op.outputs[0], [axes[dim] for dim in op.args[1]])


@rule("transpose", "transpose_", "swapaxes")
def _transpose(flow: Flow, op: Op) -> None:
    axes = list(_first(flow, op))
    a, b = op.args[1] % len(axes) if axes else 0, op.args[2] % len(axes) if axes else 0
    if axes:
        axes[a], axes[b] = axes[b], axes[a]
    flow.give(op.outputs[0], axes)


@rule("t")
def _t(flow: Flow, op: Op) -> None:
    flow.give(op.outputs[0], list(reversed(_first(flow, op))))


@rule("unsqueeze", "unsqueeze_")
def _unsqueeze(flow: Flow, op: Op) -> None:
    axes = list(_first(flow, op))
    dim = op.args[1] % (len(axes) + 1)
    flow.give(op.outputs[0], [*axes[:dim], Axis(1, fixed="an axis of size 1"), *axes[dim:]])


@rule("squeeze", "squeeze_")
def _squeeze(flow: Flow, op: Op) -> None:
    value = op.args[0]
    dims = dims_of(op, len(value.shape)) if len(op.args) > 1 else range(len(value.shape))
    kept = [axis for dim, axis in enumerate(flow.of(value)) if not (dim in dims and value.shape[dim] == 1)]
    flow.give(op.outputs[0], kept)


@rule("expand")
def _expand(flow: Flow, op: Op) -> None:
    axes, out = _first(flow, op), op.outputs[0]
    assert out is not None
    missing = len(out.shape) - len(axes)
    found = [Axis(size) for size in out.shape[:missing]]
    for axis, size in zip(axes, out.shape[missing:], strict=True):
        found.append(axis if axis.size == size else Axis(size))
        if axis.size != size:
            axis.mark("fixed", "it is broadcast")
    flow.give(out, found)


@rule("repeat")
def _repeat(flow: Flow, op: Op) -> None:
    axes, counts = _first(flow, op), op.args[1]
    missing = len(counts) - len(axes)
    found = [Axis(count, fixed="a number of repetitions") for count in counts[:missing]]
    for axis, count in zip(axes, counts[missing:], strict=True):
        found.append(product([Axis(count, fixed="a number of repetitions"), axis]) if count > 1 else axis)
    flow.give(op.outputs[0], found)


@rule("repeat_interleave")
def _repeat_interleave(flow: Flow, op: Op) -> None:
    axes, out = list(_first(flow, op)), op.outputs[0]
    dim, count = op.argument("dim"), op.argument("repeats")
    if not isinstance(count, int) or dim is None or out is None:
        for axis in axes:
            axis.mark("fixed", "it is repeated by a tensor of counts")
        return
    axes[dim] = product([axes[dim], Axis(count)])
    flow.give(out, axes)


@rule("cat", "concatenate")
def _cat(flow: Flow, op: Op) -> None:
    values = [value for value in op.args[0] if value.shape != (0,)]
    dim = op.argument("dim", 0) % len(values[0].shape)
    lists = [flow.of(value) for value in values]
    axes = list(lists[0])
    for other in lists[1:]:
        for position, axis in enumerate(other):
            if position != dim:
                unify(axes[position], axis)
    axes[dim] = total([axes_[dim] for axes_ in lists])
    flow.give(op.outputs[0], axes)


@rule("stack")
def _stack(flow: Flow, op: Op) -> None:
    lists = [flow.of(value) for value in op.args[0]]
    for other in lists[1:]:
        for one, two in zip(lists[0], other, strict=True):
            unify(one, two)
    dim = op.argument("dim", 0) % (len(lists[0]) + 1)
    axes = list(lists[0])
    axes.insert(dim, Axis(len(lists), fixed="the number of tensors that are stacked"))
    flow.give(op.outputs[0], axes)


@rule("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "tensor_split")
def _split(flow: Flow, op: Op) -> None:
    axes = _first(flow, op)
    dim = op.argument("dim", 0) % len(axes)
    outs = [out for out in op.outputs if out is not None]
    parts, rest = [], axes[dim]
    for out in outs[:-1]:
        part, rest = cut(rest, out.shape[dim])
        parts.append(part)
    parts.append(rest)
    if "sizes" not in op.name and len({part.size for part in parts}) == 1:
        for part in parts[1:]:  # equal shares of the whole: they can only change together
            unify(parts[0], part)
    for out, part in zip(outs, parts, strict=True):
        flow.give(out, [*axes[:dim], part, *axes[dim + 1 :]])


@rule("unbind")
def _unbind(flow: Flow, op: Op) -> None:
    axes = _first(flow, op)
    dim = op.argument("dim", 0) % len(axes)
    axes[dim].mark("fixed", "its positions are told apart by index")
    for out in op.outputs:
        flow.give(out, [*axes[:dim], *axes[dim + 1 :]])


@rule("select")
def _select(flow: Flow, op: Op) -> None:
    axes = _first(flow, op)
    dim = op.args[1] % len(axes)
    axes[dim].mark("fixed", "its positions are told apart by index")
    flow.give(op.outputs[0], [*axes[:dim], *axes[dim + 1 :]])


@rule("slice", "narrow")
def _slice(flow: Flow, op: Op) -> None:
    axes, out = _first(flow, op), op.outputs[0]
    assert out is not None
    dim = op.argument("dim", 0) % len(axes)
    axis, size = axes[dim], out.shape[dim]
    start = op.argument("start", 0) or 0
    start = start + axis.size if start < 0 else min(start, axis.size)
    if size == axis.size:
        part = axis
    elif size == 0 or op.argument("step", 1) != 1 or all("fixed" in leaf.marks for leaf in axis.leaves()):
        axis.mark("fixed", "a part of it is cut out")
        part = Axis(size, fixed="a part cut out by index")
    else:
        part = axis
        if start:
            _, part = cut(part, start)
        if part.size > size:
            part, _ = cut(part, size)
    flow.give(out, [*axes[:dim], part, *axes[dim + 1 :]])


@rule("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
@rule("replication_pad1d", "replication_pad2d", "replication_pad3d")
def _pad(flow: Flow, op: Op) -> None:
    axes, pads = list(_first(flow, op)), op.args[1]
    for index in range(len(pads) // 2):
        dim, before, after = len(axes) - 1 - index, pads[2 * index], pads[2 * index + 1]
        if not (before or after):
            continue
        if op.name == "aten.constant_pad_nd" and before >= 0 and after >= 0:
            ends = [Axis(size, fixed="padding") for size in (before, after)]
            axes[dim] = total([ends[0], axes[dim], ends[1]])
        else:
            axes[dim].mark("fixed", "it is padded")
            axes[dim] = _fixed_like(op.outputs[0], dim, "it is padded")
    flow.give(op.outputs[0], axes)


@rule("flip", "roll", "cumsum", "cumprod", "sort", "argsort", "topk", "kthvalue", "tril", "triu", "diagonal")
@rule("cummax", "cummin", "logcumsumexp", "_fft_r2c", "_fft_c2r", "_fft_c2c", "tril_", "triu_")
def _ordered(flow: Flow, op: Op) -> None:
    """The order of the positions matters, or the neighbours: the axes at work cannot change."""
    axes = list(_first(flow, op))
    known = {argument.name for argument in op.func._schema.arguments}
    name = "dims" if "dims" in known else "dim"
    at_work = dims_of(op, len(axes), name) if name in known else range(len(axes))
    for dim in at_work:
        axes[dim].mark("fixed", f"{op.name} depends on the order of its positions")
    for out in op.outputs:
        if out is not None and len(out.shape) == len(axes):
            flow.give(
                out,
                [
                    axis if axis.size == size and dim not in at_work else Axis(size, fixed=f"made by {op.name}")
                    for dim, (axis, size) in enumerate(zip(axes, out.shape, strict=True))
                ],
            )


@rule("unfold")
def _unfold(flow: Flow, op: Op) -> None:
    """Windows along an axis: it becomes their number, and what lies in one comes last."""
    axes, out = list(_first(flow, op)), op.outputs[0]
    dim = op.args[1] % len(axes)
    axes[dim].mark("fixed", "windows slide along it")
    axes[dim] = _fixed_like(out, dim, "a number of windows")
    flow.give(out, [*axes, _fixed_like(out, -1, "the size of a window")])


@rule("im2col")
def _im2col(flow: Flow, op: Op) -> None:
    """(..., C, H, W) to (..., C x kernel, windows)."""
    *lead, channels, height, width = _first(flow, op)
    out, kernel = op.outputs[0], prod(op.args[1])
    for axis in (height, width):
        axis.mark("fixed", "a spatial size")
    taps = Axis(kernel, fixed="the size of a window")
    flow.give(out, [*lead, product([channels, taps]), _fixed_like(out, -1, "a number of windows")])


@rule("col2im")
def _col2im(flow: Flow, op: Op) -> None:
    """(..., C x kernel, windows) to (..., C, H, W)."""
    *lead, columns, windows = _first(flow, op)
    out, kernel = op.outputs[0], prod(op.args[2])
    windows.mark("fixed", "a number of windows")
    channels, taps = reshape([columns], [columns.size // kernel, kernel])
    taps.mark("fixed", "the size of a window")
    flow.give(out, [*lead, channels, *(_fixed_like(out, dim, "a spatial size") for dim in (-2, -1))])


@rule("view_as_real", "view_as_complex")
def _complex_pairs(flow: Flow, op: Op) -> None:
    """Real and imaginary parts are an axis of their own, or one number."""
    axes, out = _first(flow, op), op.outputs[0]
    if op.name.endswith("real"):
        flow.give(out, [*axes, _fixed_like(out, -1, "real and imaginary part")])
    else:
        axes[-1].mark("fixed", "real and imaginary part")
        flow.give(out, axes[:-1])


@rule("empty", "zeros", "ones", "full", "rand", "randn", "randint", "eye", "scalar_tensor", "empty_strided")
@rule("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided")
def _made(flow: Flow, op: Op) -> None:
    out = op.outputs[0]
    if out is not None:
        flow.give(out, [Axis(size) for size in out.shape])


@rule("arange", "linspace", "logspace", "randperm", "one_hot", "_local_scalar_dense", "equal", "is_nonzero")
@rule("nonzero", "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "item", "sym_size", "sym_numel")
def _counted(flow: Flow, op: Op) -> None:
    """Results whose positions are numbers: nothing is coupled, the new axes cannot change."""
