"""What `structure.shortcuts` works out is what fake tensors find out, shape, type and strides."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from evolve.structure.tracing.fake_kernels import Shortcuts


class Compare(TorchDispatchMode):
    """Runs every operation both ways."""

    def __init__(self, fake):
        super().__init__()
        self.shortcuts, self.taken = Shortcuts(fake), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        short = self.shortcuts.take(func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        if short is not None:
            self.taken.add(func._overloadpacket.__name__)
            pairs = zip(short, out, strict=True) if isinstance(out, (tuple, list)) else [(short, out)]
            for mine, theirs in pairs:
                assert isinstance(mine, FakeTensor)
                assert (mine.shape, mine.dtype, mine.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
                assert mine.device == theirs.device
        return out


class Net(nn.Module):
    def __init__(self, dims):
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
        self.one, self.norm = conv(4, 6, 3, stride=2, padding=1, bias=False), norm(6)
        self.two = conv(6, 6, 5, padding=4, dilation=2, groups=3)
        self.bare = norm(12, affine=False, track_running_stats=False)

    def forward(self, x):
        y = torch.relu(self.norm(self.one(x)))
        y = y + self.two(y)
        return self.bare(torch.cat([y, nn.functional.relu(y, inplace=True)], dim=1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutional_networks(dims, training, dtype):
    fake = FakeTensorMode()
    torch.set_default_dtype(dtype)
    try:
        with fake:
            model, x = Net(dims).train(training), torch.randn(2, 4, *[9, 8, 10][:dims])
    finally:
        torch.set_default_dtype(torch.float32)
    compare = Compare(fake)
    with torch.no_grad(), fake, compare:
        model(x)
    assert {"convolution", "native_batch_norm", "relu", "relu_", "add", "cat", "empty"} <= compare.taken


def test_the_unusual_goes_the_long_way():
    fake = FakeTensorMode()
    take = Shortcuts(fake).take
    with fake:
        x, y = torch.randn(2, 4, 6, 6), torch.randn(2, 1, 6, 6)
        last = x.to(memory_format=torch.channels_last)
    add, cat, relu = torch.ops.aten.add.Tensor, torch.ops.aten.cat.default, torch.ops.aten.relu.default
    assert take(add, (x, y), {}) is None  # broadcast
    assert take(add, (x, x.double()), {}) is None
    assert take(add, (x, x), {"alpha": 2}) is None
    assert take(cat, ([x, y], 0), {}) is None  # does not fit: running it says so
    assert take(relu, (last,), {}) is None
    assert take(torch.ops.aten.empty.memory_format, ([3],), {"dtype": torch.uint8}) is None
    assert take(torch.ops.aten.gelu.default, (x,), {}) is None
    assert take(relu, (x,), {}).shape == x.shape
