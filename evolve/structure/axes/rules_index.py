"""Rules for operations that tell the positions of an axis apart by index: that axis stays, the others go through."""

from __future__ import annotations

import torch

from evolve.structure.axes.algebra import Axis, unify
from evolve.structure.axes.flow import Flow, rule
from evolve.structure.tracing.tape import Op

TOLD_APART = "its positions are told apart by index"


@rule("index")
def _index(flow: Flow, op: Op) -> None:
    axes, out, indices = flow.of(op.args[0]), op.outputs[0], op.args[1]
    assert out is not None
    taken = [dim for dim, index in enumerate(indices) if index is not None]
    for dim in taken:
        axes[dim].mark("fixed", TOLD_APART)
    rank = max(len(indices[dim].shape) for dim in taken)
    if any(indices[dim].dtype in {torch.bool, torch.uint8} for dim in taken):
        return
    together = taken == list(range(taken[0], taken[-1] + 1))
    at = taken[0] if together else 0
    kept = [axis for dim, axis in enumerate(axes) if dim not in taken]
    fresh = [Axis(size, fixed="an axis of an index") for size in out.shape[at : at + rank]]
    flow.give(out, [*kept[:at], *fresh, *kept[at:]])


@rule("index_select")
def _index_select(flow: Flow, op: Op) -> None:
    axes, out = list(flow.of(op.args[0])), op.outputs[0]
    assert out is not None
    dim = op.args[1] % len(axes)
    axes[dim].mark("fixed", TOLD_APART)
    axes[dim] = Axis(out.shape[dim], fixed="an axis of an index")
    flow.give(out, axes)


@rule("embedding")
def _embedding(flow: Flow, op: Op) -> None:
    weight, index = op.args[:2]
    flow.of(weight)[0].mark("fixed", TOLD_APART)
    flow.give(op.outputs[0], [*flow.of(index), *flow.of(weight)[1:]])


@rule("_embedding_bag", "_embedding_bag_forward_only", "embedding_bag")
def _embedding_bag(flow: Flow, op: Op) -> None:
    """Sums, means or maxima over the embeddings of each bag."""
    rows, width = flow.of(op.args[0])
    rows.mark("fixed", TOLD_APART)
    out = op.outputs[0]
    assert out is not None
    flow.give(out, [Axis(out.shape[0], fixed="a number of bags"), width])


@rule("gather", "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_")
def _along(flow: Flow, op: Op) -> None:
    """One axis is read or written by index; the others of the tensor, of what is written and of the index are one."""
    value, dim, index = op.args[0], op.args[1] % max(len(op.args[0].shape), 1), op.args[2]
    axes = flow.of(value)
    for other in op.tensors[1:]:
        if len(other.shape) != len(axes):  # `index_add` takes an index for one axis alone
            continue
        for position, (axis, own) in enumerate(zip(flow.of(other), axes, strict=True)):
            if position == dim:
                axis.mark("fixed", TOLD_APART)
            elif axis.size == own.size:
                unify(axis, own)
            else:
                axis.mark("fixed", "a part of it is taken by index")
                own.mark("fixed", "a part of it is taken by index")
    if axes:
        axes[dim].mark("fixed", TOLD_APART)
    flow.give(op.outputs[0], flow.of(index) if op.name == "aten.gather" else axes)
