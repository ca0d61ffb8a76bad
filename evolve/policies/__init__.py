"""Which operator is tried, and where. Importing this package files the built-in policies."""

from evolve.policies.bandit import Bandit
from evolve.policies.base import Candidate, Choice, Policy, PolicyConfig, PolicyContext, Promise, Race, Racer, policies
from evolve.policies.forecast import Forecast
from evolve.policies.gradient import Gradient
from evolve.policies.hill_climb import HillClimb
from evolve.policies.plain import Fixed, Random, RoundRobin

__all__ = [
    "Bandit",
    "Candidate",
    "Choice",
    "Fixed",
    "Forecast",
    "Gradient",
    "HillClimb",
    "Policy",
    "PolicyConfig",
    "PolicyContext",
    "Promise",
    "Race",
    "Racer",
    "Random",
    "RoundRobin",
    "policies",
]
