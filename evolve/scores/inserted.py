"""What operators would add that set a block beside or behind a site: the hidden units of the block.

The block alone is built, by the operator's own `plan` and `apply`, at a stand-in for the site; the model is not
touched. Its last layer, which is zero at birth, is the reader; what that layer reads are the units.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from evolve.errors import NotApplicable
from evolve.operators import operators
from evolve.scores.activations import Evidence, Seen
from evolve.scores.candidate_units import ROWS, UNITS, Addition, Reading, additions
from evolve.scores.windows import CONVS, every_second, is_layer, pick, places_of, present_of, slopes_of, windows_of
from evolve.structure.probe import FlopCounter
from evolve.structure.sites import Site, resolve
from evolve.structure.tracing.tape import Shape
from evolve.surgery.attach import Link, links_at


class _StandIn(nn.Module):
    """Stands where the site would: of the same device and dtype."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("like", like.new_empty(0))

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x`."""
        return x


def inserted(name: str, evidence: Evidence, place: str, options: dict[str, Any]) -> Addition:
    """Returns what a block at a site would add.

    Args:
        name: The operator.
        evidence: Of the model as it stands.
        place: The site.
        options: The operator's.

    Raises:
        NotApplicable: If the operator declines, or the block has no last layer to look at.
    """
    site = resolve(evidence.model, place)
    first, last = (evidence.at(end) for end in site.ends)
    link, ratio = _built(name, evidence, site, options, last.given)
    taken = first.taken
    if getattr(link.block, "gate", None) is not None:
        return _gated(link, taken, last)
    layers, flops = _layers_called(link, taken, last.given)
    if not layers:
        raise NotApplicable(f"The block that '{name}' sets at '{place}' has no layer that reads hidden units.")
    (start, _, _), (end, hidden, written) = layers[0], layers[-1]
    reader, maker = link.block.get_submodule(end), link.block.get_submodule(start)
    written = (len(taken), *written[1:])
    at = pick(places_of(reader, written), ROWS)
    assert last.slope is not None
    fits = written == last.given.shape
    slopes = slopes_of(reader, last.slope if fits else _pooled(last.slope, written), at)
    present = _present(evidence, site, at) if fits else None
    stands_for = math.prod(places_of(reader, written)) / len(at)

    def readings(directions: Tensor | None, half: bool) -> list[Reading]:
        rows, near = every_second(at) if half else (slice(None), at)
        every = 2 if half else 1
        read = _read(link, start, end, directions, taken[::every], last.given[::every])
        units = windows_of(reader, read, near, hidden[1 if isinstance(reader, CONVS) else -1])
        return [Reading(units, slopes[rows], None if half else present, at[rows][:, 0], stands_for)]

    directions = None if start == end else maker.weight.detach().flatten(1).float()  # type: ignore[operator]
    params = sum(p.numel() for p in link.block.parameters())
    units = math.prod(hidden[1:2] if isinstance(reader, CONVS) else hidden[-1:])
    return Addition(readings, directions, round(units * ratio), round(params * ratio), round(flops * ratio))


def _built(name: str, evidence: Evidence, site: Site, options: dict[str, Any], given: Tensor) -> tuple[Link, float]:
    """Builds the block with few hidden units, and says how many times more it would have."""
    operator = operators.get(name)(**options)
    plan = operator.plan(evidence.model, site, evidence.probe)
    wanted = plan.get("hidden", 0)
    hidden = min(wanted, UNITS)
    root = nn.Module()
    root.add_module("site", _StandIn(given))
    stand = Site("site", root.get_submodule("site"))
    operator.apply(root, stand, {**plan, "hidden": hidden} if hidden else plan)
    (link,) = links_at(stand)
    link.block.train()
    return link, wanted / hidden if hidden else 1.0


def _gated(link: Link, taken: Tensor, last: Seen) -> Addition:
    """What a block behind a scalar gate would add: one unit, the block's output, read into the same place."""
    arguments = (taken, last.given) if link.parallel else (last.given,)
    counter = FlopCounter()
    with torch.no_grad(), counter:
        opened = functional_call(link.block, {"gate": torch.ones_like(link.block.gate)}, arguments)  # type: ignore[arg-type]
    assert last.slope is not None
    unit, slope = (opened - last.given).flatten(1).float(), last.slope.flatten(1).float()
    at = pick((len(unit), unit.shape[1]), 8 * ROWS)
    where = tuple(at.to(unit.device).unbind(1))
    reading = Reading(unit[where].view(-1, 1, 1), slope[where][:, None], None, at[:, 0], unit.numel() / len(at))
    params = sum(p.numel() for p in link.block.parameters())
    return Addition(lambda directions, half: [reading], None, 1, params, counter.total // len(taken))


def _layers_called(link: Link, taken: Tensor, given: Tensor) -> tuple[list[tuple[str, Shape, Shape]], int]:
    """Runs the block on two samples.

    Returns:
        The layers it calls, in order, with the shapes that each takes and gives, and the FLOPs of one sample.
    """
    found: list[tuple[str, Shape, Shape]] = []

    def note(key: str, module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        found.append((key, tuple(args[0].shape), tuple(out.shape)))

    layers = [(key, module) for key, module in link.block.named_modules() if is_layer(module)]
    handles = [module.register_forward_hook(partial(note, key)) for key, module in layers]
    counter = FlopCounter()
    with torch.no_grad(), counter:
        link(taken[:2], given[:2])
    for handle in handles:
        handle.remove()
    return found, counter.total // len(taken[:2])


def _read(link: Link, start: str, end: str, directions: Tensor | None, taken: Tensor, given: Tensor) -> Tensor:
    """Returns what the last layer reads, where the first one has these weights."""
    found: list[Tensor] = []
    handle = link.block.get_submodule(end).register_forward_hook(lambda module, args, out: found.append(args[0]))
    weight: Tensor = link.block.get_submodule(start).weight  # type: ignore[assignment]
    values = {} if directions is None else {f"{start}.weight": directions.view(weight.shape).to(weight.dtype)}
    functional_call(link.block, values, (taken, given) if link.parallel else (given,))
    handle.remove()
    return found[0]


def _pooled(slope: Tensor, written: Shape) -> Tensor:
    """The slope at what a block writes that is brought to the site's size by pooling afterwards."""
    if slope.dim() != len(written) or slope.shape[:2] != written[:2] or slope.dim() < 3:
        raise NotApplicable(f"The block writes {written} where the site gives {tuple(slope.shape)}.")
    share = math.prod(slope.shape[2:]) / math.prod(written[2:])
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[slope.dim()]
    return nn.functional.interpolate(slope, written[2:], mode=mode) * share


def _present(evidence: Evidence, site: Site, at: Tensor) -> Tensor | None:
    """What the layer at the site reads already; None where the site is no single layer."""
    name = site.ends[1]
    seen: Seen = evidence.at(name)
    layer = evidence.model.get_submodule(name)
    if not is_layer(layer):
        return None
    return present_of(layer, seen.taken, at)


for _name in ("deepen", "branch", "residual", "attention"):
    additions.register(_name)(partial(inserted, _name))
