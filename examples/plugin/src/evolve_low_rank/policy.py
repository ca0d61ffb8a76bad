"""The policy `least_touched`: mutations spread over the model."""

from collections import Counter
from collections.abc import Sequence

from evolve.policies import Candidate, Choice, Policy, PolicyContext, policies


@policies.register("least_touched")
class LeastTouched(Policy):
    """The site that was changed the fewest times; among equals the first."""

    def choose(self, candidates: Sequence[Candidate], context: PolicyContext) -> Choice | None:
        """Counts what was applied at each site. It keeps no state, as the records say it all."""
        touched = Counter(record.site for record in context.records if record.status == "applied")
        left = [candidate for candidate in candidates if candidate not in context.tried]
        best = min(left, key=lambda candidate: touched[candidate.site], default=None)
        return None if best is None else Choice(best, by="mutations here so far", value=float(touched[best.site]))
