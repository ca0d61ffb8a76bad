"""Mutations in the training loop of Lightning: `pip install lightning`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evolve.errors import CheckpointError, EvolveError, missing_package
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.controller import MutationController
from evolve.evolver.loop import Loop, OutputLoss
from evolve.integrations.base_model import BaseModel, read, written
from evolve.integrations.driver import Driven, Driver, numbers
from evolve.lineage import Record
from evolve.runtime.generators import random_state, set_random_state
from evolve.surgery.optimizer_names import load_optimizer_by_name, optimizer_by_name
from evolve.training.events import Callback

try:
    import lightning.pytorch as pl
except ImportError as error:
    raise EvolveError(missing_package(f"'{__name__}'", "lightning", error)) from error

logger = logging.getLogger(__name__)

_KEY = "evolve"  # of a Lightning checkpoint


class EvolveCallback(Driven, pl.Callback):
    """Mutates a part of a LightningModule while Lightning trains it.

    A mutation is made between two batches, when the optimizer has stepped, the metrics of an epoch are known and
    checkpoints are written. The first training batch becomes the probe batch. Checkpoints hold the records, also those
    of weights alone; whatever Lightning loads with `ckpt_path` (`fit`, `validate`, `test`, `predict`), the part takes
    the architecture of that checkpoint before the weights are loaded. A run that is taken up goes on as one that was
    not stopped, with the same random numbers; the order of shuffled batches within an epoch is Lightning's business.

    Args:
        config: When, what and how far to mutate.
        part: Dotted name of the submodule that is mutated; the training step has to call it.
        monitor: A logged metric that schedules and policies know as `val_loss`, lower being better.
        loss: Makes a scalar of the part's outputs, for operators and policies that look at gradients.
        evaluate: Returns the held-out loss of the part; probation needs it.
        seed: Seed of everything that mutations draw.
        callbacks: Told of each mutation and each verdict; see `evolve.training.events`.

    Example:
        >>> callback = EvolveCallback(config, part="model", monitor="val_loss")
        >>> lightning.Trainer(max_epochs=10, callbacks=[callback]).fit(module, loader)
        >>> callback.records
    """

    def __init__(
        self,
        config: EvolutionConfig,
        *,
        part: str = "model",
        monitor: str | None = "val_loss",
        loss: OutputLoss | None = None,
        evaluate: Callable[[nn.Module], float] | None = None,
        seed: int = 0,
        callbacks: Iterable[Callback] = (),
    ) -> None:
        self.config, self.part, self.monitor, self.seed = config, part, monitor, seed
        self._loss, self._evaluate, self._callbacks = loss, evaluate, list(callbacks)
        self._base: BaseModel | None = None
        self._records = []
        self._loaded: Mapping[str, Any] = {}
        self._stepped = False  # the optimizer, in the batch that is going on
        self._epoch_over = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remembers the base model, and gets between the module and its checkpoints.

        Lightning calls a callback's own hook for loading when the weights are loaded already. The module's hook
        comes right before, and the one for saving is called for checkpoints of weights alone, too.

        Raises:
            EvolveError: If the model is trained by several processes, has no such part, or another callback mutates it.
        """
        callbacks: list[pl.Callback] = vars(trainer)["callbacks"]
        if sum(isinstance(callback, EvolveCallback) for callback in callbacks) > 1:
            raise EvolveError("A Trainer takes one EvolveCallback. Give it a part that holds all that is to change.")
        if trainer.world_size > 1:
            raise EvolveError("evolve mutates models that are trained by one process. Use Trainer(devices=1).")
        model = part_of(pl_module, self.part)
        if self._base is None or self._base.model is not model:
            self._base, self._driver, self._records = BaseModel(model), None, []
        self._loaded = {}
        saving, loading = pl_module.on_save_checkpoint, pl_module.on_load_checkpoint

        def on_save_checkpoint(checkpoint: dict[str, Any]) -> None:
            saving(checkpoint)
            checkpoint[_KEY] = self._saved(trainer, pl_module)

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            self._follow(checkpoint)
            loading(checkpoint)

        vars(pl_module).update(on_save_checkpoint=on_save_checkpoint, on_load_checkpoint=on_load_checkpoint)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lets go of the module."""
        for name in ("on_save_checkpoint", "on_load_checkpoint"):
            vars(pl_module).pop(name, None)
        if self._driver is not None:
            self._driver.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Lets go of the module."""
        self.teardown(trainer, pl_module, "")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Brings the parameters of the optimizers into the order in which their state was saved.

        Lightning builds the optimizers over the mutated model, in which new parameters stand beside old ones; in the
        run that was saved they had joined at the end. State is loaded by position. Random numbers are put back here,
        as Lightning is about to draw the order of the batches.
        """
        if "driver" in self._loaded:
            load_optimizer_by_name(pl_module, trainer.optimizers, self._loaded["optimizers"])
            set_random_state(self._loaded["random"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes the controller, and takes up the state of a checkpoint."""
        model, steps = part_of(pl_module, self.part), trainer.estimated_stepping_batches
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        loop = Loop(
            model,
            trainer.optimizers,
            example_inputs=None,
            loss=self._loss,
            evaluate=self._evaluate,
            also=[*schedules, *([scaler] if scaler is not None else [])],
            steps=int(steps) if math.isfinite(steps) and steps > 0 else None,
            seed=self.seed,
        )
        records, controller = self.records, MutationController(self.config, loop, callbacks=self._callbacks)
        controller.lineage.records[:] = records
        self._driver = Driver(controller, model)
        if "driver" in self._loaded:
            self._driver.load_state(self._loaded["driver"])
            if self._loaded["within_epoch"]:
                set_random_state(self._loaded["random"])  # the order of the batches was drawn before
        self._loaded = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Makes the mutation that is due."""
        self._epoch_over = False
        if self.controller.due and pl_module.automatic_optimization:
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()  # as Lightning is about to do; a run that is taken up here has no gradients
        self._driving.before_batch()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Begins the care of new parameters in a step; the gradients are clipped after it."""
        self._stepped = True
        self._driving.before_step()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts a batch after which the optimizer has stepped."""
        if self._stepped:
            self._stepped = False
            self._driving.after_step(_loss_in(outputs), trainer.is_last_batch)
        if trainer.should_stop or self.controller.stopped:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hands over what was measured in the middle or at the end of an epoch."""
        if self._driver is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._driver.measured(numbers(trainer.callback_metrics, self.monitor))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends an epoch that was not validated."""
        self._driving.end_epoch()
        self._epoch_over = True

    @property
    def _driving(self) -> Driver:
        assert self._driver is not None  # Lightning calls `on_train_start` first
        return self._driver

    def _saved(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
        """Returns what a checkpoint holds of evolve."""
        saved: dict[str, Any] = {"part": self.part, "records": written(self.records)}
        if self._driver is not None and trainer.state.fn == "fit":
            by_name = optimizer_by_name(module, trainer.optimizers)
            saved["optimizers"] = {"optimizers": [_without_state(each) for each in by_name["optimizers"]]}
            saved["driver"] = self._driver.state()
            saved["random"], saved["within_epoch"] = random_state(), not self._epoch_over
            if self._driver.controller.testing:
                logger.warning(
                    "A checkpoint is written while a mutation is on probation: resumed from, the mutation is kept."
                )
        return saved

    def _follow(self, checkpoint: Mapping[str, Any]) -> None:
        """Gives the part the architecture of a checkpoint whose weights are about to be loaded."""
        assert self._base is not None  # `setup` comes first
        records = saved_records(checkpoint, self.part)
        self._base.become(records, self.records, tensors_of(checkpoint, self.part))
        if self._driver is not None:
            self._driver.close()
        self._driver, self._records, self._loaded = None, records, checkpoint[_KEY]


def load_checkpoint(path: str | Path, module: pl.LightningModule, part: str = "model") -> list[Record]:
    """Loads the weights of any checkpoint into a module as it was built, in place.

    Exactly the mutations that had been made when the checkpoint was written are made again: the best model may be from
    before one. No code in the file is run.

    Args:
        path: Of a Lightning checkpoint that was written with an `EvolveCallback`.
        module: With the base model.
        part: The submodule that was mutated.

    Returns:
        The records of the checkpoint.

    Raises:
        CheckpointError: If the file is of another kind, or does not fit.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is damaged or holds other objects
        raise CheckpointError(
            f"'{path}' is no checkpoint that can be read without running code of it: {error} Save hyperparameters as "
            "plain values."
        ) from error
    records = saved_records(checkpoint, part)
    BaseModel(part_of(module, part)).become(records, [], tensors_of(checkpoint, part))
    module.load_state_dict(checkpoint["state_dict"])
    return records


