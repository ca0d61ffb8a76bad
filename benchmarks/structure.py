"""Analysis and whole mutations of models that nobody here wrote, beside Torch-Pruning in the same process.

Both get the same model and one random image. The arms of a round take turns, each on a fresh copy; ratios are those
within a round. A mutation is whole: analysed, planned, made, verified in eval and train mode, and the momentum of SGD
carried along. Torch-Pruning knows no optimizer and verifies nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peer import build, graph, outcome, prune
from timing import Took, ratios, seconds, spread, taking_turns, told
from torch import Tensor, nn

from evolve import mutate
from evolve.structure.analysis import Analysis
from evolve.structure.inputs import as_inputs

LIMIT = 60.0  # seconds that Torch-Pruning gets for a model on which it may never end
MUTATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "widen all x2": ("widen", {}),
    "narrow all /2": ("narrow", {"factor": 0.5}),
    "widen one x2": ("widen", {}),
    "narrow one /2": ("narrow", {"factor": 0.5}),
}


def analysis(name: str, side: int, repetitions: int) -> tuple[dict[str, Any], list[str]]:
    """Times both recorded runs and all that is read off them, uncached, against the other's graph."""
    model, image = build(name), torch.randn(1, 3, side, side)
    inputs = as_inputs(model, image)
    arms = {"ours": lambda: seconds(lambda: Analysis(model, inputs)), "peer": lambda: graph(model, image)}
    rounds = taking_turns(arms, repetitions)
    figures = figures_of(rounds, "ours")
    lines = [f"  {clock:4} time: analysis/graph {told(figures['ratio'][clock])}" for clock in Took._fields]
    return figures, [*lines, f"  ms: analysis {told(figures['ms'])}, graph {told(figures['peer_ms'])}"]


def mutation(name: str, side: int, repetitions: int) -> tuple[dict[str, Any], list[str]]:
    """Times whole mutations against the other's whole prune, and against its prune without the graph."""
    model, image = build(name), torch.randn(1, 3, side, side)
    optimizer = with_momentum(model)
    changeable = Analysis(model, as_inputs(model, image)).changeable
    alone: list[Took] = []

    def pruning() -> Took:
        whole, without_graph = prune(copy.deepcopy(model), image)
        alone.append(without_graph)
        return whole

    arms: dict[str, Callable[[], Took]] = {"peer": pruning}
    for arm, (operator, options) in MUTATIONS.items():
        site = "*" if " all " in arm else changeable[len(changeable) // 2].name
        arms[arm] = partial(mutated, model, optimizer, image, operator, site, options)
    rounds = taking_turns(arms, repetitions)
    found = {arm: figures_of(rounds, arm) for arm in MUTATIONS}
    lines = []
    for arm, figures in found.items():
        cpu, wall = (told(figures["ratio"][clock]) for clock in ("cpu", "wall"))
        lines.append(f"  {arm:13} / prune: CPU {cpu}, wall {wall}; ms {told(figures['ms'])}")
    without = spread([1000 * took.wall for took in alone[1:]])
    lines.append(f"  ms: prune with its graph {told(found['widen one x2']['peer_ms'])}, prune alone {told(without)}")
    return {"arms": found, "prune_alone_ms": without}, lines


def where_it_fails(name: str, side: int, repetitions: int) -> tuple[dict[str, Any], list[str]]:
    """Times mutations of a model on which the other one gives up, and says how it does."""
    model, image = build(name), torch.randn(1, 3, side, side)
    optimizer, inputs = with_momentum(model), as_inputs(model, image)
    arms: dict[str, Callable[[], Took]] = {"analysis": lambda: seconds(lambda: Analysis(model, inputs))}
    for arm in ("widen all x2", "narrow all /2"):
        operator, options = MUTATIONS[arm]
        arms[arm] = partial(mutated, model, optimizer, image, operator, "*", options)
    rounds = taking_turns(arms, min(repetitions, 3))
    found = {arm: spread([1000 * took[arm].wall for took in rounds]) for arm in arms}
    end = outcome(name, tuple(image.shape), LIMIT)
    lines = [f"  ms: {', '.join(f'{arm} {told(figures)}' for arm, figures in found.items())}"]
    return {"ms": found, "peer": end}, [*lines, f"  Torch-Pruning: {end}"]


def with_momentum(model: nn.Module) -> torch.optim.Optimizer:
    """Returns an optimizer with state for every parameter."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def mutated(
    model: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, operator: str, site: str, options: dict[str, Any]
) -> Took:
    """Mutates a copy with a copy of the optimizer; returns the seconds of the mutation."""
    changed = copy.deepcopy(model)
    its_optimizer = torch.optim.SGD(changed.parameters(), lr=1e-3, momentum=0.9)
    its_optimizer.load_state_dict(optimizer.state_dict())
    answers = []
    took = seconds(
        lambda: answers.append(
            mutate(changed, operator, site=site, optimizer=its_optimizer, example_inputs=image, **options)
        )
    )
    if not answers[0]:
        raise RuntimeError(f"{operator} at '{site}' was refused: {answers[0].message}")
    return took


def figures_of(rounds: list[dict[str, Took]], arm: str) -> dict[str, Any]:
    """Returns an arm's milliseconds, and its ratio to the other library's within each round."""
    return {
        "ms": spread([1000 * took[arm].wall for took in rounds]),
        "peer_ms": spread([1000 * took["peer"].wall for took in rounds]),
        "ratio": ratios([(took[arm], took["peer"]) for took in rounds]),
    }


Measure = Callable[[int], tuple[dict[str, Any], list[str]]]
CASES: dict[str, Measure] = {
    **{f"analysis, {name}": partial(analysis, name, 224) for name in ("resnet50", "vit_b_16", "densenet121")},
    "mutation, resnet50": partial(mutation, "resnet50", 224),
    "mutation, resnet50 at 64x64": partial(mutation, "resnet50", 64),
    "mutation, densenet121": partial(mutation, "densenet121", 224),
    **{
        f"where Torch-Pruning fails, {name}": partial(where_it_fails, name, 224)
        for name in ("shufflenet_v2_x1_0", "swin_t", "maxvit_t")
    },
}
