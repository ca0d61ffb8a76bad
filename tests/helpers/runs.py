"""A run with dropout, averages, a schedule and three mutations; stopping it, and comparing how it ended."""

import hashlib
import random

import torch
from torch import nn

from evolve import EvolutionConfig, Evolver, LrScheduleConfig, OptimizerConfig, TrainingConfig
from evolve.data import CropFlip, TensorBatches
from evolve.surgery.optimizer_names import optimizer_by_name
from evolve.training.events import StepMade

MUTATION_STEPS = [4, 9, 13]
STEPS = 18  # three epochs of six batches


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3))

    def forward(self, x):
        return self.head(self.features(x))


def make(folder=None, **changes):
    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(48, 1, 8, 8, generator=generator), torch.randint(3, (48,), generator=generator)
    arguments = {
        "optimizer": OptimizerConfig(name="SGD", options={"lr": 0.05, "momentum": 0.9, "nesterov": True}),
        "lr_schedule": LrScheduleConfig(name="OneCycleLR", options={"max_lr": 0.1}),
        "training": TrainingConfig(epochs=3, device="cpu", ema=0.9, grad_clip=1.0, seed=3),
        "evolution": EvolutionConfig.model_validate(
            {
                "schedule": {"name": "at", "options": {"steps": MUTATION_STEPS}},
                "policy": {"name": "random", "options": {"seed": 5}},
                "operators": [{"name": "residual", "options": {"init": "random"}}, {"name": "deepen"}],
                "attempts": 2,
            }
        ),
        "output": folder,
        "progress": False,
    }
    train = TensorBatches(x, y, 8, shuffle=True, seed=3, augment=CropFlip())
    return Evolver(Net(), train, (x[:16], y[:16]), **{**arguments, **changes})


def after_each_step(evolver, note):
    """Calls `note()` right after each optimizer step, before anything else is done about it."""

    def listen(event):
        if isinstance(event, StepMade):
            note()

    evolver.events.listen(listen)
    return evolver


def stop_after(evolver, step):
    """Stops the run at the end of an optimizer step, as a signal would, once."""
    steps = [step]

    def stop():
        if steps and evolver.state.step == steps[0]:
            steps.clear()
            evolver.stop()

    return after_each_step(evolver, stop)


def digest(value):
    """SHA-256 over nested tensors, numbers and names."""
    sha = hashlib.sha256()

    def walk(item):
        if isinstance(item, torch.Tensor):
            sha.update(str((item.dtype, tuple(item.shape))).encode() + item.contiguous().numpy().tobytes())
        elif isinstance(item, dict):
            for key in item:
                sha.update(str(key).encode())
                walk(item[key])
        elif isinstance(item, list | tuple):
            for part in item:
                walk(part)
        else:
            sha.update(repr(item).encode())

    walk(value)
    return sha.hexdigest()


def optimizer_digest(model, optimizer):
    """Groups and state; flags that torch's schedulers set on an optimizer at run time are left out."""
    saved = optimizer_by_name(model, optimizer)
    return digest([(part["groups"], part["state"]) for part in saved.get("optimizers", [saved])])


def digests(evolver):
    return {
        "weights": digest(evolver.model.state_dict()),
        "optimizer": optimizer_digest(evolver.model, evolver.state.optimizer),
        "ema": digest(evolver.state.ema.shadow if evolver.state.ema else None),
        "scheduler": digest(evolver.state.scheduler.state_dict() if evolver.state.scheduler else None),
        "log": evolver.lineage.digest(),
        "history": digest([{k: v for k, v in m.items() if k != "seconds"} for m in evolver.history]),
        "random": digest([torch.get_rng_state(), random.getstate()]),
    }
