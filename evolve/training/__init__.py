"""Training and evaluating: a configuration, a typed state, and plain functions over it."""

from evolve.training.config import TrainingConfig
from evolve.training.fit import check_data
from evolve.training.passes import place
from evolve.training.state import TrainState, create_state, place_model
from evolve.training.step import StepResult, advance_schedule, evaluate, train_step

__all__ = [
    "StepResult",
    "TrainState",
    "TrainingConfig",
    "advance_schedule",
    "check_data",
    "create_state",
    "evaluate",
    "place",
    "place_model",
    "train_step",
]
