"""What every operator has to do on every model: keep its declaration, or decline and leave no trace.

The checks measure by themselves what `mutate` claims: nothing here trusts a record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from evolve.errors import described
from evolve.mutation.api import MutationResult, create_operator, mutate, sites
from evolve.mutation.replaying import replay
from evolve.operators import operators
from evolve.structure.analysis import analyse
from evolve.structure.causality import leaks, orders_of
from evolve.structure.inputs import as_inputs
from evolve.structure.isolation import undisturbed
from evolve.structure.orders import Order
from evolve.structure.outputs import differentiable, output_tensors
from evolve.structure.probe import probe
from evolve.structure.sites import EVERYWHERE
from evolve.surgery.transaction import Transaction
from evolve.testing.functions import check_alike, check_grad_modes, check_outputs, outputs_of
from evolve.testing.moments import check_moments
from evolve.testing.snapshot import ModelSnapshot, settings_of
from evolve.testing.threads import check_threads
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
    check_threads(operator, ZOO if zoo is None else zoo, options)
    return applied


def check_on(
    operator: str,
    name: str,
    subject: Subject,
    *,
    places: Sequence[str] | None = None,
    most_sites: int | None = None,
    **options: Any,
) -> int:
    """Runs the contract of an operator on one model; returns how many mutations were applied.

    Args:
        operator: Registered name.
        name: The model's name, for messages.
        subject: The model.
        places: Sites to try instead of those that the operator offers.
        most_sites: Most sites to try.
        **options: The operator's options.

    Raises:
        AssertionError: If the operator breaks the contract, or if the model cannot be trained on its inputs.
    """
    _check_subject(f"'{operator}' on {name}", subject)
    model, inputs = _looked_at(subject)
    if places is None:
        places = sites(model, operator, example_inputs=inputs, **options)
    if most_sites is not None and len(places) > most_sites:
        places = places[:: -(-len(places) // most_sites)]
    # A mutated model sees no later position either.
    orders = orders_of(model, probe(model, as_inputs(model, inputs))) if places else ()
    return sum(_check_site(operator, name, subject, place, options, orders) for place in places)


def variants(operator: str) -> Iterator[dict[str, Any]]:
    """Yields options that make a different operator of it: each choice of each option that is a choice of names.

    Choices that ask for another option beside them are left out.
    """
    cls = operators.get(operator)
    for key, field in cls.Options.model_fields.items():
        for choice in get_args(field.annotation) if get_origin(field.annotation) is Literal else ():
            with suppress(ValidationError):
                cls(**{key: choice})
                if choice != field.default:
                    yield {key: choice}


def _check_subject(where: str, subject: Any) -> None:
    """The contract needs a model that runs on its inputs and can be trained."""
    assert isinstance(subject, Subject), (
        f"{where}: the zoo holds a {type(subject).__name__}, not a Subject. Give functions: Subject(build, inputs)"
    )
    try:
        loss = _loss(_built(subject), _inputs(subject))
    except Exception as error:  # whatever a user's model raises
        raise AssertionError(
            f"{where}: before any change the model does not run on its inputs: {described(error)}"
        ) from error
    assert loss.requires_grad, (
        f"{where}: no output depends on a trainable parameter, so that training cannot be checked. Unfreeze some"
    )


def _built(subject: Subject) -> nn.Module:
    torch.default_generator.manual_seed(0)
    return subject.build()


def _inputs(subject: Subject) -> Any:
    torch.default_generator.manual_seed(1)
    return subject.inputs()


@lru_cache(maxsize=64)
def _looked_at(subject: Subject) -> tuple[nn.Module, Any]:
    """A model that is never changed, with its inputs: its structure is found once, whatever asks for it."""
    return _built(subject), _inputs(subject)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW without weight decay for biases and norms, as people set it up; a step has been taken."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-2)


def _check_site(
    operator: str, name: str, subject: Subject, place: str, options: dict[str, Any], orders: Sequence[Order]
) -> bool:
    where = f"'{operator}' on {name} at '{place}'"
    model, inputs = _built(subject), _inputs(subject)
    optimizer = _optimizer(model)
    initial = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    _train(model, optimizer, inputs)
    moved = {k for k, p in model.named_parameters() if not torch.equal(initial[k], p)}
    _set_moments(model, optimizer, inputs)
    before = ModelSnapshot(model, optimizer)
    acting = create_operator(operator, options)
    outputs = outputs_of(model, inputs, still=acting.redraws)

    with Transaction(model, optimizer) as change:
        result = mutate(
            model, operator, site=place, optimizer=optimizer, example_inputs=inputs, loss=_total, seed=3, **options
        )
        if result:
            assert torch.equal(torch.get_rng_state(), before.rng), f"{where}: random numbers were drawn"
            changed = outputs_of(model, inputs, still=acting.redraws)
            check_outputs(outputs, changed, acting.preserves, where, recounts=acting.recounts)
            names = before.follow(model)
            moved = {names.get(key, key) for key in moved}
            before.check_kept(model, optimizer, where)
            exact = acting.preserves == "exact"
            by_gradient = check_moments(model, optimizer, _gradients(model, inputs) if exact else {}, before, where)
            assert by_gradient or not exact or _averages(subject, place), f"{where}: moments are not as gradients are"
            rebuilt = _check_replay(subject, result, model, where)
            check_alike(changed, outputs_of(rebuilt, inputs, still=acting.redraws), where)
            _check_training(model, optimizer, inputs, before, moved, where)
            ahead = leaks(model, as_inputs(model, inputs), orders)
            assert not ahead, f"{where}: {ahead[0]}"
            check_grad_modes(model, inputs, where)
        else:
            assert result.status in ("not_applicable", "rejected"), f"{where} failed: {result.message}"
            before.check_same(model, optimizer, f"{where}: a refused mutation left a trace")
        change.rollback()
    before.check_same(model, optimizer, f"{where}: a rolled back mutation left a trace")
    return bool(result)


def _averages(subject: Subject, place: str) -> bool:
    """Returns whether a mean or variance is taken over a group of channels at a place."""
    groups = analyse(*_looked_at(subject)).changeable
    return any(group.statistic for group in groups if place in (group.name, EVERYWHERE))


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, example_inputs: Any) -> None:
    torch.default_generator.manual_seed(2)
    optimizer.zero_grad()
    _loss(model, example_inputs).backward()
    optimizer.step()


def _loss(model: nn.Module, example_inputs: Any) -> Tensor:
    inputs = as_inputs(model, example_inputs)
    return _total(model(*inputs.args, **inputs.kwargs))


def _total(outputs: Any) -> Tensor:
    """A loss that weighs every output differently."""
    parts = [t.double().flatten() for t in differentiable(outputs) or output_tensors(outputs)]
    return torch.stack([part @ torch.linspace(-1, 1, len(part), dtype=part.dtype) for part in parts]).sum()


def _gradients(model: nn.Module, example_inputs: Any) -> dict[str, Tensor]:
    """Gradients in eval mode: no dropout, no batch statistics."""
    named = {key: p for key, p in model.named_parameters() if p.requires_grad}
    with undisturbed(model):
        found = torch.autograd.grad(_loss(model.eval(), example_inputs), list(named.values()), allow_unused=True)
    return {key: gradient for key, gradient in zip(named, found, strict=True) if gradient is not None}


def _set_moments(model: nn.Module, optimizer: torch.optim.Optimizer, example_inputs: Any) -> None:
    """Lets the averages of gradients be the gradients as they are now, so that a mutation's are known too."""
    gradients = _gradients(model, example_inputs)
    for key, parameter in model.named_parameters():
        if key in gradients and parameter in optimizer.state:
            optimizer.state[parameter]["exp_avg"].copy_(gradients[key])
            optimizer.state[parameter]["exp_avg_sq"].copy_(gradients[key] ** 2)


def _check_replay(subject: Subject, result: MutationResult, model: nn.Module, where: str) -> nn.Module:
    """Replay builds the same structure; returns it with the weights of the mutated model."""
    rebuilt = _built(subject)
    replay(rebuilt, [result.record])
    shapes = {k: (tuple(v.shape), v.dtype) for k, v in model.state_dict().items()}
    rebuilt_shapes = {k: (tuple(v.shape), v.dtype) for k, v in rebuilt.state_dict().items()}
    assert shapes == rebuilt_shapes, f"{where}: replay builds another structure"
    assert settings_of(rebuilt) == settings_of(model), f"{where}: replay builds another structure"
    rebuilt.load_state_dict(model.state_dict())
    return rebuilt


def _check_training(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Any, before: ModelSnapshot, moved: set[str], where: str
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
