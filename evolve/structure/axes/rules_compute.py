"""Rules for operations that compute: pointwise, contractions, convolutions, norms, reductions, pooling."""

from __future__ import annotations

from collections.abc import Sequence

from evolve.structure.axes.algebra import Axis, MismatchError, cut, product, unify
from evolve.structure.axes.flow import Flow, dims_of, rule
from evolve.structure.tracing.tape import Op, Value

SPATIAL = "a spatial size"


@rule("pointwise", "clone", "_to_copy", "copy_", "contiguous", "detach", "alias", "lift_fresh", "lift_fresh_copy")
@rule("native_dropout", "dropout", "bernoulli", "bernoulli_", "zeros_like", "ones_like", "empty_like", "full_like")
@rule("rand_like", "randn_like", "fill", "fill_", "zero_", "uniform_", "normal_", "masked_fill", "masked_fill_")
@rule("where", "to", "_prelu_kernel", "rrelu_with_noise", "rrelu_with_noise_", "set_data", "resolve_conj", "copy")
@rule(
    "polar",
    "complex",
    "hardswish",
    "hardswish_",
    "hardsigmoid",
    "hardsigmoid_",
    "exponential_",
    "normal",
    "detach_",
    "random_",
)
def pointwise(flow: Flow, op: Op) -> None:
    """Each position for itself, with broadcasting from the right."""
    values = [value for value in op.tensors if value.shape]
    outs = [out for out in op.outputs if out is not None]
    if not outs:
        return
    rank = len(outs[0].shape)
    axes: list[Axis] = []
    for dim in range(-rank, 0):
        size, found = outs[0].shape[dim], None
        for value in values:
            if len(value.shape) < -dim:
                continue
            axis = flow.of(value)[dim]
            if axis.size != size:
                axis.mark("fixed", "it is broadcast")
            elif found is None or (size == 1 and "fixed" in found.resolved().marks):
                found = axis
            elif size > 1 or "fixed" not in axis.resolved().marks:  # a fixed one of size 1 would be broadcast
                unify(found, axis)
        axes.append(found or Axis(size))
    for out in outs:
        if out.shape == outs[0].shape:
            flow.give(out, axes)


@rule("mm", "_sparse_mm", "bmm", "dot", "vdot", "mv")
def _mm(flow: Flow, op: Op) -> None:
    one, two = op.args[:2]
    flow.give(op.outputs[0], _product(flow, one, two))


@rule("addmm", "addmm_", "_sparse_addmm", "baddbmm", "baddbmm_", "addmv", "addbmm")
def _addmm(flow: Flow, op: Op) -> None:
    if op.name == "aten.addbmm":
        raise MismatchError("a sum over a batch")
    bias, one, two = op.args[:3]
    axes = _product(flow, one, two)
    _broadcast(flow, bias, axes)
    flow.give(op.outputs[0], axes)


@rule("linear")
def _linear(flow: Flow, op: Op) -> None:
    value, weight = op.args[:2]
    *lead, features = flow.of(value)
    flow.contract(value, features, weight, flow.of(weight)[1])
    axes = [*lead, flow.of(weight)[0]]
    if len(op.args) > 2 and op.args[2] is not None:
        _broadcast(flow, op.args[2], axes)
    flow.give(op.outputs[0], axes)


def _product(flow: Flow, one: Value, two: Value) -> list[Axis]:
    left, right = flow.of(one), flow.of(two)
    batch = left[:-2] if len(left) > 2 else []
    for a, b in zip(batch, right, strict=False):
        unify(a, b)
    flow.contract(one, left[-1], two, right[-2 if len(right) > 1 else 0])
    return [*batch, *left[len(batch) : -1], *(right[-1:] if len(right) > 1 else [])]


def _broadcast(flow: Flow, value: Value, axes: Sequence[Axis]) -> None:
    own = flow.of(value)
    for axis, other in zip(reversed(own), reversed(axes), strict=False):
        if axis.size == other.size:
            unify(axis, other)
        else:
            axis.mark("fixed", "it is broadcast")


