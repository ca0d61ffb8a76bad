"""A training step of a mutated model over one of the same architecture written by hand, and what exports of it compute.

The model written by hand gets the mutated one's weights, and has to compute the same before anything is timed. The arms
take turns, a block of steps each. A second copy of the model written by hand is a control: its ratio shows what the
machine's noise does.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timing import Took, arguments, machine, ratios, seconds, spread, taking_turns, told, write_json
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer, mobilenet_v2

from evolve import mutate
from evolve.models.simple_cnn import SimpleCNN
from evolve.models.small_resnet import SmallResNet

Changes = list[tuple[str, str, dict[str, Any]]]
BLOCKS: Changes = [
    ("swap", "stem.2", {"to": "silu"}),
    ("residual", "stage1", {}),
    ("deepen", "stage2", {"block": "basic"}),
    ("branch", "stage2", {}),
    ("residual", "stage3", {}),
    ("attention", "stage3", {"kind": "squeeze_excite"}),
]
NAMES = {  # what the inserted parts are called in the model written by hand
    "evolved.swap_0.gate": "gate0",
    "evolved.residual_0.gate": "gate1",
    "evolved.deepen_0.": "deep_",
    "evolved.branch_0.": "branch_",
    "evolved.residual_1.": "shortcut_",
    "evolved.attention_0.": "se_",
}


class WithBlocks(SmallResNet):
    """The small ResNet with what `BLOCKS` inserts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate0, self.gate1 = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.deep_conv1, self.deep_norm1 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.deep_conv2, self.deep_norm2 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.branch_conv1 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.branch_norm1 = nn.BatchNorm2d(32)
        self.shortcut_conv, self.shortcut_norm = nn.Conv2d(32, 64, 1, stride=2), nn.BatchNorm2d(64)
        self.se_squeeze, self.se_excite = nn.Linear(64, 16), nn.Linear(16, 64)
        self.se_gate = nn.Parameter(torch.zeros(()))
        self.stem[2] = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Returns class scores."""
        x = self.stem[1](self.stem[0](images))
        out = F.relu(x)
        x = out + self.gate0 * (F.silu(x) - out)
        x = self.stage1(x) + self.gate1 * x
        y = self.stage2(x)
        y = y + self.deep_norm2(self.deep_conv2(F.relu(self.deep_norm1(self.deep_conv1(y)))))
        y = y + self.branch_norm1(self.branch_conv1(x))
        z = self.stage3(y) + self.shortcut_norm(self.shortcut_conv(y))
        weight = torch.sigmoid(self.se_excite(F.silu(self.se_squeeze(z.mean((2, 3))))))
        z = z + self.se_gate * (z * weight[:, :, None, None])
        scores: Tensor = self.fc(self.pool(z).flatten(1))
        return scores


class LargeKernels(SimpleCNN):
    """The simple CNN with kernels of 5."""

    def __init__(self) -> None:
        super().__init__()
        for index, (inputs, outputs) in {0: (3, 32), 4: (32, 64), 8: (64, 128)}.items():
            self.features[index] = nn.Conv2d(inputs, outputs, 5, padding=2)


def vit(mlp: int) -> nn.Module:
    """Returns a small vision transformer with so many units between the layers of its MLPs."""
    return VisionTransformer(
        image_size=32, patch_size=4, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=mlp, num_classes=10
    )


@dataclass(frozen=True)
class Case:
    """A model, what is done to it, and what comes out, written by hand."""

    name: str
    model: Callable[[], nn.Module]
    changes: Changes
    by_hand: Callable[[], nn.Module]
    batch: int = 32
    steps: int = 4  # in a block


CASES = [
    Case(
        "mobilenet_v2, everything widened x2",
        partial(mobilenet_v2, num_classes=10),
        [("widen", "*", {})],
        partial(mobilenet_v2, num_classes=10, width_mult=2.0),
        steps=1,
    ),
    Case(
        "small_resnet, everything narrowed to half",
        partial(SmallResNet, width=32),
        [("narrow", "*", {"factor": 0.5})],
        SmallResNet,
    ),
    Case(
        "vit, MLPs widened x2",
        partial(vit, 128),
        [("widen", f"encoder.layers.encoder_layer_{layer}.mlp.0", {}) for layer in range(2)],
        partial(vit, 256),
    ),
    Case(
        "simple_cnn, kernels of 5",
        SimpleCNN,
        [("kernel", f"features.{index}", {}) for index in (0, 4, 8)],
        LargeKernels,
        steps=2,
    ),
    Case("small_resnet, six blocks inserted", SmallResNet, BLOCKS, WithBlocks),
    Case("small_resnet of 8x8, six blocks inserted", SmallResNet, BLOCKS, WithBlocks, batch=8, steps=10),
    Case(
        "small_resnet, a block inserted and removed",
        SmallResNet,
        [("deepen", "stage2", {}), ("remove", "evolved.deepen_0", {"preserves": "exact"})],
        SmallResNet,
    ),
]


def mutated(case: Case, images: Tensor) -> nn.Module:
    """Returns the model after its changes, with random values where they started at zero."""
    torch.manual_seed(0)
    model = case.model()
    for operator, site, options in case.changes:
        mutate(model, operator, site=site, example_inputs=images, strict=True, seed=0, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model


def same_by_hand(case: Case, model: nn.Module, images: Tensor) -> nn.Module:
    """Returns the model written by hand with the same weights, after a look whether it computes the same."""
    state = {}
    for key, value in model.state_dict().items():
        old = next((prefix for prefix in NAMES if key.startswith(prefix)), "")
        state[NAMES[old] + key.removeprefix(old) if old else key] = value
    twin = case.by_hand().eval()
    twin.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(model(images), twin(images), rtol=1e-4, atol=1e-4)
    return twin


def trainer(model: nn.Module, images: Tensor, targets: Tensor, steps: int) -> Callable[[], Took]:
    """Returns what trains a model for a block of steps and tells the seconds."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-4, momentum=0.9)

    def block() -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), targets).backward()
            optimizer.step()

    return lambda: seconds(block)


