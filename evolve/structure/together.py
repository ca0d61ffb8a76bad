"""Which groups can change at all, and which only together: the forward may take several sizes from one integer.

ConvBERT counts the heads of its attention and those of its convolutions by one `num_attention_heads`: either alone
cannot follow, both together can. Whether a group can is found by a run on fake tensors of other sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn

from evolve.errors import NotApplicable
from evolve.structure.analysis import Analysis
from evolve.structure.axes.groups import Group
from evolve.structure.dry_run import CannotFollow, rehearse


def together(model: nn.Module, analysis: Analysis, group: Group) -> list[Group]:
    """Returns the groups that have to change with a group, itself among them, in the order of the model.

    Raises:
        CannotFollow: If it cannot change, alone or with others of its size.
    """
    found = analysis.together.get(group.name)
    if found is None:
        found = analysis.together[group.name] = _tried(model, analysis, group)
    if isinstance(found, NotApplicable):
        raise found
    return [analysis.group(name) for name in found]


def that_follow(model: nn.Module, analysis: Analysis, groups: Sequence[Group]) -> list[Group]:
    """Leaves out groups that cannot change, and of those that change together all but the first.

    Layers that are alike are tried once.
    """
    verdicts: dict[object, bool] = {}
    kept: list[Group] = []
    with_others: set[str] = set()
    for group in groups:
        kind = (
            _alike(group.name),
            group.size,
            tuple((_alike(slot.name), slot.axis, slot.reads) for slot in group.slots),
        )
        if group.name in with_others:
            continue
        if verdicts.get(kind) is not True:
            try:
                all_of_them = together(model, analysis, group)
            except CannotFollow:
                continue
            with_others |= {other.name for other in all_of_them}
            verdicts[kind] = len(all_of_them) == 1
        kept.append(group)
    return kept


def _tried(model: nn.Module, analysis: Analysis, group: Group) -> list[str] | CannotFollow:
    if not analysis.asks_size:  # nothing could fail to follow
        return [group.name]
    try:
        rehearse(model, analysis, {group.axis: 2 * group.size})
    except CannotFollow as error:
        for others in _partners(analysis, group, error):
            wanted = [known for known in analysis.changeable if known is group or known in others]
            try:
                rehearse(model, analysis, {known.axis: 2 * known.size for known in wanted})
            except CannotFollow:
                continue
            return [known.name for known in wanted]
        return error
    return [group.name]


def _partners(analysis: Analysis, group: Group, error: CannotFollow) -> Iterator[list[Group]]:
    """Yields groups of the same size that lie where the size was missed, one at a time, then all of them."""
    inside = f"{error.module}." if error.module else ""
    alike = [
        other
        for other in analysis.changeable
        if other is not group and other.size == group.size and any(slot.name.startswith(inside) for slot in other.slots)
    ]
    yield from ([other] for other in alike)
    if len(alike) > 1:
        yield alike


def _alike(name: str) -> str:
    """A name without the numbers of layers."""
    return re.sub(r"\d+", "#", name)