@rule("convolution", "_convolution")
def _convolution(flow: Flow, op: Op) -> None:
    value, weight, bias = op.args[:3]
    transposed, groups = op.args[6], op.args[8]
    axes, (first, second, *kernel), out = flow.of(value), flow.of(weight), op.outputs[0]
    assert out is not None
    batched = len(axes) == len(first_shape := weight.shape)
    channels = axes[1 if batched else 0]
    for axis in (*axes[2 if batched else 1 :], *kernel):
        axis.mark("fixed", SPATIAL)
    contracted, free = (first, second) if transposed else (second, first)
    if groups == 1:
        flow.contract(value, channels, weight, contracted)
        result = free
    else:
        # (groups x inputs of one group) are contracted within each group; the groups go through like a batch.
        group = Axis(groups)
        if transposed:
            inner = Axis(first_shape[0] // groups)
            unify(first, product([group, inner]))
            result = product([group, second])
        else:
            inner = second
            unify(first, product([group, Axis(first_shape[0] // groups)]))
            result = first
        unify(channels, product([group, inner]))
        if inner.size == 1:
            inner.mark("fixed", "each group has one input channel")
        else:
            flow.contract(value, inner, weight, inner)
        flow.literals[id(op)] = ("groups", group)
    if bias is not None:
        unify(flow.of(bias)[0], result)
    spatial = [Axis(size, fixed=SPATIAL) for size in out.shape[2 if batched else 1 :]]
    flow.give(out, [*axes[: 1 if batched else 0], result, *spatial])


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
@rule("_batch_norm_with_update", "_batch_norm_no_update", "miopen_batch_norm", "batch_norm")
@rule("_native_batch_norm_legit_functional")
def _batch_norm(flow: Flow, op: Op) -> None:
    value, *parameters = op.args[:5]
    axes = flow.of(value)
    for parameter in parameters:
        if isinstance(parameter, Value):
            unify(flow.of(parameter)[0], axes[1])
    flow.give(op.outputs[0], axes)
    for out in op.outputs[1:]:
        if out is not None and len(out.shape) == 1 and out.shape[0] == axes[1].size:
            flow.give(out, [axes[1]])


@rule("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm")
def _layer_norm(flow: Flow, op: Op) -> None:
    value = op.args[0]
    axes, count = flow.of(value), len(op.args[1])
    for axis in axes[-count:]:
        axis.mark("statistic", "a norm over it")
    for name in ("weight", "bias"):
        parameter = op.argument(name)
        if isinstance(parameter, Value):
            for own, axis in zip(flow.of(parameter), axes[-count:], strict=True):
                unify(own, axis)
    flow.give(op.outputs[0], axes)
    for statistic in op.outputs[1:]:
        if statistic is not None and len(statistic.shape) == len(axes):
            flow.give(statistic, [*axes[:-count], *(Axis(1, fixed="an axis of size 1") for _ in range(count))])


@rule("native_group_norm", "group_norm")
def _group_norm(flow: Flow, op: Op) -> None:
    value = op.args[0]
    axes = flow.of(value)
    groups = op.argument("group") or op.argument("num_groups")
    group, inner = Axis(groups), Axis(axes[1].size // groups)
    unify(axes[1], product([group, inner]))
    if inner.size > 1:
        inner.mark("statistic", "a group norm over it")
    for name in ("weight", "bias"):
        parameter = op.argument(name)
        if isinstance(parameter, Value):
            unify(flow.of(parameter)[0], axes[1])
    if groups > 1:
        flow.literals[id(op)] = ("group", group)
    flow.give(op.outputs[0], axes)
    for statistic in op.outputs[1:]:
        if statistic is not None:
            flow.give(statistic, [axes[0], group])


_REDUCTIONS = {
    "mean": "statistic",
    "var": "statistic",
    "std": "statistic",
    "var_mean": "statistic",
    "std_mean": "statistic",
}


@rule("mean", "sum", "var", "std", "var_mean", "std_mean", "amax", "amin", "max", "min", "argmax", "argmin", "prod")
@rule("linalg_vector_norm", "norm", "logsumexp", "any", "all", "median", "mode", "nansum", "aminmax", "count_nonzero")
def _reduction(flow: Flow, op: Op) -> None:
    if len(op.tensors) > 1:  # max(x, y) is pointwise
        pointwise(flow, op)
        return
    value = op.args[0]
    axes = flow.of(value)
    dims = dims_of(op, len(axes))
    name = op.name.removeprefix("aten.")
    kind, reason = _REDUCTIONS.get(name, "mixed"), f"a {name} over it"
    if ("var" in name or "std" in name) and op.argument("correction", op.argument("unbiased", True)) not in (0, False):
        kind, reason = "mixed", f"{reason}, divided by one less than the number of positions"
    for dim in dims:
        if axes:
            axes[dim].mark(kind, reason)
    keep = bool(op.argument("keepdim", False))
    kept = [
        Axis(1, fixed="an axis of size 1") if dim in dims else axis
        for dim, axis in enumerate(axes)
        if keep or dim not in dims
    ]
    for out in op.outputs:
        if out is not None and len(out.shape) == len(kept):
            flow.give(out, kept)


@rule("renorm")
def _renorm(flow: Flow, op: Op) -> None:
    """Scales slices along one axis down to the norm that they may have at most, such as the filters of a layer."""
    axes = flow.of(op.args[0])
    for dim, axis in enumerate(axes):
        if dim != op.args[2] % len(axes):
            axis.mark("mixed", "a renorm over it")
    flow.give(op.outputs[0], axes)


@rule("mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits")
def _loss(flow: Flow, op: Op) -> None:
    """Pointwise, and then a mean or a sum over everything."""
    axes = flow.of(op.args[0])
    for other in op.tensors[1:]:
        _broadcast(flow, other, axes)
    reduction = op.argument("reduction")
    if reduction == 0:
        flow.give(op.outputs[0], axes)
    for axis in axes if reduction else ():
        axis.mark("statistic" if reduction == 1 else "mixed", "a loss over it")


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "_masked_softmax")
def _softmax(flow: Flow, op: Op) -> None:
    axes = flow.of(op.args[0])
    if axes:
        axes[op.argument("dim") % len(axes)].mark("mixed", "a softmax over it")
    flow.give(op.outputs[0], axes)


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d", "avg_pool1d", "avg_pool2d", "avg_pool3d")
@rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", "max_pool2d")
@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
@rule("upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "mkldnn_max_pool2d")
@rule("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact2d", "grid_sampler_2d")
def _spatial(flow: Flow, op: Op) -> None:
    """Batch and channels go through, the sizes behind them are made anew."""
    axes = flow.of(op.args[0])
    lead = 2
    if any(name in op.name for name in ("pool",)):  # pooling takes samples without a batch axis too
        lead = len(axes) - next(n for n in (1, 2, 3) if f"{n}d" in op.name)
    for axis in axes[lead:]:
        axis.mark("fixed", SPATIAL)
    for out in op.outputs:
        if out is not None:
            flow.give(out, [*axes[:lead], *(Axis(size, fixed=SPATIAL) for size in out.shape[lead:])])


@rule("glu")
def _glu(flow: Flow, op: Op) -> None:
    axes = list(flow.of(op.args[0]))
    dim = op.argument("dim", -1) % len(axes)
    half, other = cut(axes[dim], axes[dim].size // 2)
    unify(half, other)
    axes[dim] = half
    flow.give(op.outputs[0], axes)


@rule("_weight_norm_interface")
def _weight_norm(flow: Flow, op: Op) -> None:
    direction, length = op.args[:2]
    dim = op.argument("dim", 0) % len(direction.shape)
    for position, axis in enumerate(flow.of(direction)):
        if position == dim:
            unify(axis, flow.of(length)[position])
        else:
            axis.mark("mixed", "the weights are normalised over it")
            flow.of(length)[position].mark("fixed", "one length for all of it")
    flow.give(op.outputs[0], flow.of(direction))
    flow.give(op.outputs[1], flow.of(length))
