"""Exports evolved models as plain PyTorch and loads them where evolve cannot be imported.

Each model is mutated at random, its weights are moved a little, so that no gate is zero, and it is exported. One fresh
interpreter without evolve then loads them all: max|Δ| of the outputs against the evolved model, a training step, and
`torch.jit.script` where the base model can be scripted. ruff looks at all sources. The same models go to ONNX and are
run by onnxruntime; those of transformers go through `from_pretrained` too.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import evolve
from evolve.export.base import Base, base_by_name
from evolve.export.graphs import write_onnx
from evolve.export.huggingface import write_huggingface
from evolve.export.python import write_python
from evolve.mutation.api import MutationResult
from evolve.operators import operators
from evolve.structure.inputs import as_inputs
from evolve.structure.outputs import output_tensors
from evolve.testing import zoo
from evolve.testing.zoo import ZOO

OPTIONS: dict[str, dict[str, Any]] = {"remove": {"preserves": "no"}, "widen": {"factor": 1.5}}
LLAMA = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "head": "CausalLM"},
}
BERT = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "max_position_embeddings": 32, "head": "SequenceClassification", "num_labels": 3},
}
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...] | None]] = {
    "simple_cnn": ("simple_cnn", {}, (3, 32, 32)),
    "small_resnet": ("small_resnet", {}, (3, 32, 32)),
    "unet": ("unet", {}, (3, 32, 32)),
    "mlp": ("mlp", {"in_features": 12, "hidden": [16, 16], "num_classes": 3}, (12,)),
    "gpt": ("gpt", {"width": 32, "depth": 2, "context": 16, "vocab_size": 64}, None),
    "resnet18": ("torchvision:resnet18", {"num_classes": 10}, (3, 64, 64)),
    "mobilenet_v3": ("torchvision:mobilenet_v3_small", {"num_classes": 10}, (3, 64, 64)),
    "convnext_tiny": ("torchvision:convnext_tiny", {"num_classes": 10}, (3, 64, 64)),
    "vit_b": ("torchvision:vit_b_16", {"num_classes": 10, "image_size": 32}, (3, 32, 32)),
    "timm vit_tiny": ("timm:vit_tiny_patch16_224", {"img_size": 32, "num_classes": 10}, (3, 32, 32)),
    "llama": ("huggingface:llama", LLAMA, None),
    "bert": ("huggingface:bert", BERT, None),
}

CHILD = """
import importlib.util, json, sys, traceback
from pathlib import Path

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "evolve":
            raise ModuleNotFoundError("evolve is not here")

sys.meta_path.insert(0, Blocked())
import torch
torch.set_num_threads(1)

def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for item in value.values() for t in tensors(item)]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors(item)]
    return [t for item in vars(value).values() for t in tensors(item)] if hasattr(value, "__dict__") else []

