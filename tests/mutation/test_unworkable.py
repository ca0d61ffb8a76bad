"""Models that are wrapped, sharded, exported or quantised are refused before anything is touched, with what to do."""

import copy

import pytest
import torch
import torch.distributed as dist
from helpers.fingerprints import fingerprint
from torch import nn

import evolve
from evolve.errors import NotApplicable
from evolve.structure.analysis import analyse

X = torch.linspace(-1, 1, 24).reshape(4, 6)

pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A process group of one."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("needs gloo")
    patch = pytest.MonkeyPatch()
    patch.setenv("GLOO_SOCKET_IFNAME", "lo")
    place = tmp_path_factory.mktemp("group") / "init"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    patch.undo()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def sharded():
    from torch.distributed.fsdp import fully_shard

    model = net()
    fully_shard(model[0])
    return fully_shard(model)


def sharded_inside():
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(net(), nn.Linear(3, 3))
    fully_shard(model[0][2])
    return model


def tensor_parallel():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    return parallelize_module(net(), init_device_mesh("cpu", (1,)), {"0": ColwiseParallel()})


def flat():
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(net(), device_id=torch.device("cpu"), use_orig_params=True)


def replicated():
    from torch.distributed._composable import replicate

    return replicate(net())


def ddp():
    return nn.parallel.DistributedDataParallel(net())


class TrainingEngine(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = net()

    def forward(self, x):
        return self.module(x)


def partitioned():
    model = net()
    model[0].weight.ds_id = 3
    return model


def inside(build):
    return lambda: nn.Sequential(nn.Identity(), build())


def exported():
    return torch.export.export(net(), (X,)).module()


SHARD = "before it is sharded"
UNWRAP = r"Mutate the model inside \(`.module`\)"
DISTRIBUTED = {
    "fully_shard": (sharded, SHARD),
    "fully_shard inside": (sharded_inside, SHARD),
    "tensor parallel": (tensor_parallel, SHARD),
    "FSDP": (flat, SHARD),
    "FSDP inside": (inside(flat), SHARD),
    "replicate": (replicated, "then call `replicate`"),
    "DDP": (ddp, UNWRAP),
    "DDP inside": (inside(ddp), UNWRAP),
}
ALONE = {
    "DataParallel": (lambda: nn.DataParallel(net()), UNWRAP),
    "DataParallel inside": (inside(lambda: nn.DataParallel(net())), UNWRAP),
    "an engine": (TrainingEngine, UNWRAP),
    "an engine inside": (inside(TrainingEngine), UNWRAP),
    "ZeRO stage 3": (partitioned, SHARD),
    "exported": (exported, "export it again"),
    "exported inside": (inside(exported), "export it again"),
}


def ways(model):
    """Everything that looks at or changes a model."""
    record = evolve.mutate(net(), "residual", site="0", example_inputs=X).record

    def transaction():
        with evolve.transaction(model):
            raise AssertionError("it was entered")

    return {
        "sites": lambda: evolve.sites(model, "residual", example_inputs=X),
        "sites of groups": lambda: evolve.sites(model, "widen", example_inputs=X),
        "replay": lambda: evolve.replay(model, [record]),
        "transaction": transaction,
        "analyse": lambda: analyse(model, X),
    }


def check_refused(model, advice):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kinds = [(id(parameter), type(parameter)) for parameter in model.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modules = [(id(module), type(module), list(vars(module))) for module in model.modules()]
    for operator in ("residual", "widen", "deepen"):
        answer = evolve.mutate(model, operator, site="0", optimizer=optimizer, example_inputs=X)
        assert answer.status == "not_applicable"
        with pytest.raises(NotApplicable, match=advice):
            raise NotApplicable(answer.message)
    for way in ways(model).values():
        with pytest.raises(NotApplicable, match=advice):
            way()
    assert [(id(parameter), type(parameter)) for parameter in model.parameters()] == kinds
    assert [(id(module), type(module), list(vars(module))) for module in model.modules()] == modules
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(bool((after[key] == value).all()) for key, value in state.items())
    return optimizer


@pytest.mark.parametrize(("build", "advice"), DISTRIBUTED.values(), ids=DISTRIBUTED)
def test_a_distributed_model_is_refused_and_trains_on(group, build, advice):
    model = build()
    twin = build()
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    optimizers = check_refused(model, advice), torch.optim.SGD(twin.parameters(), lr=0.1)
    losses = []
    for one, optimizer in zip((model, twin), optimizers, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            loss = one(X).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(float(loss))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("build", "advice"), ALONE.values(), ids=ALONE)
def test_a_wrapped_or_exported_model_is_refused(build, advice):
    check_refused(build(), advice)


def quantised():
    return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize("operator", ["residual", "widen"])
def test_a_quantised_model_is_refused(operator):
    model = quantised()
    before = model(X)
    answer = evolve.mutate(model, operator, site="0", example_inputs=X)
    assert answer.status == "not_applicable"
    assert "Mutate the float model and quantise it again." in answer.message
    with pytest.raises(NotApplicable, match="quantise it again"):
        evolve.sites(model, operator, example_inputs=X)
    assert torch.equal(model(X), before)


def test_layers_behind_a_quantised_part_can_be_mutated():
    model = nn.Sequential(quantised(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    before = fingerprint(model)
    refused = evolve.mutate(model, "widen", site="0.4", example_inputs=X)
    assert not refused
    assert fingerprint(model) == before
    assert evolve.mutate(model, "residual", site="1", example_inputs=X)
