"""The front door to a change: analyse, apply, carry the optimizer along, verify, commit or roll back."""

from evolve.mutation.api import MutationResult, create_operator, mutate, sites
from evolve.mutation.replaying import replay

__all__ = ["MutationResult", "create_operator", "mutate", "replay", "sites"]
