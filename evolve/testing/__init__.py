"""The contract that every mutation operator keeps, as a test that plugin authors run on their own."""

from evolve.testing.contract import check_on, check_operator, variants
from evolve.testing.zoo import ZOO, Subject

__all__ = ["ZOO", "Subject", "check_on", "check_operator", "variants"]
