"""What every operator has to do on every model: keep its declaration, or decline and leave no trace.

The checks measure by themselves what `mutate` claims: nothing here trusts a record.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor, nn

from evolve.mutation import MutationResult, create_operator, mutate, replay, sites
from evolve.operators import operators
from evolve.structure.analysis import analyse
from evolve.structure.inputs import as_inputs
from evolve.structure.probe import output_tensors
from evolve.structure.sites import EVERYWHERE
from evolve.surgery.transaction import Transaction
from evolve.surgery.verify import WithoutDropout, difference, tolerance
from evolve.testing.zoo import ZOO, Subject


def check_operator(
    operator: str, zoo: Mapping[str, Subject] | None = None, *, most_sites: int | None = None, **options: Any
) -> int:
    """Runs the contract of an operator on the sites that it offers on every model of a zoo.

    Args:
        operator: Registered name.
        zoo: Models to try; the built-in zoo if None.
        most_sites: Most sites of a model to try, spread over those offered; all if None.
        **options: The operator's options.

    Returns:
        How many mutations were applied, over all models.

    Raises:
        AssertionError: If the operator breaks the contract; names model, site and clause.
    """
    applied = sum(
        check_on(operator, name, subject, most_sites=most_sites, **options)
        for name, subject in (ZOO if zoo is None else zoo).items()
    )
    assert applied, f"'{operator}' applied nowhere in the zoo"
    return applied


def check_on(operator: str, name: str, subject: Subject, *, most_sites: int | None = None, **options: Any) -> int:
    """Runs the contract of an operator on one model, at `EVERYWHERE` too; returns how many mutations were applied."""
    offered = sites(_built(subject), operator, example_inputs=_inputs(subject), **options)
    if most_sites is not None and len(offered) > most_sites:
        offered = offered[:: -(-len(offered) // most_sites)]
    return sum(_check_site(operator, name, subject, place, options) for place in (*offered, EVERYWHERE))


def variants(operator: str) -> Iterator[dict[str, Any]]:
    """Yields options that make a different operator of it: each choice of each option that is a choice of names."""
    fields = operators.get(operator).Options.model_fields
    for key, field in fields.items():
        if get_origin(field.annotation) is Literal:
            yield from ({key: choice} for choice in get_args(field.annotation) if choice != field.default)


def _built(subject: Subject) -> nn.Module:
    torch.manual_seed(0)
    return subject.build()


def _inputs(subject: Subject) -> Any:
    torch.manual_seed(1)
    return subject.inputs()


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW without weight decay for biases and norms, as people set it up; a step has been taken."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-2)


def _check_site(operator: str, name: str, subject: Subject, place: str, options: dict[str, Any]) -> bool:
    where = f"'{operator}' on {name} at '{place}'"
    model, inputs = _built(subject), _inputs(subject)
    optimizer = _optimizer(model)
    initial = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    _train(model, optimizer, inputs)
    moved = {k for k, p in model.named_parameters() if not torch.equal(initial[k], p)}
    _set_moments(model, optimizer, inputs)
    before = Snapshot(model, optimizer)
    groups = analyse(model, inputs).changeable
    averaged = any(group.statistic for group in groups if place in (group.name, EVERYWHERE))
    acting = create_operator(operator, options)
    outputs = _outputs(model, inputs, still=acting.redraws)

    with Transaction(model, optimizer) as change:
        result = mutate(model, operator, site=place, optimizer=optimizer, example_inputs=inputs, seed=3, **options)
        if result:
            assert torch.equal(torch.get_rng_state(), before.rng), f"{where}: random numbers were drawn"
            allowed = tolerance(outputs[0], acting.preserves)
            after = _outputs(model, inputs, still=acting.redraws)
            for mode, one, other in zip(("eval", "train"), outputs, after, strict=True):
                assert acting.preserves == "no" or [t.shape for t in one] == [t.shape for t in other]
                delta = difference(one, other).relative if allowed is not None else 0.0
                assert delta <= (allowed or 0.0), f"{where}: in {mode} mode the output changed by {delta:g} relative"
            before.check_kept(model, optimizer, where)
            _check_moments(model, optimizer, inputs, before, acting.preserves == "exact", averaged, where)
            _check_replay(subject, result, model, inputs, where)
            _check_training(model, optimizer, inputs, before, moved, where)
        else:
            assert result.status in ("not_applicable", "rejected"), f"{where} failed: {result.message}"
            before.check_same(model, optimizer, f"{where}: a refused mutation left a trace")
        change.rollback()
    before.check_same(model, optimizer, f"{where}: a rolled back mutation left a trace")
    return bool(result)


class Snapshot:
    """Copies of all that a refused mutation must not touch, and of what an applied one has to keep."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.everything = _everything(model, optimizer)
        self.rng = self.everything["rng"]
        self.parameters = dict(model.named_parameters())
        self.buffers = dict(model.named_buffers())
        self.values = {key: p.detach().clone() for key, p in self.parameters.items()}
        self.trainable = {key: p.requires_grad for key, p in self.parameters.items()}
        self.modes = {key: module.training for key, module in model.named_modules()}
        self.states = {
            key: {k: v.clone() for k, v in optimizer.state[p].items()}
            for key, p in self.parameters.items()
            if p in optimizer.state
        }
        self.groups = _groups(optimizer)

    def check_same(self, model: nn.Module, optimizer: torch.optim.Optimizer, message: str) -> None:
        """Asserts that nothing has changed."""
        after = _everything(model, optimizer)
        assert self.everything.keys() == after.keys(), f"{message}: {sorted(self.everything.keys() ^ after.keys())}"
        for key, value in self.everything.items():
            equal = torch.equal(value, after[key]) if isinstance(value, Tensor) else value == after[key]
            assert equal, f"{message}: {key}"

    def check_kept(self, model: nn.Module, optimizer: torch.optim.Optimizer, where: str) -> None:
        """Asserts that what is still there is of the same kind, and that the optimizer fits."""
        floats = [p for p in self.parameters.values() if p.is_floating_point()]
        kinds = {(p.dtype, p.device) for p in floats}
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            old = self.parameters.get(key, self.buffers.get(key))
            if old is not None:
                assert (tensor.dtype, tensor.device) == (old.dtype, old.device), f"{where}: '{key}' has another dtype"
            elif tensor.is_floating_point() and kinds:
                assert (tensor.dtype, tensor.device) in kinds, f"{where}: the new '{key}' has another dtype"
            if key in self.parameters:
                assert tensor is self.parameters[key], f"{where}: '{key}' is another object"
                assert tensor.requires_grad == self.trainable[key], f"{where}: requires_grad of '{key}' changed"
        for key, module in model.named_modules():
            mode = self.modes.get(key, self.modes[""])
            assert module.training == mode, f"{where}: the mode of '{key}' is not kept"
        groups = _groups(optimizer)
        for parameter in self.parameters.values():
            kept = groups.get(id(parameter))
            assert kept in (None, self.groups.get(id(parameter))), f"{where}: a parameter is in another group"
        _check_optimizer(model, optimizer, where)


