"""What a candidate would add, in the one form that every score looks at: units, and who would read them.

Wider layers and new blocks come down to the same: hidden units u(x; a) that are made from something the model computes
already, with input weights a, and read into something the model computes already, with weights that are zero at birth.
The slope of the loss with respect to those reading weights is the sum over places of u times the slope at the place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from evolve.errors import NotApplicable, UnknownNameError
from evolve.registry import Registry
from evolve.scores.activations import Evidence

UNITS = 8  # of each candidate are looked at; where it would add more, they stand for the others
ROWS = 16384  # places, of all samples together, at which new units and slopes are held against each other


@dataclass
class Reading:
    """A place where new units would be read, at some of its rows (a sample, or a position of one).

    Attributes:
        units: What the units give, (rows, units, taps); a reader with a kernel reads each of them at several taps.
        slopes: Gradient of the loss with respect to what is read into, (rows, outputs).
        present: What is read there already, (rows, features); None where nothing is known of it.
        samples: The sample of each row.
        stands_for: How many rows each of them stands for.
    """

    units: Tensor
    slopes: Tensor
    present: Tensor | None
    samples: Tensor
    stands_for: float


@dataclass
class Addition:
    """What a candidate would add.

    Attributes:
        readings: Gives what is read where, for units with these input weights; where it is told so, of every second
            sample alone and without what is present.
        directions: Input weights as they would be drawn, (units, values); None where what is read is there already.
        units: How many units would be added; as many directions stand for them.
        params: Parameters that would be added, about.
        flops: FLOPs of one sample's forward pass that would be added, about.
    """

    readings: Callable[[Tensor | None, bool], list[Reading]]
    directions: Tensor | None
    units: int
    params: int
    flops: int


Describe = Callable[[Evidence, str, dict[str, object]], Addition]
additions: Registry[Describe] = Registry("description of an addition", "evolve.additions")


def addition(evidence: Evidence, operator: str, site: str, options: dict[str, object]) -> Addition:
    """Returns what an operator would add at a site.

    Raises:
        NotApplicable: If nothing is known of what it adds, or the site does not show it.
    """
    try:
        describe = additions.get(operator)
    except UnknownNameError as error:
        raise NotApplicable(
            f"No score knows what '{operator}' adds; known are {', '.join(additions)}. Register a description of it in "
            "evolve.scores.additions."
        ) from error
    return describe(evidence, site, options)
