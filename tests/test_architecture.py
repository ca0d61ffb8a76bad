"""The house keeps its walls: which room may import which, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import evolve

ROOT = Path(evolve.__file__).parent
BASIS = {"errors", "registry"}
# What each room may import of evolve, besides BASIS and itself.
ALLOWED = {
    "errors": set(),
    "registry": set(),
    "budget": set(),
    "config": set(),
    "lineage": set(),
    "plugins": set(),
    "options": {"config"},
    "device": set(),
    "ema": {"surgery"},
    "interrupt": set(),
    "structure": set(),
    "surgery": {"structure"},
    "operators": {"surgery", "structure"},
    "limits": {"structure"},
    "snapshot": {"device", "structure", "surgery", "training"},
    "attempt": {"limits", "operators", "surgery", "structure", "lineage"},
    "mutation": {"attempt", "limits", "operators", "surgery", "structure", "lineage"},
    "models": {"config", "plugins"},
    "data": {"config", "plugins"},
    "optim": {"config"},
    "care": {"config", "ema", "mutation", "operators", "structure", "surgery"},
    "training": {"budget", "care", "config", "device", "ema", "optim", "plugins"},
    "schedules": {"budget", "config", "options"},
    "policies": {"config", "lineage", "options"},
    "scores": {"operators", "structure", "surgery"},
    "children": {"data", "mutation", "policies", "structure", "surgery", "training"},
    "situation": {"children", "data", "lineage", "policies", "scores", "structure", "training"},
    "checkpoint": {"device", "lineage", "mutation", "surgery", "training"},
    "trend": set(),
    "probation": {"config", "data", "lineage", "snapshot", "training", "trend"},
    "evolution": {
        *("care", "config", "limits", "operators", "options", "policies", "probation", "schedules"),
    },
    "rounds": {
        *("care", "children", "data", "evolution", "limits", "lineage", "mutation", "policies", "situation"),
        *("structure", "training"),
    },
    "trials": {"data", "evolution", "lineage", "probation", "rounds", "schedules", "snapshot", "training"},
    "progress": {"budget", "lineage"},
    "evolver": {
        *("care", "checkpoint", "config", "data", "device", "evolution", "interrupt", "lineage", "optim", "progress"),
        *("metrics", "run", "schedules", "structure", "training", "trials"),
        "build",  # only inside `from_config`, which hands over to the composition root
    },
    "run": {"checkpoint", "config", "structure"},
    "metrics": {"structure", "training"},
    "build": {
        *(
            "budget",
            "checkpoint",
            "config",
            "data",
            "device",
            "evolution",
            "evolver",
            "lineage",
            "models",
            "optim",
            "plugins",
        ),
        *("run", "training"),
    },
    "report": {"lineage", "mutation", "operators", "structure"},
    "testing": {"lineage", "mutation", "operators", "structure", "surgery"},
    "cli": {"budget", "build", "checkpoint", "config", "device", "evolver", "plugins", "report", "run"},
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms of evolve, and the other packages, that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module]
        for name in names:
            parts = name.split(".")
            found.add(f"evolve.{parts[1]}" if parts[0] == "evolve" and len(parts) > 1 else parts[0])
    return found


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def test_every_room_is_on_the_plan():
    assert {room_of(path) for path in FILES} <= set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path):
    room = room_of(path)
    rooms = {name.removeprefix("evolve.") for name in imports(path) if name.startswith("evolve.")}
    assert rooms - BASIS - {room} <= ALLOWED[room]


@pytest.mark.parametrize(
    "room",
    ["budget", "config", "lineage", "errors", "registry", "plugins", "options", "policies", "schedules", "trend"],
)
def test_rooms_without_torch(room):
    for path in FILES:
        if room_of(path) == room:
            assert "torch" not in imports(path), path


def test_operators_do_not_know_each_other():
    shared = {"base", "blocks", "chains", "gradmax", "regroup", "shapes", "__init__"}
    for path in (ROOT / "operators").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        others = {m.split(".")[2] for m in modules if m and m.startswith("evolve.operators.")}
        assert path.stem == "__init__" or others <= shared


def test_no_try_in_a_forward_no_eval_and_no_pickle():
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not imports(path) & {"pickle", "dill", "cloudpickle"}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "forward":
                assert not any(isinstance(inner, ast.Try) for inner in ast.walk(node)), f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, f"{path}:{node.lineno}"


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_evolve_is_cheap():
    assert not loaded_after("import evolve") & {"torch", "torchvision", "pydantic", "yaml"}
    assert not loaded_after("import evolve; evolve.mutate, evolve.Evolver") & {"torchvision", "matplotlib"}


def test_help_does_not_import_torch():
    code = "import sys\nsys.argv = ['evolve', '--help']\nfrom evolve.cli import app\napp(standalone_mode=False)"
    loaded = loaded_after(code)
    assert "typer" in loaded
    assert "torch" not in loaded


def test_importing_everything_starts_no_cuda():
    code = "import torch, evolve, evolve.loading, evolve.evolver.evolver\nassert not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_resolve():
    for name in evolve.__all__:
        assert getattr(evolve, name) is not None
    with pytest.raises(AttributeError, match="Public names"):
        evolve.mutat  # noqa: B018