def _groups(optimizer: torch.optim.Optimizer) -> dict[int, int]:
    return {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}


def _everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    found: dict[str, Any] = {f"model {k}": v.detach().clone() for k, v in model.state_dict(keep_vars=True).items()}
    found |= {f"grad {k}": p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    found |= {f"trainable {k}": (id(p), p.requires_grad) for k, p in model.named_parameters()}
    found |= {f"module {k}": (id(m), type(m), m.training) for k, m in model.named_modules()}
    found |= {f"settings {k}": v for k, v in _settings(model).items()}
    for index, group in enumerate(optimizer.param_groups):
        found |= {f"group {index} {k}": v for k, v in group.items() if k != "params"}
        found[f"group {index}"] = [id(p) for p in group["params"]]
    for index, (parameter, state) in enumerate(optimizer.state.items()):
        found[f"state {index}"] = id(parameter)
        found |= {f"state {index} {k}": v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
    found["rng"] = torch.get_rng_state()
    return found


def _settings(model: nn.Module) -> dict[str, Any]:
    """The plain values that modules keep, by module: sizes, strides, numbers of heads."""
    kinds = (bool, int, float, str, tuple)
    return {
        name: {key: value for key, value in vars(module).items() if isinstance(value, kinds) and key[0] != "_"}
        for name, module in model.named_modules()
    }


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, example_inputs: Any) -> None:
    torch.manual_seed(2)
    optimizer.zero_grad()
    _loss(model, example_inputs).backward()
    optimizer.step()


def _loss(model: nn.Module, example_inputs: Any) -> Tensor:
    inputs = as_inputs(model, example_inputs)
    outputs = output_tensors(model(*inputs.args, **inputs.kwargs))
    return torch.stack([(t.double() * torch.linspace(-1, 1, t.numel()).view(t.shape)).sum() for t in outputs]).sum()


def _gradients(model: nn.Module, example_inputs: Any) -> dict[str, Tensor]:
    """Gradients in eval mode, of a copy: no dropout, no batch statistics."""
    twin = copy.deepcopy(model).eval()
    twin.zero_grad()
    _loss(twin, example_inputs).backward()
    return {key: p.grad for key, p in twin.named_parameters() if p.grad is not None}


def _outputs(model: nn.Module, example_inputs: Any, *, still: bool) -> list[list[Tensor]]:
    """Outputs of a copy in eval and in train mode, without dropout if asked to be still."""
    twin, found = copy.deepcopy(model), []
    inputs = as_inputs(twin, example_inputs)
    for training in (False, True):
        twin.train(training)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), WithoutDropout() if still else nullcontext():
            torch.manual_seed(4)
            found.append(output_tensors(twin(*inputs.args, **inputs.kwargs)))
    return found


