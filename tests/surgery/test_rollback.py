"""An operator that touches something and then declines leaves nothing of it: hooks, attributes, settings, contexts."""

import copy
import logging
import warnings

import pytest
import torch
from helpers.fingerprints import fingerprint
from torch import nn
from torch.nn.utils import parametrizations, prune

import evolve
from evolve.operators import operators
from evolve.structure.isolation import undisturbed

X = torch.linspace(-1, 1, 24).reshape(4, 6)


def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def declining():
    """Registers an operator that does something and then declines, or raises what it is given."""

    def register(touch, error=None):
        @evolve.operator("touching", preserves="no")
        def touching(model, site, context):
            touch(model, optimizer_of[0])
            if error is not None:
                raise error
            return False, "rather not"

    optimizer_of = [None]
    yield register, optimizer_of
    if "touching" in operators.names():
        operators.unregister("touching")


def _on_forward(model, optimizer):
    model[0].register_forward_hook(lambda *_: torch.zeros(4, 8))
    model[0].register_forward_pre_hook(lambda module, args, kwargs: (args, kwargs), with_kwargs=True)
    model.register_full_backward_hook(lambda module, given, taken: tuple(g * 0 for g in given))


def _on_optimizer(model, optimizer):
    optimizer.register_step_pre_hook(lambda *_: optimizer.zero_grad())
    optimizer.register_step_post_hook(lambda *_: model[0].weight.data.zero_())
    optimizer.register_state_dict_post_hook(lambda *_: {})


def _attributes_of_optimizer(model, optimizer):
    optimizer.defaults["lr"] = 7.0
    optimizer.defaults["new"] = 1
    optimizer.mine = model
    optimizer.param_groups[0]["lr"] = 7.0
    optimizer.step = lambda *_: None


def _attributes_of_tensors(model, optimizer):
    model[0].weight.mine = "mine"
    model[1].running_mean.mine = "mine"
    model[0].bias.requires_grad_(False)
    model[3].weight.__class__ = type("Mine", (nn.Parameter,), {})


def _graph_in_a_buffer(model, optimizer):
    model[1].running_mean.mul_(model[1].weight)


TOUCHES = {
    "tensor hook": lambda m, o: m[0].weight.register_hook(lambda gradient: gradient * 0),
    "hook after accumulation": lambda m, o: m[0].weight.register_post_accumulate_grad_hook(
        lambda p: setattr(p, "grad", None)
    ),
    "module hooks": _on_forward,
    "optimizer hooks": _on_optimizer,
    "attributes of the optimizer": _attributes_of_optimizer,
    "attributes of tensors": _attributes_of_tensors,
    "graph in a buffer": _graph_in_a_buffer,
    "spectral norm": lambda m, o: parametrizations.spectral_norm(m[0]),
    "weight norm": lambda m, o: parametrizations.weight_norm(m[0]),
    "pruning": lambda m, o: prune.l1_unstructured(m[0], "weight", 0.5),
    "a new group": lambda m, o: o.add_param_group({"params": [nn.Parameter(torch.ones(2))]}),
    "half precision": lambda m, o: m.half(),
    "class and forward": lambda m, o: (setattr(m, "forward", lambda x: x), setattr(m[0], "training", False)),
    "dtype of gradients": lambda m, o: setattr(m[0].weight, "grad_dtype", torch.float64),
    "gradients": lambda m, o: [setattr(p, "grad", torch.ones_like(p)) for p in m.parameters()],
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_what_an_operator_touched_before_it_declined_is_as_before(declining, touch):
    register, optimizer_of = declining
    model, optimizer = trained()
    twin, twin_optimizer = trained()
    optimizer_of[0] = optimizer
    register(touch)
    before, attributes = fingerprint(model, optimizer), dict(vars(optimizer))
    defaults = copy.deepcopy(optimizer.defaults)
    answer = evolve.mutate(model, "touching", site="0", optimizer=optimizer, example_inputs=X)
    assert (answer.status, answer.message) == ("not_applicable", "rather not")
    assert fingerprint(model, optimizer) == before
    assert (optimizer.defaults, dict(vars(optimizer))) == (defaults, attributes)
    assert not any(vars(tensor) for tensor in (*model.parameters(), *model.buffers()))
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())
    one, other = step(model, optimizer), step(twin, twin_optimizer)
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_hooks_and_attributes_that_were_there_stay():
    model, optimizer = trained()
    calls = []
    handle = model[0].weight.register_hook(lambda gradient: calls.append("hook"))
    model[0].weight.register_post_accumulate_grad_hook(lambda parameter: calls.append("after"))
    model[0].weight.mine = "mine"
    with evolve.transaction(model, optimizer) as change:
        handle.remove()
        model[0].weight.register_hook(lambda gradient: calls.append("another"))
        model[0].weight._post_accumulate_grad_hooks = None
        del model[0].weight.mine
        change.rollback()
    step(model, optimizer)
    assert calls == ["hook", "after"]
    assert model[0].weight.mine == "mine"
    handle.remove()
    model[3].weight.register_post_accumulate_grad_hook(lambda parameter: calls.append("third"))
    step(model, optimizer)
    assert calls[2:] == ["third", "after"]


