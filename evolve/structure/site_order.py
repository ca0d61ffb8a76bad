"""Along which axes of the tensors at a site the positions of a causal model lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from evolve.structure.causality import orders_of
from evolve.structure.disturbance import Disturber, Place, changes, marginal, moved
from evolve.structure.orders import Order
from evolve.structure.probe import Probe
from evolve.structure.sites import Site
from evolve.structure.tracing.calls import watched_calls

# Where each of the runs first differed, two for each place; None where the axis has nothing to do with the place.
Steps = tuple[int | None, ...]


@dataclass(frozen=True)
class AxisOrder:
    """How the axes of a tensor stand to the positions of the model's inputs.

    Axes that are named in neither set have no order: what lies along them sees the same positions.

    Attributes:
        ordered: For axes along which later positions lie behind earlier ones: where each run first differed.
        tangled: Axes along which they lie in another order.
    """

    ordered: dict[int, Steps] = field(default_factory=dict)
    tangled: frozenset[int] = frozenset()


@dataclass
class _Call:
    taken: Tensor | None = None
    given: Tensor | None = None


def order_at(model: nn.Module, site: Site, seen: Probe) -> tuple[AxisOrder, AxisOrder] | None:
    """Returns the order of what a site takes and gives; None where the model is not causal or the site not reached."""
    orders = orders_of(model, seen)
    if not orders:
        return None
    if "site_orders" not in seen.found:
        seen.found["site_orders"] = _all_sites(model, seen, orders)
    known: dict[str, tuple[AxisOrder, AxisOrder]] = seen.found["site_orders"]
    first, last = site.ends
    return (known[first][0], known[last][1]) if first in known and last in known else None


def _all_sites(model: nn.Module, seen: Probe, orders: Sequence[Order]) -> dict[str, tuple[AxisOrder, AxisOrder]]:
    assert seen.inputs is not None
    runs = Disturber(model, seen.inputs)
    with moved(model):
        base = _calls(model, runs)
        parts: dict[str, list[tuple[AxisOrder, AxisOrder]]] = {name: [] for name in base}
        for place in dict.fromkeys(order.place for order in orders):
            alive = _changes(base, _calls(model, runs, place, 0))
            cut = [_changes(base, _calls(model, runs, place, at)) for at in _inner_cuts(place.sizes(seen.inputs))]
            for name, found in parts.items():
                nested = len(place.axes) > 1
                one, other = (_axes_of(alive[name][end], [run[name][end] for run in cut], nested) for end in (0, 1))
                found.append((one, other))
    return {name: (_joined([one for one, _ in p]), _joined([other for _, other in p])) for name, p in parts.items()}


def _inner_cuts(sizes: tuple[int, ...]) -> list[int]:
    """Returns two positions away from the ends; of an image in different rows and columns."""
    found = [0, 0]
    for size in sizes:
        found = [known * size + min(size - 1, max(1, at * size // 3)) for known, at in zip(found, (1, 2), strict=True)]
    return list(dict.fromkeys(found))


def _calls(model: nn.Module, runs: Disturber, place: Place | None = None, start: int = 0) -> dict[str, _Call]:
    with _recorded(model) as calls:
        runs.run(place, start)
    return calls


@contextmanager
def _recorded(model: nn.Module) -> Iterator[dict[str, _Call]]:
    """Keeps what every submodule takes in its first call and gives in its last."""
    calls: dict[str, _Call] = {}
    names = {id(module): name for name, module in model.named_modules()}

    def noted(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = module._call_impl(*args, **kwargs)
        first = args[0] if args else next(iter(kwargs.values()), None)
        call = calls.setdefault(names[id(module)], _Call(first if isinstance(first, Tensor) else None))
        call.given = output if isinstance(output, Tensor) else None
        return output

    with watched_calls(model, noted):
        yield calls


def _changes(base: dict[str, _Call], other: dict[str, _Call]) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    found = {}
    for name, call in base.items():
        now = other.get(name, _Call())
        found[name] = (_differs(call.taken, now.taken), _differs(call.given, now.given))
    return found


def _differs(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if one is None or other is None or one.shape != other.shape else changes(one, other)


def _axes_of(alive: Tensor | None, cut: Sequence[Tensor | None], nested: bool) -> AxisOrder:
    """Returns the order of a tensor's axes.

    Args:
        alive: What changes where all positions are disturbed.
        cut: What changes where those from a position on are, for two positions.
        nested: Whether they are positions of an image: inside the first row that changes, columns have an order too.
    """
    known = [part for part in cut if part is not None]
    if alive is None or len(known) < len(cut) or not bool(alive.any()):
        return AxisOrder()
    ordered: dict[int, Steps] = {}
    tangled = set()
    for axis in range(alive.dim()):
        steps = [_step(marginal(alive, (axis,)), marginal(part, (axis,))) for part in known]
        if -1 in steps or (len(steps) > 1 and steps[0] == steps[1] and 0 < steps[0] < alive.shape[axis]):
            tangled.add(axis)
        elif any(0 < step < alive.shape[axis] for step in steps):
            ordered[axis] = _pair(steps)
    # A unit that is dead at late positions looks like the end of an axis; positions show it in each run.
    clear = {axis: steps for axis, steps in ordered.items() if all(step and step < alive.shape[axis] for step in steps)}
    ordered = clear or ordered
    if nested and ordered:
        ordered = _row_by_row(alive, known, ordered)
    return AxisOrder(ordered, frozenset() if ordered else frozenset(tangled))


def _row_by_row(alive: Tensor, cut: Sequence[Tensor], ordered: dict[int, Steps]) -> dict[int, Steps]:
    """Keeps the axis of the rows and adds that of the columns, which are ordered in the first row that changes."""
    row, steps_found = next(iter(ordered.items()))
    found = {row: steps_found}
    rows = [step for step in steps_found[: len(cut)] if step is not None and step < alive.shape[row]]
    for axis in range(alive.dim()) if len(rows) == len(cut) else ():
        if axis == row:
            continue
        ends = marginal(alive, (axis,))
        steps = [_step(ends, marginal(part.narrow(row, at, 1), (axis,))) for part, at in zip(cut, rows, strict=True)]
        if any(0 < step < alive.shape[axis] for step in steps) and -1 not in steps and steps[0] != steps[-1]:
            found[axis] = _pair(steps)
    return found


def _pair(steps: list[int]) -> Steps:
    return (*steps, *steps)[:2]  # of two positions there is one place to cut at


def _step(alive: Tensor, changed: Tensor) -> int:
    """Returns where changes begin that go on to the end, the size for none, -1 where they come and go."""
    at = alive.nonzero().flatten()
    seen = changed[at]
    if not bool(seen.any()):
        return len(alive)
    if bool(seen.all()):
        return 0
    first = int(seen.nonzero()[0])
    return int(at[first]) if bool(seen[first:].all()) else -1


def _joined(parts: Sequence[AxisOrder]) -> AxisOrder:
    """Puts together what was found for several places of the inputs."""
    ordered: dict[int, Steps] = {}
    for axis in {axis for part in parts for axis in part.ordered}:
        steps: list[int | None] = []
        for part in parts:
            steps += part.ordered.get(axis, (None, None))
        ordered[axis] = tuple(steps)
    tangled = frozenset(axis for part in parts for axis in part.tangled) - ordered.keys()
    return AxisOrder(ordered, tangled)
