"""Mutations in the Trainer of transformers: `pip install transformers`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evolve.errors import EvolveError, missing_package
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.controller import MutationController
from evolve.evolver.loop import Loop, OutputLoss
from evolve.integrations.accelerate import unwrapped
from evolve.integrations.base_model import BaseModel
from evolve.integrations.driver import Driven, Driver, numbers
from evolve.integrations.folder import read_records, read_training, write_records, write_training
from evolve.integrations.pretrained import base_of, from_pretrained, save_pretrained
from evolve.surgery.optimizer import Optimizers, as_optimizers
from evolve.training.events import Callback

try:
    from transformers import PreTrainedModel, Trainer, TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise EvolveError(missing_package(f"'{__name__}'", "transformers", error)) from error

__all__ = ["EvolveCallback", "EvolvingTrainer", "from_pretrained", "save_pretrained"]

logger = logging.getLogger(__name__)


def loss_in(outputs: Any) -> Tensor:
    """Returns the loss that models of transformers give where a batch has labels."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
    if not isinstance(loss, Tensor):
        raise EvolveError("The model gives no loss. Pass EvolveCallback(loss=...), a function of its outputs.")
    return loss


class EvolveCallback(Driven, TrainerCallback):
    """Mutates a model while a Trainer trains it.

    A mutation is made before a step, when the optimizer has stepped, metrics are known and checkpoints are written.
    The first training batch becomes the probe batch. Checkpoints hold the records; an `EvolvingTrainer` resumes from
    them and loads the best model.

    Args:
        config: When, what and how far to mutate.
        monitor: A metric of the evaluation that schedules and policies know as `val_loss`, lower being better.
        loss: Makes a scalar of the model's outputs, for operators and policies that look at gradients.
        evaluate: Returns the held-out loss of the model; probation needs it.
        seed: Seed of everything that mutations draw.
        callbacks: Told of each mutation and each verdict; see `evolve.training.events`.

    Example:
        >>> callback = EvolveCallback(config)
        >>> EvolvingTrainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
        >>> callback.records
    """

    def __init__(
        self,
        config: EvolutionConfig,
        *,
        monitor: str | None = "eval_loss",
        loss: OutputLoss = loss_in,
        evaluate: Callable[[nn.Module], float] | None = None,
        seed: int = 0,
        callbacks: Iterable[Callback] = (),
    ) -> None:
        self.config, self.monitor, self.seed = config, monitor, seed
        self.base_config: Any = None
        self._loss, self._evaluate, self._callbacks = loss, evaluate, list(callbacks)
        self._base: BaseModel | None = None
        self._records = []
        self._loaded: dict[str, Any] = {}
        self._trainer_follows = False

    def follow(self, folder: str | Path, model: nn.Module, optimizer: Optimizers, resume: bool) -> None:
        """Gives the model the architecture of a checkpoint, before its weights are loaded.

        Args:
            folder: The checkpoint.
            model: The base model, or as it has become in the training.
            optimizer: What trains it.
            resume: Whether a training is to go on from there.

        Raises:
            CheckpointError: If the folder has no records, or they are damaged.
        """
        records, state = read_records(folder), read_training(folder) if resume else {}
        self._remember(model, optimizer).become(records, self.records)
        self._let_go()
        self._records, self._loaded = records, state

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Makes the controller, and takes up the state of a checkpoint.

        Raises:
            EvolveError: If several devices train the model, or the Trainer would load weights that do not fit.
        """
        if args.world_size > 1 or args.n_gpu > 1:
            raise EvolveError("evolve mutates models that are trained by one process on one device.")
        if state.is_hyper_param_search:
            raise EvolveError(
                "A search for hyperparameters trains many models with one callback: train them one by one."
            )
        if not self._trainer_follows and (args.load_best_model_at_end or state.global_step):
            raise EvolveError(
                "A Trainer of transformers loads weights before any callback is asked, and goes on without those that "
                "do not fit. For load_best_model_at_end and resume_from_checkpoint use "
                "evolve.integrations.huggingface.EvolvingTrainer."
            )
        model, optimizer, schedule = parts["model"], unwrapped(parts["optimizer"]), parts["lr_scheduler"]
        self._remember(model, optimizer)
        scaler = getattr(parts["optimizer"], "scaler", None)
        loop = Loop(
            model,
            optimizer,
            example_inputs=None,
            loss=self._loss,
            evaluate=self._evaluate,
            also=[schedule, *([scaler] if scaler is not None else [])],
            steps=state.max_steps if state.max_steps > 0 else None,
            seed=self.seed,
        )
        records, controller = self.records, MutationController(self.config, loop, callbacks=self._callbacks)
        controller.lineage.records[:] = records
        self._driver = Driver(controller, model)
        if self._loaded:
            self._driver.load_state(self._loaded)
            self._driver.end_epoch()  # where it was saved before the metrics of its epoch were known
            self._loaded = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Makes the mutation that is due."""
        if self._driver is not None:
            self._driver.before_batch()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Begins the care of new parameters in a step; gradients are clipped already."""
        if self._driver is not None:
            self._driver.before_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Counts a step.

        A Trainer tells its callbacks no loss. A loss that is NaN or infinite makes the weights so, and those are looked
        at.
        """
        if self._driver is None:
            return
        epoch_ends = float(state.epoch).is_integer()
        self._driver.after_step(0.0, epoch_ends)
        if epoch_ends and not (control.should_evaluate or args.eval_strategy == "epoch"):
            self._driver.end_epoch()
        if self.controller.stopped:
            control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Hands over what was measured in the middle or at the end of an epoch."""
        if self._driver is not None and self._driver.open:
            self._driver.measured(numbers(parts["metrics"], self.monitor))

    def on_save(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Adds the records, and what a training that is taken up needs, to a checkpoint."""
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if self._driver is None or not args.should_save:
            return
        if self.controller.testing:
            logger.warning("%s is written while a mutation is on probation: resumed from, it is kept.", folder)
        self.write_records(folder, parts["model"])
        write_training(folder, self._driver.state())

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Lets go of the model."""
        if self._driver is not None:
            self._driver.close()

    def write_records(self, folder: str | Path, model: nn.Module) -> None:
        """Writes what `from_pretrained` needs to a folder with the weights of a model."""
        base = base_of(type(model), self.base_config) if isinstance(model, PreTrainedModel) else {}
        write_records(folder, self.records, **base)

    def _remember(self, model: nn.Module, optimizer: Optimizers) -> BaseModel:
        """Returns the base model, remembered when it is first seen."""
        if self._base is None or self._base.model is not model:
            self._base, self._records = BaseModel(model, as_optimizers(optimizer)), []
            self._let_go()
            self.base_config = copy.deepcopy(getattr(model, "config", None))
        return self._base

    def _let_go(self) -> None:
        if self._driver is not None:
            self._driver.close()
            self._driver = None


class EvolvingTrainer(Trainer):
    """A Trainer that resumes from checkpoints of mutated models, and loads the best one.

    A callback cannot do that: weights are loaded before any callback is asked. Beside a Trainer of your own:
    `class Mine(EvolvingTrainer, Theirs)`.
    """

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Trains, as `transformers.Trainer.train` does."""
        for callback in self._evolving():
            callback._trainer_follows = True
        return super().train(*arguments, **options)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, and what `evolve.integrations.huggingface.from_pretrained` needs."""
        super().save_model(output_dir, _internal_call)
        folder, model = output_dir or self.args.output_dir, self._evolved()
        for callback in self._evolving():
            if self.args.should_save and folder and callback.base_config is not None:
                callback.write_records(folder, model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        for callback in self._evolving():
            optimizer = self.create_optimizer()  # over the base model: its parameters get the order of the saved state
            callback.follow(resume_from_checkpoint, self._evolved(), optimizer, resume=True)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        for callback in self._evolving():
            callback.follow(
                str(self.state.best_model_checkpoint), self._evolved(), self.create_optimizer(), resume=False
            )
        super()._load_best_model()

    def _evolved(self) -> nn.Module:
        assert self.model is not None  # a Trainer refuses to be made without one
        return self.model

    def _evolving(self) -> list[EvolveCallback]:
        found = [callback for callback in self.callback_handler.callbacks if isinstance(callback, EvolveCallback)]
        if len(found) > 1:
            raise EvolveError("A Trainer takes one EvolveCallback.")
        return found
