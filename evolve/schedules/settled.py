"""A schedule that waits until it is clear what pruning would take out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from evolve.errors import EvolveError
from evolve.registry import TypedOptions
from evolve.schedules.base import Clock, Schedule, schedules

Part = Annotated[float, Field(ge=0, le=1)]
Leaving = Mapping[str, Sequence[int]]


@schedules.register("settled")
class Settled(Schedule):
    """When what `narrow` would take out has been nearly the same for some looks.

    At each look the mutation by `narrow`, as it is configured, is planned and not made. Two looks are compared by the
    members that would go at both, over those that would go at either. Early in training this changes from look to
    look; once it does no more, waiting brings nothing, and all that is trained of those members is lost. After
    one-cycle pruning (OCSPruner, WACV 2026).
    """

    needs_operator = "narrow"

    class Options(TypedOptions):
        """`epochs` or `steps` between looks, the overlap and how often in a row, from when and until when, how often.

        `start` and `latest` are parts of the budget. At `latest` a mutation is due whether it has settled or not.
        """

        epochs: PositiveInt | None = None
        steps: PositiveInt | None = None
        overlap: Annotated[float, Field(gt=0, le=1)] = 0.95
        looks: PositiveInt = 3
        start: Part = 0.1
        latest: Part | None = None
        times: PositiveInt = 1

        @model_validator(mode="after")
        def _possible(self) -> Self:
            if self.epochs is not None and self.steps is not None:
                raise ValueError("give either 'epochs' or 'steps'")
            if self.latest is not None and self.latest <= self.start:
                raise ValueError(f"latest ({self.latest:g}) does not lie behind start ({self.start:g})")
            return self

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.at_epoch_ends = self.options.steps is None
        self._made = 0
        self._begin()

    def _begin(self) -> None:
        self._last: dict[str, list[int]] | None = None
        self._calm = 0  # looks in a row at which nearly the same would have gone as at the one before

    @property
    def needs_progress(self) -> bool:
        """Whether it asks how much of the budget is spent."""
        return self.options.start > 0 or self.options.latest is not None

    def due(self, clock: Clock) -> str | None:
        """Returns the reason when what would go has settled, or has had its time."""
        options = self.options
        if self._made >= options.times or clock.progress < options.start:
            return None
        if options.latest is not None and clock.progress >= options.latest:
            return self._due(f"{clock.progress:.3g} of the budget is spent, and what narrow would take out changes yet")
        if not self._looks(clock):
            return None
        if clock.leaving is None:
            raise EvolveError("The schedule 'settled' looks at what narrow would take out, and nobody tells it.")
        before, self._last = self._last, {name: list(gone) for name, gone in clock.leaving().items()}
        overlap = _overlap(before, self._last)
        self._calm = self._calm + 1 if overlap >= options.overlap else 0
        if self._calm < options.looks:
            return None
        return self._due(f"what narrow would take out has settled: {overlap:.1%} the same, {self._calm} looks in a row")

    def _due(self, reason: str) -> str:
        self._made += 1
        self._begin()
        return reason

    def _looks(self, clock: Clock) -> bool:
        if self.options.steps is not None:
            return bool(clock.step % self.options.steps == 0)
        return bool(clock.epoch_end and clock.epoch % (self.options.epochs or 1) == 0)

    def state(self) -> dict[str, Any]:
        """Returns what would have gone at the last look, and the counts."""
        return {"last": self._last, "calm": self._calm, "made": self._made}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned."""
        self._last, self._calm, self._made = state["last"], state["calm"], state["made"]


def _overlap(one: Leaving | None, other: Leaving) -> float:
    """Returns the members in both over those in either (Jaccard); 0 where there are none."""
    first, second = (
        {(name, position) for name, gone in (leaving or {}).items() for position in gone} for leaving in (one, other)
    )
    return len(first & second) / len(first | second) if first and second else 0.0
