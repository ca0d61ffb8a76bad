"""The algebra of axes: what an axis of a tensor is made of, and which axes are one and the same.

An `Axis` is a plain run of positions, a product (several axes flattened into one, row-major) or a sum (several axes
concatenated). Axes that have to have the same size and order are unified (union-find); a plain axis that turns out to
be made of parts is bound to them, and all that referred to it sees the parts from then on.

What is known of an axis is marked on its plain parts: "fixed" (its size cannot change), "statistic" (a mean or variance
is taken over it) or "mixed" (its positions are combined in a way that no copy of a position leaves unchanged).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod

Splitter = Callable[["Axis", int], tuple["Axis", "Axis"]]


class MismatchError(Exception):
    """Two axes whose make-up cannot be brought together."""


class Axis:
    """An axis, or a part of one.

    Attributes:
        size: Positions.
        marks: Of a plain axis: what is known of it, with the reason.
    """

    __slots__ = ("_kind", "_parts", "marks", "size")

    def __init__(self, size: int, kind: str = "plain", parts: tuple[Axis, ...] = (), fixed: str = "") -> None:
        self.size = size
        self.marks: dict[str, str] = {"fixed": fixed} if fixed else {}
        self._kind = kind  # "plain", "same" (as the one part), "product" or "sum"
        self._parts = parts

    def resolved(self) -> Axis:
        """Returns the axis that stands for this one."""
        axis = self
        while axis._kind == "same":
            axis = axis._parts[0]
        step = self
        while step._kind == "same" and step is not axis:  # shorten the path for the next time
            step._parts, step = (axis,), step._parts[0]
        return axis

    @property
    def kind(self) -> str:
        """One of "plain", "product" and "sum"."""
        return self.resolved()._kind

    @property
    def parts(self) -> tuple[Axis, ...]:
        """Factors of a product, summands of a sum; all resolved, none of its own kind among them."""
        axis = self.resolved()
        if any(part.resolved() is not part or part._kind == axis._kind for part in axis._parts):
            axis._parts = tuple(_flat(axis._parts, axis._kind))
        return axis._parts

    def leaves(self) -> Iterator[Axis]:
        """Yields the plain axes it is made of, in order; one that occurs twice, twice."""
        axis = self.resolved()
        if axis._kind == "plain":
            yield axis
        else:
            for part in axis.parts:
                yield from part.leaves()

    def resized(self, sizes: Mapping[Axis, int]) -> int:
        """Returns its size if the given plain axes had other sizes."""
        axis = self.resolved()
        if axis._kind == "plain":
            return sizes.get(axis, axis.size)
        found = [part.resized(sizes) for part in axis.parts]
        return prod(found) if axis._kind == "product" else sum(found)

    def mark(self, kind: str, reason: str) -> None:
        """Notes something of all plain axes it is made of; the first reason stays."""
        axis = self.resolved()
        if axis._kind == "plain":
            axis.marks.setdefault(kind, reason)
            return
        if axis._kind == "sum" and kind == "statistic" and len(set(axis.parts)) > 1:
            # A copy of one summand changes the mean over all of them.
            kind, reason = "mixed", f"{reason}, together with other channels"
        for part in axis.parts:
            part.mark(kind, reason)

    def _bind(self, kind: str, parts: Sequence[Axis]) -> None:
        self._kind, self._parts = kind, tuple(parts)
        for mark, reason in self.marks.items():
            self.mark(mark, reason)


def _flat(parts: Iterable[Axis], kind: str) -> Iterator[Axis]:
    for part in parts:
        part = part.resolved()
        if part._kind == kind:
            yield from _flat(part._parts, kind)
        else:
            yield part


def product(parts: Sequence[Axis]) -> Axis:
    """Returns the axis into which the parts are flattened; parts of size 1 vanish."""
    kept = [part for part in _flat(parts, "product") if part.size != 1]
    if len(kept) == 1:
        return kept[0]
    return Axis(prod(part.size for part in kept), "product", tuple(kept)) if kept else Axis(1)


def total(parts: Sequence[Axis]) -> Axis:
    """Returns the concatenation of the parts."""
    kept = [part for part in _flat(parts, "sum") if part.size]
    if len(kept) == 1:
        return kept[0]
    return Axis(sum(part.size for part in kept), "sum", tuple(kept)) if kept else Axis(0)


def unify(one: Axis, other: Axis) -> None:
    """States that two axes are the same, position for position.

    Raises:
        MismatchError: If their sizes differ or their parts cannot be matched.
    """
    one, other = one.resolved(), other.resolved()
    if one is other:
        return
    if one.size != other.size:
        raise MismatchError(f"sizes {one.size} and {other.size}")
    if one._kind == "plain":
        one._bind("same", (other,))
    elif other._kind == "plain":
        other._bind("same", (one,))
    elif one._kind == other._kind == "product":
        _match(list(one.parts), list(other.parts), factors)
        other._bind("same", (one,))
    elif one._kind == other._kind:
        _match(list(one.parts), list(other.parts), cut)
        other._bind("same", (one,))
    else:
        parted, summed = (one, other) if one._kind == "product" else (other, one)
        _match_product_with_sum(parted, summed)


def _match(left: list[Axis], right: list[Axis], split: Splitter) -> None:
    """Unifies two lists of parts from the left; where one part is larger, it is split."""
    left.reverse()
    right.reverse()
    while left and right:
        a, b = left.pop().resolved(), right.pop().resolved()
        if a.size == b.size:
            unify(a, b)
        elif a.size > b.size:
            first, rest = split(a, b.size)
            unify(first, b)
            left.append(rest)
        else:
            first, rest = split(b, a.size)
            unify(first, a)
            right.append(rest)


def _match_product_with_sum(parted: Axis, summed: Axis) -> None:
    parts = summed.parts
    sizes = {part.size for part in parts}
    lead = parted.parts[0].resolved()
    if len(sizes) == 1 and lead._kind == "plain" and lead.size == len(parts):
        for part in parts[1:]:  # k equal parts one after the other are a product of k and one of them
            unify(parts[0], part)
        unify(product(parted.parts[1:]), parts[0])
        summed.resolved()._bind("same", (parted,))
        return
    rest = parted
    for part in parts[:-1]:
        first, rest = cut(rest, part.size)
        unify(first, part)
    unify(rest, parts[-1])


def cut(axis: Axis, size: int) -> tuple[Axis, Axis]:
    """Splits an axis into its first `size` positions and the rest.

    Raises:
        MismatchError: If the cut would go through a part of a product.
    """
    axis = axis.resolved()
    if not 0 < size < axis.size:
        raise MismatchError(f"a cut at {size} of {axis.size}")
    if axis._kind == "plain":
        parts = Axis(size), Axis(axis.size - size)
        axis._bind("sum", parts)
        return parts
    if axis._kind == "sum":
        before: list[Axis] = []
        rest = list(axis.parts)
        while rest and rest[0].size <= size:
            size -= rest[0].size
            before.append(rest.pop(0))
        if size:
            first, second = cut(rest.pop(0), size)
            before.append(first)
            rest.insert(0, second)
        return total(before), total(rest)
    lead, inner = axis.parts[0], axis.parts[1:]
    if size % prod(part.size for part in inner):
        raise MismatchError(f"a cut at {size} of {axis.size} made of {[part.size for part in axis.parts]}")
    first, second = cut(lead, size // prod(part.size for part in inner))
    return product((first, *inner)), product((second, *inner))


def factors(axis: Axis, size: int) -> tuple[Axis, Axis]:
    """Splits an axis into an outer factor of the given size and the rest.

    Raises:
        MismatchError: If its parts do not allow it.
    """
    axis = axis.resolved()
    if size <= 0 or axis.size % size:
        raise MismatchError(f"{axis.size} into {size} times something")
    if size in {1, axis.size}:
        return (Axis(1), axis) if size == 1 else (axis, Axis(1))
    if axis._kind == "plain":
        parts = Axis(size), Axis(axis.size // size)
        axis._bind("product", parts)
        return parts
    if axis._kind == "product":
        outer: list[Axis] = []
        rest = list(axis.parts)
        while size > 1:
            part = rest.pop(0)
            if size % part.size == 0:
                size //= part.size
                outer.append(part)
            else:
                first, second = factors(part, size)
                outer.append(first)
                rest.insert(0, second)
                size = 1
        return product(outer), product(rest)
    parts_ = axis.parts
    if len({part.size for part in parts_}) != 1:
        raise MismatchError(f"unequal parts {[part.size for part in parts_]} into {size} factors")
    for part in parts_[1:]:
        unify(parts_[0], part)
    count = Axis(len(parts_), fixed="the number of parts that are concatenated")
    axis.resolved()._bind("product", (count, parts_[0].resolved()))
    return factors(axis, size)


def reshape(axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
    """Returns the axes of a view with another shape.

    Raises:
        MismatchError: If the parts of the axes do not fall together with the new ones.
    """
    pending: list[Axis] = []
    for axis in reversed(axes):  # a plain axis goes through as the object it is: a weight's axis stays recognisable
        if axis.size != 1:
            pending.extend(reversed(axis.parts) if axis.kind == "product" else (axis,))
    found: list[Axis] = []
    for size in shape:
        taken: list[Axis] = []
        needed = size
        while needed > 1:
            if not pending:
                raise MismatchError(f"a view as {tuple(shape)}")
            part = pending.pop()
            if needed % part.size == 0:
                needed //= part.size
                taken.append(part)
            else:
                first, rest = factors(part, needed)
                taken.append(first)
                pending.append(rest)
                needed = 1
        found.append(taken[0] if len(taken) == 1 else product(taken))
    return found
