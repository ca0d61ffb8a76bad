"""Training and evaluating: a configuration, a typed state, and plain functions over it."""

from evolve.training.config import TrainingConfig
from evolve.training.fit import check_data, check_fit
from evolve.training.losses import Loss, LossConfig
from evolve.training.state import TrainState, create_state, place_model
from evolve.training.step import Batch, StepResult, advance_schedule, evaluate, to_device, train_step

__all__ = [
    "Batch",
    "Loss",
    "LossConfig",
    "StepResult",
    "TrainState",
    "TrainingConfig",
    "advance_schedule",
    "check_data",
    "check_fit",
    "create_state",
    "evaluate",
    "place_model",
    "to_device",
    "train_step",
]