def _set_moments(model: nn.Module, optimizer: torch.optim.Optimizer, example_inputs: Any) -> None:
    """Lets the averages of gradients be the gradients as they are now, so that a mutation's are known too."""
    gradients = _gradients(model, example_inputs)
    for key, parameter in model.named_parameters():
        if key in gradients and parameter in optimizer.state:
            optimizer.state[parameter]["exp_avg"].copy_(gradients[key])
            optimizer.state[parameter]["exp_avg_sq"].copy_(gradients[key] ** 2)


def _check_moments(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Any,
    before: Snapshot,
    exact: bool,
    averaged: bool,
    where: str,
) -> None:
    """Untouched parameters keep their state; that of a parameter that was cut stays with the positions it belongs to.

    Where the function is preserved, the average of a position has to be its gradient in the changed model, or zero if
    the position is new. Elsewhere it has to be what the same position had before, found by its value; copies share it. So it
    does under a norm over the group (`averaged`), where what a copy does to the mean is not for its share.
    """
    gradients = _gradients(model, inputs) if exact else {}
    slack = 1e-4 * max((float(g.abs().max()) for g in gradients.values()), default=0.0)
    for key, parameter in model.named_parameters():
        old = before.states.get(key)
        if old is None:
            continue
        state = optimizer.state[parameter]
        assert state.keys() == old.keys(), f"{where}: the optimizer keeps other things of '{key}'"
        assert torch.equal(state["step"], old["step"]), f"{where}: the step of '{key}' changed"
        average, square = state["exp_avg"], state["exp_avg_sq"]
        if parameter.shape == before.values[key].shape:
            kept = all(torch.equal(state[k], v) for k, v in old.items())
            assert kept, f"{where}: the moments of '{key}' changed"
            continue
        assert torch.allclose(square, average**2, rtol=1e-4, atol=1e-12), f"{where}: the moments of '{key}' part"
        expected = torch.where(average == 0, 0, gradients[key]) if exact else None
        if expected is None or not torch.allclose(average, expected, rtol=1e-3, atol=slack):
            assert not exact or averaged, f"{where}: wrong moments of '{key}'"
            strays = _strays(before.values[key], old["exp_avg"], parameter, average)
            assert not strays, f"{where}: the moments of '{key}' are not with their weights"


def _strays(old: Tensor, old_average: Tensor, new: Tensor, average: Tensor) -> list[float]:
    """Returns the old values whose averages do not add up to what they were."""
    known = dict(zip(old.flatten().tolist(), old_average.flatten().tolist(), strict=True))
    totals: dict[float, float] = {}
    for value, part in zip(new.flatten().tolist(), average.flatten().tolist(), strict=True):
        totals[value] = totals.get(value, 0.0) + part
    slack = 1e-4 * float(old_average.abs().max())
    counts = Counter(old.flatten().tolist())
    return [v for v, m in known.items() if v in totals and counts[v] == 1 and abs(totals[v] - m) > slack]


def _check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, where: str) -> None:
    counts = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    living = {id(p) for p in model.parameters() if p.requires_grad}
    assert living <= counts.keys(), f"{where}: trainable parameters are missing in the optimizer"
    assert max(counts.values()) == 1, f"{where}: a parameter is in the optimizer more than once"
    assert counts.keys() <= living, f"{where}: the optimizer holds stale parameters"
    assert {id(p) for p in optimizer.state} <= living, f"{where}: the optimizer holds stale state"
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            assert value.dim() == 0 or value.shape == parameter.shape, f"{where}: '{key}' has the shape {value.shape}"


def _check_replay(subject: Subject, result: MutationResult, model: nn.Module, inputs: Any, where: str) -> None:
    rebuilt = _built(subject)
    replay(rebuilt, [result.record])
    shapes = {k: (tuple(v.shape), v.dtype) for k, v in model.state_dict().items()}
    again = {k: (tuple(v.shape), v.dtype) for k, v in rebuilt.state_dict().items()}
    assert shapes == again, f"{where}: replay builds another structure"
    assert _settings(rebuilt) == _settings(model), f"{where}: replay builds another structure"
    rebuilt.load_state_dict(model.state_dict())
    pairs = zip(_outputs(model, inputs, still=False), _outputs(rebuilt, inputs, still=False), strict=True)
    for one, other in pairs:
        equal = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert equal, f"{where}: what replay builds computes something else"


def _check_training(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Any, before: Snapshot, moved: set[str], where: str
) -> None:
    """Every parameter that lives moves; one that did not before, such as that of an unused layer, may stay."""
    living = {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}
    living = {k: v for k, v in living.items() if k not in before.parameters or k in moved}
    for _ in range(3):  # behind a zero gate the first step moves the gate alone
        _train(model, optimizer, inputs)
    for key, value in living.items():
        now = model.get_parameter(key)
        assert bool(torch.isfinite(now).all()), f"{where}: training makes '{key}' infinite"
        assert not torch.equal(value, now), f"{where}: training does not move '{key}'"
