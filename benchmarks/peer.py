"""Torch-Pruning, the best-known structural pruner, on the models that the benchmarks mutate."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from multiprocessing.connection import Connection

import torch
import torch_pruning
import torchvision
from timing import Took, seconds
from torch import Tensor, nn


def build(name: str) -> nn.Module:
    """Returns a torchvision model with random weights, in eval mode as Torch-Pruning's own examples have it."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model.eval()


def graph(model: nn.Module, inputs: Tensor) -> Took:
    """Returns the seconds in which it builds its dependency graph."""
    with warnings.catch_warnings(action="ignore"):  # parameters outside of layers, such as a class token
        return seconds(lambda: torch_pruning.DependencyGraph().build_dependency(model, inputs))


def prune(model: nn.Module, inputs: Tensor) -> tuple[Took, Took]:
    """Takes half of all channels out, by magnitude, but for the classes.

    Returns:
        The seconds of the whole (graph, groups and prune), and of the prune alone.
    """
    classes = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == 1000]
    made = []
    with warnings.catch_warnings(action="ignore"):
        importance = torch_pruning.importance.MagnitudeImportance(p=2)
        setting_up = seconds(
            lambda: made.append(
                torch_pruning.pruner.BasePruner(
                    model, inputs, importance=importance, pruning_ratio=0.5, ignored_layers=classes
                )
            )
        )
        alone = seconds(made[0].step)
    return Took(setting_up.wall + alone.wall, setting_up.cpu + alone.cpu), alone


def outcome(name: str, shape: tuple[int, ...], limit: float) -> str:
    """Says what becomes of a whole prune in a process of its own, which is ended after `limit` seconds."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_try, args=(name, shape, torch.get_num_threads(), sender), daemon=True)
    process.start()
    sender.close()
    try:
        started = receiver.recv()  # imports and the model are not counted
        left = limit - (time.time() - started)
        return receiver.recv() if receiver.poll(left) else f"not done after {limit:.0f} s"
    except EOFError:
        return "the process died"
    finally:
        process.kill()
        process.join()


def _try(name: str, shape: tuple[int, ...], threads: int, sender: Connection) -> None:
    torch.set_num_threads(threads)
    model, inputs = build(name), torch.randn(shape)
    sender.send(time.time())
    try:
        whole, _ = prune(model, inputs)
        model(inputs)
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")
    else:
        sender.send(f"pruned in {whole.wall:.2f} s")