def try_one(folder):
    spec = importlib.util.spec_from_file_location("model_" + folder.name, folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    model = module.load(folder)
    saved = torch.load(folder.parent / (folder.name + ".pt"))
    with torch.no_grad():
        after = tensors(model(*saved["args"], **saved["kwargs"]))
    assert [t.shape for t in after] == [t.shape for t in saved["outputs"]]
    delta = max((float((a.double() - b.double()).abs().max()) for a, b in zip(after, saved["outputs"])), default=0.0)
    scale = max((float(b.double().abs().max()) for b in saved["outputs"]), default=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    outputs = [t for t in tensors(model(*saved["args"], **saved["kwargs"])) if t.requires_grad]
    sum(t.double().square().mean() for t in outputs).backward()
    optimizer.step()
    moved = sum(not torch.equal(before[name], p) for name, p in model.named_parameters())
    script = None
    if saved["scriptable"]:
        try:
            torch.jit.script(module.load(folder))
            script = "scripted"
        except Exception as error:
            script = "not scripted: " + " ".join(str(error).split())[:100]
    return {"delta": delta, "scale": scale, "moved": moved, "script": script}

results = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    if not (folder / "model.py").is_file():
        continue
    try:
        results[folder.name] = try_one(folder)
    except Exception:
        results[folder.name] = {"error": traceback.format_exc(limit=3)}
print("RESULT" + json.dumps(results))
"""


def random_mutations(model: nn.Module, inputs: Any, count: int, seed: int) -> list[MutationResult]:
    """Makes `count` mutations of random operators at random sites, where so many apply."""
    draw = random.Random(seed)
    made: list[MutationResult] = []
    for _ in range(12 * count):
        if len(made) == count:
            break
        name = draw.choice(sorted(name for name in operators if name not in ("shrink_perturb", "reinit")))
        options = OPTIONS.get(name, {})
        with contextlib.suppress(evolve.errors.EvolveError):
            places = evolve.sites(model, name, example_inputs=inputs, **options)
            if places:
                result = evolve.mutate(
                    model, name, site=draw.choice(places), example_inputs=inputs, seed=seed, **options
                )
                made += [result] if result.success else []
    return made


def awaken(model: nn.Module, seed: int = 1) -> None:
    """Moves all weights a little, so that no gate is zero and a block left out would be seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                parameter.add_(noise, alpha=0.02 if parameter.dim() else 0.3)


def scriptable(model: nn.Module) -> bool:
    """Whether torch.jit can compile the base model."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(model)
    except (RuntimeError, TypeError, ValueError, OSError, torch.jit.frontend.FrontendError):
        return False
    return True


def zoo_subjects(folder: Path) -> dict[str, tuple[Callable[[], Base | None], Callable[[], Any], str]]:
    """The zoo's models from a package of their own, as a user's would be."""
    package = folder / "zoo_models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    source = Path(zoo.__file__).parent
    for name in ("images", "tokens", "vectors", "returns"):
        shutil.copy(source / f"{name}.py", package)
    sys.path.insert(0, str(folder))
    found = {}
    for name, subject in ZOO.items():
        module = getattr(subject.build, "__module__", "").rpartition(".")[2]
        if isinstance(subject.build, type):
            path = f"zoo_models.{module}:{subject.build.__name__}"
            found[name] = (lambda path=path: base_by_name(path, {}), subject.inputs, name)
    return found


class Sweep:
    """Exports, and what the fresh interpreter found."""

    def __init__(self, folder: Path, onnx: bool) -> None:
        self.folder, self.onnx = folder, onnx
        self.rows: dict[str, dict[str, Any]] = {}
        (folder / "exports").mkdir()

    def add(self, name: str, model: nn.Module, base: Base | None, example: Any, script: bool) -> None:
        """Exports one evolved model."""
        row: dict[str, Any] = {}
        key = f"m{len(self.rows):03d}"
        self.rows[key] = {"name": name, **row}
        target = self.folder / "exports" / key
        target.mkdir()
        inputs = as_inputs(model.eval(), example)
        start = time.perf_counter()
        try:
            write_python(model, target, base, inputs)
        except evolve.errors.EvolveError as error:
            (target / "model.py").unlink(missing_ok=True)
            self.rows[key]["refused"] = str(error)
            return
        self.rows[key]["seconds"] = time.perf_counter() - start
        with torch.no_grad():
            outputs = output_tensors(model(*inputs.args, **inputs.kwargs))
        torch.save(
            {"args": inputs.args, "kwargs": dict(inputs.kwargs), "outputs": outputs, "scriptable": script},
            self.folder / "exports" / f"{key}.pt",
        )
        if self.onnx:
            try:
                self.rows[key]["onnx"] = write_onnx(model, target / "model.onnx", inputs)
            except Exception as error:
                self.rows[key]["onnx_error"] = f"{type(error).__name__}: {error}"[:300]

    def finish(self) -> None:
        """Loads all of them in one interpreter without evolve, and lints."""
        command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(self.folder)!r})\n{CHILD}"]
        done = subprocess.run(
            [*command, str(self.folder / "exports")],
            check=False,
            capture_output=True,
            text=True,
            cwd="/",
            env={"PATH": "/usr/bin"},
        )
        if "RESULT" not in done.stdout:
            raise SystemExit(done.stderr)
        for key, found in json.loads(done.stdout.rpartition("RESULT")[2]).items():
            self.rows[key].update(found)
        for key, row in self.rows.items():
            path = self.folder / "exports" / key / "model.py"
            if path.is_file():
                lint = subprocess.run(
                    ["ruff", "check", "--isolated", "--quiet", str(path)], check=False, capture_output=True, text=True
                )
                row["lint"] = lint.stdout.strip()

    def report(self) -> None:
        """Prints a line for each model, and a total."""
        good = 0
        for row in self.rows.values():
            fine = is_good(row)
            good += fine
            if "refused" in row:
                print(f"{row['name']:28} REFUSED {row['refused']}")
            elif "error" in row:
                print(f"{row['name']:28} FAILED {row['error']}")
            else:
                onnx = f" onnx {row['onnx']:.1e}" if "onnx" in row else f" onnx: {row.get('onnx_error', 'not tried')}"
                lint = f" LINT {row['lint']}" if row["lint"] else ""
                scripted = f" {row['script']}" if row["script"] else ""
                print(
                    f"{row['name']:28} max|Δ| {row['delta']:.1e} of {row['scale']:.1e}, {row['moved']} parameters "
                    f"trained, {row['seconds']:.1f} s{scripted}{onnx}{lint}{'' if fine else '  WRONG'}"
                )
        able = [row for row in self.rows.values() if row.get("script")]
        print(f"{sum(row['script'] == 'scripted' for row in able)} of {len(able)} scripted, whose base model can be")
        if self.onnx:
            print(f"{sum('onnx' in row for row in self.rows.values())} of {len(self.rows)} the same in onnxruntime")
        print(f"{good} of {len(self.rows)}: max|Δ| <= 1e-6, trained a step, nothing found by ruff")


def is_good(row: dict[str, Any]) -> bool:
    """Whether an export does all it has to."""
    if "delta" not in row:
        return False
    return bool(row["delta"] <= 1e-6 * max(1.0, row["scale"]) and row["moved"] > 0 and not row["lint"])


def example_for(name: str, shape: tuple[int, ...] | None) -> Any:
    """A batch of two."""
    generator = torch.Generator().manual_seed(0)
    if shape is not None:
        return torch.randn(2, *shape, generator=generator)
    tokens: Tensor = torch.randint(3, 60, (2, 12), generator=generator)
    return {"input_ids": tokens} if name.startswith("huggingface") else tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--mutations", type=int, default=5)
    parser.add_argument("--zoo", type=int, default=100, help="random sequences over the zoo")
    parser.add_argument("--onnx", action="store_true")
    parser.add_argument("--keep", type=Path, help="keep the exports in this folder")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="evolve-export-"))
    folder.mkdir(exist_ok=True)
    sweep = Sweep(folder, arguments.onnx)
    for name, (builder, options, shape) in MODELS.items():
        if arguments.only not in name:
            continue
        torch.manual_seed(0)
        model = evolve.build_model(builder, **options)
        example = example_for(builder, shape)
        script = scriptable(copy.deepcopy(model))
        made = random_mutations(model, example, arguments.mutations, seed=len(name))
        awaken(model)
        told = ", ".join(f"{result.record.operator} {result.record.site}" for result in made)
        print(f"{name}: {told}", file=sys.stderr, flush=True)
        base = base_by_name(builder, options)
        sweep.add(name, model, base, example, script)
        if builder.startswith("huggingface") and base is not None:
            records, inputs = [result.record for result in made], as_inputs(model, example)
            delta = write_huggingface(model, folder / name, records, base.model.config, inputs)
            print(f"{name:28} max|Δ| {delta:.1e} by from_pretrained", flush=True)
    if arguments.only in "zoo":
        subjects = zoo_subjects(folder)
        names = sorted(subjects)
        for number in range(arguments.zoo):
            name = names[number % len(names)]
            build, inputs, _ = subjects[name]
            torch.manual_seed(number)
            base = build()
            model, example = copy.deepcopy(base.model), inputs()
            script = scriptable(copy.deepcopy(model))
            made = random_mutations(model, example, 1 + number % 7, seed=number)
            awaken(model, number)
            print(
                f"zoo {name} {number}: {[(r.record.operator, r.record.site) for r in made]}",
                file=sys.stderr,
                flush=True,
            )
            sweep.add(f"zoo {name} {number}", model, base, example, script)
    sweep.finish()
    sweep.report()
    if arguments.keep is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
