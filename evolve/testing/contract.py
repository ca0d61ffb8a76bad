"""What every operator has to do on every model: keep its declaration, or decline and leave no trace.

The checks measure by themselves what `mutate` claims: nothing here trusts a record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from evolve.mutation import create_operator, mutate, replay, sites
from evolve.structure.inputs import as_inputs
from evolve.structure.probe import output_tensors
from evolve.surgery.transaction import Transaction
from evolve.surgery.verify import WithoutDropout, difference, tolerance
from evolve.testing.zoo import ZOO, Subject


def check_operator(operator: str, zoo: Mapping[str, Subject] | None = None, **options: Any) -> int:
    """Runs the contract of an operator on every site of every model of a zoo.

    Args:
        operator: Registered name.
        zoo: Models to try; the built-in zoo if None.
        **options: The operator's options.

    Returns:
        How many mutations were applied, over all models.

    Raises:
        AssertionError: If the operator breaks the contract; names model, site and clause.
    """
    applied = 0
    for name, subject in (ZOO if zoo is None else zoo).items():
        places = sites(_built(subject), operator, example_inputs=_inputs(subject), **options)
        for place in places:
            applied += _check_site(operator, name, subject, place, options)
    assert applied, f"'{operator}' applied nowhere in the zoo"
    return applied


def _built(subject: Subject) -> nn.Module:
    torch.manual_seed(0)
    return subject.build()


def _inputs(subject: Subject) -> Any:
    torch.manual_seed(1)
    return subject.inputs()


def _check_site(operator: str, name: str, subject: Subject, place: str, options: dict[str, Any]) -> bool:
    where = f"'{operator}' on {name} at '{place}'"
    model, inputs = _built(subject), _inputs(subject)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    initial = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    _train(model, optimizer, inputs)
    moved = {k for k, p in model.named_parameters() if not torch.equal(initial[k], p)}
    acting = create_operator(operator, options)
    outputs = _outputs(model, inputs, still=acting.redraws)
    before = _everything(model, optimizer)
    old = dict(model.named_parameters())
    moments = {n: optimizer.state[p]["exp_avg"].clone() for n, p in old.items() if p in optimizer.state}

    with Transaction(model, optimizer) as change:
        mutate(model, operator, site=place, optimizer=optimizer, example_inputs=inputs, seed=3, **options)
        change.rollback()
    _same(before, _everything(model, optimizer), f"{where}: a rolled back mutation left a trace")

    result = mutate(model, operator, site=place, optimizer=optimizer, example_inputs=inputs, seed=3, **options)
    if not result:
        assert result.status in ("not_applicable", "rejected"), f"{where} failed: {result.message}"
        _same(before, _everything(model, optimizer), f"{where}: a refused mutation left a trace")
        return False

    allowed = tolerance(outputs[0], acting.preserves)
    if allowed is not None:
        after = _outputs(model, inputs, still=acting.redraws)
        for mode, one, other in zip(("eval", "train"), outputs, after, strict=True):
            delta = difference(one, other).relative
            assert delta <= allowed, f"{where}: in {mode} mode the output changed by {delta:g} relative"
    for key, parameter in model.named_parameters():
        if old.get(key) is parameter and key in moments and parameter.shape == moments[key].shape:
            kept = torch.equal(optimizer.state[parameter]["exp_avg"], moments[key])
            assert kept, f"{where}: the moments of '{key}' changed"
    _check_optimizer(model, optimizer, where)
    _check_replay(subject, result.record, model, where)

    living = {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}
    living = {k: v for k, v in living.items() if k not in old or k in moved}
    for _ in range(3):  # behind a zero gate the first step moves the gate alone
        _train(model, optimizer, inputs)
    for key, value in living.items():
        assert not torch.equal(value, model.get_parameter(key)), f"{where}: training does not move '{key}'"
    return True


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, example_inputs: Any) -> None:
    inputs = as_inputs(model, example_inputs)
    torch.manual_seed(2)
    loss = sum((t.float() * torch.linspace(-1, 1, t.numel()).view(t.shape)).sum() for t in _run(model, inputs))
    optimizer.zero_grad()
    loss.backward()  # type: ignore[union-attr]
    optimizer.step()


def _run(model: nn.Module, inputs: Any) -> list[Tensor]:
    return output_tensors(model(*inputs.args, **inputs.kwargs))


def _outputs(model: nn.Module, example_inputs: Any, *, still: bool) -> list[list[Tensor]]:
    """Outputs in eval and in train mode, without dropout if asked to be still; buffers are put back."""
    inputs, found = as_inputs(model, example_inputs), []
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    for training in (False, True):
        model.train(training)
        torch.manual_seed(4)
        with torch.no_grad(), WithoutDropout() if still else nullcontext():
            found.append(_run(model, inputs))
    for key, buffer in model.named_buffers():
        if key in buffers:
            buffer.copy_(buffers[key])
    return found


def _everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Copies of all that a refused mutation must not touch."""
    found: dict[str, Any] = {f"model {k}": v.detach().clone() for k, v in model.state_dict(keep_vars=True).items()}
    found |= {f"grad {k}": p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    found |= {f"class {k}": type(m) for k, m in model.named_modules()}
    found |= {f"mode {k}": m.training for k, m in model.named_modules()}
    found["groups"] = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    for index, state in enumerate(optimizer.state.values()):
        found |= {f"state {index} {k}": v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
    found["rng"] = torch.get_rng_state()
    return found


def _same(before: dict[str, Any], after: dict[str, Any], message: str) -> None:
    assert before.keys() == after.keys(), f"{message}: {sorted(before.keys() ^ after.keys())}"
    for key, value in before.items():
        equal = torch.equal(value, after[key]) if isinstance(value, Tensor) else value == after[key]
        assert equal, f"{message}: {key}"


def _check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, where: str) -> None:
    counts = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    living = {id(p) for p in model.parameters() if p.requires_grad}
    assert living <= counts.keys(), f"{where}: trainable parameters are missing in the optimizer"
    assert max(counts.values()) == 1, f"{where}: a parameter is in the optimizer more than once"
    assert counts.keys() <= living, f"{where}: the optimizer holds stale parameters"
    assert {id(p) for p in optimizer.state} <= living, f"{where}: the optimizer holds stale state"


def _check_replay(subject: Subject, record: Any, model: nn.Module, where: str) -> None:
    rebuilt = _built(subject)
    replay(rebuilt, [record])
    shapes = {k: (tuple(v.shape), v.dtype) for k, v in model.state_dict().items()}
    again = {k: (tuple(v.shape), v.dtype) for k, v in rebuilt.state_dict().items()}
    assert shapes == again, f"{where}: replay builds another structure"
    rebuilt.load_state_dict(model.state_dict())