def measure(case: Case, repetitions: int) -> dict[str, Any]:
    """Times the blocks of one case and returns its figures."""
    side = 8 if "8x8" in case.name else 32
    images, targets = torch.randn(case.batch, 3, side, side), torch.randint(10, (case.batch,))
    model = mutated(case, images).eval()
    twin = same_by_hand(case, model, images)
    models = {"ours": model, "by hand": twin, "control": copy.deepcopy(twin)}
    rounds = taking_turns({k: trainer(m, images, targets, case.steps) for k, m in models.items()}, repetitions)
    return {
        "ours_ms": spread([1000 * took["ours"].wall / case.steps for took in rounds]),
        "by_hand_ms": spread([1000 * took["by hand"].wall / case.steps for took in rounds]),
        "ratio": ratios([(took["ours"], took["by hand"]) for took in rounds]),
        "control_ratio": ratios([(took["control"], took["by hand"]) for took in rounds]),
    }


def exports() -> dict[str, float]:
    """Returns how far what is made of a much mutated model is off, relative to the largest output.

    `fullgraph` lets torch.compile fail where it would fall back to eager mode, which is what it is compared with.
    """
    images = torch.randn(4, 3, 32, 32)
    case = Case("", SmallResNet, [*BLOCKS, ("widen", "*", {}), ("kernel", "stem.0", {})], SmallResNet)
    model, growing = mutated(case, images).eval(), SmallResNet().eval()
    found = {}

    def compiled(runs: nn.Module) -> Callable[[Tensor], Tensor]:
        torch.compiler.reset()
        return torch.compile(runs, backend="inductor", fullgraph=True)

    def off(output: Tensor, runs: nn.Module) -> float:
        expected = runs(images)
        return float((output - expected).abs().max() / expected.abs().max())

    with torch.no_grad():
        for operator, site, options in case.changes:
            before = compiled(growing)
            before(images)
            mutate(growing, operator, site=site, example_inputs=images, strict=True, seed=0, **options)
            for parameter in growing.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
            found[f"torch.compile before {operator} at {site}"] = off(before(images), growing)
        found["torch.compile after all"] = off(compiled(model)(images), model)
        found["torch.export"] = off(torch.export.export(model, (images,)).module()(images), model)
        found["onnxruntime"] = off(run_onnx(model, images), model)
    return found


def run_onnx(model: nn.Module, images: Tensor) -> Tensor:
    """Exports to ONNX and runs that."""
    import onnxruntime

    stream = io.BytesIO()
    torch.onnx.export(model, (images,), dynamo=True, verbose=False).save(stream)  # type: ignore[union-attr]
    session = onnxruntime.InferenceSession(stream.getvalue())
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def main() -> None:
    """Measures every case and prints it."""
    options = arguments(__doc__.splitlines()[0], repetitions=30).parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"machine: {machine()}")
    found: list[dict[str, Any]] = []
    for case in CASES:
        if options.only in case.name:
            figures = measure(case, options.repetitions)
            found.append({"case": case.name, **figures})
            print(case.name)
            for clock in Took._fields:
                ours, control = figures["ratio"][clock], figures["control_ratio"][clock]
                print(f"  {clock:4} time: mutated/by hand {told(ours)}, control by hand/by hand {told(control)}")
            print(f"  ms a step: mutated {told(figures['ours_ms'])}, by hand {told(figures['by_hand_ms'])}", flush=True)
    if options.only in "exports":
        differences = exports()
        found.append({"case": "exports", **differences})
        print("exports: largest difference from eager, relative to the largest output")
        print("\n".join(f"  {name}: {difference:.1e}" for name, difference in differences.items()))
    write_json(options.json, "step", found)


if __name__ == "__main__":
    main()