def test_a_forward_that_hooks_its_weights_leaves_none_behind():
    class Hooking(nn.Linear):
        def forward(self, x):
            if self.weight.requires_grad:
                self.weight.register_hook(lambda gradient: gradient * 2)
            return super().forward(x)

    model = Hooking(6, 3)
    with undisturbed(model):
        model(X)
    assert model.weight._backward_hooks is None


def _settings():
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled),
        "grad": torch.is_grad_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "anomaly": torch.is_anomaly_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "hooks": dict(nn.modules.module._global_forward_hooks),
        "filters": list(warnings.filters),
        "logging": (logging.root.manager.disable, logging.root.level),
    }


CHANGES = {
    "default dtype": lambda m, o: torch.set_default_dtype(torch.float64),
    "default device": lambda m, o: torch.set_default_device("meta"),
    "deterministic": lambda m, o: torch.use_deterministic_algorithms(True, warn_only=True),
    "precision": lambda m, o: torch.set_float32_matmul_precision("medium"),
    "cudnn": lambda m, o: setattr(torch.backends.cudnn, "benchmark", True),
    "grad mode": lambda m, o: torch.set_grad_enabled(False),
    "autocast": lambda m, o: (torch.set_autocast_enabled("cpu", True), torch.set_autocast_dtype("cpu", torch.float16)),
    "anomaly": lambda m, o: torch.autograd.set_detect_anomaly(True),
    "fast path": lambda m, o: torch.backends.mha.set_fastpath_enabled(False),
    "global hook": lambda m, o: nn.modules.module.register_module_forward_hook(lambda *_: None),
    "warnings": lambda m, o: warnings.simplefilter("error"),
    "logging": lambda m, o: (logging.disable(logging.CRITICAL), logging.root.setLevel(1)),
}


@pytest.mark.parametrize("error", [None, RuntimeError("mine"), SystemExit(3)], ids=["declines", "fails", "exits"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_settings_of_the_process_are_as_before(declining, change, error):
    register, _ = declining
    register(change, error)
    model, _ = trained()
    before = _settings()
    try:
        answer = evolve.mutate(model, "touching", site="0", example_inputs=X)
        after = _settings()
    finally:  # whatever happens, the other tests go on as they began
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        logging.disable(logging.NOTSET)
    assert not answer
    assert after == before


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError])
def test_whatever_ends_an_operator_everything_goes_back(declining, kind):
    register, _ = declining
    model, optimizer = trained()
    register(lambda m, o: m[0].weight.data.zero_(), kind("mine"))
    before = fingerprint(model, optimizer)
    if kind is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt, match="mine"):
            evolve.mutate(model, "touching", site="0", optimizer=optimizer, example_inputs=X)
    else:
        answer = evolve.mutate(model, "touching", site="0", optimizer=optimizer, example_inputs=X)
        assert answer.status == "failed"
        assert kind.__name__ in answer.message
        assert f"{kind.__name__}: mine" in answer.record.traceback
    assert fingerprint(model, optimizer) == before
