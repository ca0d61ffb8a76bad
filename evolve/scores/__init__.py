"""Scores: what a mutation promises, from one or a few batches, without building the mutant.

`collect` runs the model once, `addition` says what a candidate would add, a `Score` values it. Importing this package
files the built-in ones.
"""

from evolve.scores.activations import Evidence, collect
from evolve.scores.base import Score, scores
from evolve.scores.candidate_units import Addition, addition, additions
from evolve.scores.gradmax import GradMax
from evolve.scores.inserted import inserted
from evolve.scores.senn import SENN
from evolve.scores.sensli import SensLI
from evolve.scores.tiny import Tiny
from evolve.scores.widened import widened

__all__ = [
    "SENN",
    "Addition",
    "Evidence",
    "GradMax",
    "Score",
    "SensLI",
    "Tiny",
    "addition",
    "additions",
    "collect",
    "inserted",
    "scores",
    "widened",
]