def saved_records(checkpoint: Mapping[str, Any], part: str) -> list[Record]:
    """Returns the records in a Lightning checkpoint.

    Raises:
        CheckpointError: If it has none, or they are of another part.
    """
    saved = checkpoint.get(_KEY)
    if not isinstance(saved, Mapping) or not {"part", "records"} <= set(saved):
        raise CheckpointError("The checkpoint was written without an EvolveCallback: it does not say what was mutated.")
    if saved["part"] != part:
        raise CheckpointError(f"The checkpoint is of mutations of '{saved['part']}', not of '{part}': pass part=...")
    return read(saved["records"], "the checkpoint")


def tensors_of(checkpoint: Mapping[str, Any], part: str) -> dict[str, Tensor]:
    """Returns the tensors of a part in a checkpoint, by their names in the part."""
    found = checkpoint["state_dict"].items()
    return {name.removeprefix(f"{part}."): tensor for name, tensor in found if name.startswith(f"{part}.")}


def part_of(module: pl.LightningModule, name: str) -> nn.Module:
    """Returns the part of a module that is mutated.

    Raises:
        EvolveError: If it has none of this name.
    """
    modules: dict[str, nn.Module] = dict(module.named_modules())
    if not name or name not in modules:
        known = ", ".join(f"'{child}'" for child, _ in module.named_children()) or "none"
        raise EvolveError(
            f"part='{name}' is no submodule of {type(module).__name__}. Its children: {known}. The LightningModule "
            "itself cannot be mutated, as it holds the trainer: put the model into an attribute."
        )
    return modules[name]


def _loss_in(outputs: Any) -> float | Tensor:
    """The loss of a step; where a module with manual optimization returns none, its weights alone tell of a failure."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss.detach() if isinstance(loss, Tensor) and loss.numel() == 1 else 0.0


def _without_state(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What Lightning does not save itself of an optimizer: the names in its groups."""
    return {**saved, "state": {}, "inside": [{**layer, "state": {}} for layer in saved["inside"]]}
