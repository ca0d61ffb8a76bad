"""What a controller asks of the devices that a model is trained on; here of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from evolve.lineage import Lineage
from evolve.mutation.api import MutationResult
from evolve.policies import Policy


@dataclass(frozen=True)
class Round:
    """What was decided and done where a mutation was due.

    Attributes:
        answers: What became of each attempt.
        ahead: Steps that the model made as a child, where it took up what a child had learned.
    """

    answers: Sequence[MutationResult]
    ahead: int = 0


class Devices:
    """One device: what is decided is done, and there is nobody to agree with."""

    def decided(self, lineage: Lineage, policy: Policy, decide: Callable[[], Round]) -> Round:
        """Returns what `decide` attempts on the model, and what became of it.

        Args:
            lineage: Takes the records of the attempts.
            policy: Is asked in it.
            decide: Looks at candidates and attempts.
        """
        return decide()

    def carrying_out(self, lineage: Lineage) -> AbstractContextManager[Any]:
        """Returns the context in which a mutation is decided on and followed by all that goes with the model."""
        return nullcontext()

    def agreed(self, value: Any) -> Any:
        """Returns what holds on all devices, of what JSON knows."""
        return value

    def survives(self, error: Exception) -> bool:
        """Whether the training can go back to before a mutation after an error in a step."""
        return True

    def changing(self) -> None:
        """To be called before the model changes, by a mutation or as it goes back."""
