"""What is wrong between a model and its optimizers after a change, and what they cannot know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from evolve.surgery.optimizer.changes import ParameterTable
from evolve.surgery.optimizer.kinds import known
from evolve.surgery.optimizer.layers import all_layers


def counts_of(optimizers: Sequence[Optimizer]) -> Counter[int]:
    """Returns how many times each parameter, by id, is in the groups of optimizers."""
    return Counter(id(p) for one in optimizers for group in one.param_groups for p in group["params"])


def optimizer_faults(
    model: nn.Module, optimizers: Sequence[Optimizer], before: ParameterTable, counts_before: Mapping[int, int]
) -> list[str]:
    """Says what is wrong between a model and its optimizers: missing, doubled or stale parameters, state that is unfit.

    Args:
        model: After the change.
        optimizers: After the change.
        before: The parameters before the change.
        counts_before: How many times each parameter, by id, was in the groups: what they left out then, they may leave
            out now, and what two of them held (as in adversarial training) they may both hold.
    """
    counts, found = counts_of(optimizers), []
    after = dict(model.named_parameters())
    every = all_layers(optimizers)
    for name, parameter in after.items():
        count, earlier = counts.get(id(parameter), 0), counts_before.get(id(parameter), 0)
        left_out = parameter in before and not earlier
        if count > max(earlier, 1) or (count == 0 and parameter.requires_grad and not left_out):
            found.append(f"'{name}' is in the optimizer {count} times instead of once")
        if parameter in before and tuple(parameter.shape) != before.shapes[id(parameter)]:
            for layer in filter(known, every):
                found += [
                    f"the optimizer's '{key}' of '{name}' has not the shape of the parameter"
                    for key, value in layer.state.get(parameter, {}).items()
                    if isinstance(value, Tensor) and value.dim() == parameter.dim() > 0
                    if any(a not in (1, b) for a, b in zip(value.shape, parameter.shape, strict=True))
                ]
    living = {id(parameter) for parameter in after.values()}
    stale = {id(p) for p in before.by_name.values() if id(p) not in living}
    left = stale & ({id(p) for layer in every for p in layer.state} | set(counts))
    if left:
        found.append(f"the optimizer still holds {len(left)} parameters that the model no longer has")
    return found


def left_behind(optimizers: Sequence[Optimizer], before: ParameterTable, counts_before: Mapping[int, int]) -> list[str]:
    """Says which trainable parameters changed shape that no optimizer here holds: another one may."""
    changed = {
        id(parameter): f"'{name}'"
        for name, parameter in before.by_name.items()
        if parameter.requires_grad
        and id(parameter) not in counts_before
        and tuple(parameter.shape) != before.shapes[id(parameter)]
    }
    if not changed:
        return []
    names = ", ".join(list(changed.values())[:3]) + (", ..." if len(changed) > 3 else "")
    return [
        f"{len(changed)} parameters that changed are not in {called(optimizers)} ({names}): if another optimizer steps "
        "them, its state does not fit any more. Pass both, as in optimizer=[first, second]."
    ]


def called(optimizers: Sequence[Optimizer]) -> str:
    """Returns what a message calls optimizers."""
    names = " and ".join(type(one).__name__ for one in optimizers)
    return f"this {names}" if len(optimizers) == 1 else f"these optimizers ({names})"
