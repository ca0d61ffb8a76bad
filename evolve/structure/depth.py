"""How deep in a model a place lies."""

from __future__ import annotations

from collections.abc import Mapping

from evolve.structure.analysis import Analysis
from evolve.structure.sites import STORE


def depths(structure: Analysis) -> dict[str, float]:
    """Returns, by name of each module that is called, how many are called before it over how many there are.

    Inserted blocks do not count and lie where the module before them does: no mutation moves what was there.
    """
    names = dict.fromkeys(call.module for call in structure.tapes[0].calls if call.module)
    inserted = {name for name in names if name.partition(".")[0] == STORE}
    found, before = {}, 0
    for name in names:
        found[name] = max(0, before - (name in inserted)) / (len(names) - len(inserted))
        before += name not in inserted
    return found


def depth_of(site: str, found: Mapping[str, float]) -> float | None:
    """Returns how deep a site lies, in [0, 1): 0 at the input; None where it is all of the model.

    Args:
        site: Its name; of a group that several layers make, the first counts.
        found: What `depths` returned.
    """
    parent, _, last = site.rpartition(".")
    return found.get(f"{parent}.{last.partition(':')[0]}".lstrip("."))
