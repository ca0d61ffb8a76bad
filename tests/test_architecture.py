"""The house keeps its walls: which room may import which, and what importing costs."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import evolve

ROOT = Path(evolve.__file__).parent
BASIS = {"errors", "registry"}
# What each room may import of evolve, besides BASIS and itself. From the bottom up.
ALLOWED = {
    "errors": set(),
    "registry": set(),
    "plugins": set(),
    "budget": set(),
    "lineage": set(),
    "config": set(),
    "runtime": set(),
    "blocks": set(),
    "distributed": {"runtime"},
    "structure": {"runtime"},
    "surgery": {"structure", "runtime"},
    "operators": {"surgery", "structure", "blocks", "runtime", "lineage"},
    "mutation": {"operators", "surgery", "structure", "runtime", "lineage"},
    "schedules": {"budget", "config", "lineage"},
    "policies": {"budget", "config", "lineage"},
    "scores": {"operators", "structure", "runtime", "surgery"},
    "care": {"config", "mutation", "operators", "runtime", "structure", "surgery"},
    "data": {"config", "plugins", "runtime"},
    "models": {"config", "plugins", "runtime"},
    "tasks": {"config", "data", "plugins", "runtime"},
    "training": {
        *("budget", "care", "config", "data", "lineage", "mutation", "plugins", "runtime", "structure", "surgery"),
        *("distributed", "tasks"),
    },
    "evolver": {
        *("budget", "care", "config", "data", "lineage", "models", "mutation", "operators", "plugins", "policies"),
        *("runtime", "schedules", "scores", "structure", "surgery", "tasks", "training"),
        "distributed",
    },
    "loading": {"config", "evolver", "lineage", "models", "plugins", "population", "runtime", "training"},
    "population": {
        *("budget", "config", "data", "evolver", "lineage", "models", "mutation", "operators", "plugins", "runtime"),
        *("structure", "tasks", "training"),
    },
    "export": {
        *("blocks", "integrations", "lineage", "loading", "models", "runtime", "structure", "surgery"),
    },
    "report": {
        "config",
        "lineage",
        "mutation",
        "operators",
        "policies",
        "population",
        "runtime",
        "structure",
        "training",
    },
    "integrations": {
        *("config", "evolver", "lineage", "mutation", "runtime", "structure", "surgery", "training"),
    },
    "testing": {"lineage", "mutation", "operators", "population", "runtime", "structure", "surgery"},
    "__main__": {"cli"},
    "cli": {
        "budget",
        "config",
        "distributed",
        "lineage",
        "evolver",
        "export",
        "loading",
        "plugins",
        "population",
        "report",
        "runtime",
        "training",
    },
}
# What a file at the bottom may be imported into without a room of its own; the rest are folders.
AT_THE_ROOT = {"__init__", "__main__", "cli", "errors", "registry", "plugins", "budget", "lineage", "loading"}
WITHOUT_TORCH = {"budget", "config", "lineage", "errors", "registry", "plugins", "policies", "schedules"}
# Of the search: all that decides. It speaks of numbers and edits.
DECIDES = {
    "algorithms",
    "archive",
    "archive_rows",
    "blobs",
    "executors",
    "halving",
    "individual",
    "jobs",
    "objectives",
    "planner",
    "rates",
    "space",
}
DECIDES_FROM = {"errors", "registry", "population", "config", "lineage"}
LONGEST = 330  # lines


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def is_module(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported_modules(path: Path, tree: ast.AST | None = None) -> set[str]:
    """Dotted names of the modules that a file imports."""
    found = set()
    for node in ast.walk(tree or ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {name if is_module(name := f"{node.module}.{alias.name}") else node.module for alias in node.names}
    return found


def imports(path: Path) -> set[str]:
    """The rooms of evolve, and the other packages, that a file imports."""
    return {".".join(name.split(".")[: 2 if name.startswith("evolve.") else 1]) for name in imported_modules(path)}


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def test_every_room_is_on_the_plan():
    assert {room_of(path) for path in FILES} <= set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path):
    room = room_of(path)
    rooms = {name.removeprefix("evolve.") for name in imports(path) if name.startswith("evolve.")}
    assert rooms - BASIS - {room} <= ALLOWED[room]


@pytest.mark.parametrize("room", sorted(WITHOUT_TORCH))
def test_rooms_without_torch(room):
    for path in FILES:
        if room_of(path) == room:
            assert "torch" not in imports(path), path


def test_what_decides_in_a_search_knows_no_torch():
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] == "population" and parts[1] in DECIDES:
            assert "torch" not in imports(path), path
            rooms = {name.removeprefix("evolve.") for name in imports(path) if name.startswith("evolve.")}
            assert rooms <= DECIDES_FROM, path


def test_the_root_holds_what_has_no_room():
    assert {path.stem for path in ROOT.glob("*.py")} <= AT_THE_ROOT


def test_no_file_passes_for_a_build_script():
    # setuptools takes any frame of a file named so for one, once pip is imported, and torch.compile fails in it.
    assert not list(ROOT.rglob("*setup.py"))


def test_no_file_is_too_long():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > LONGEST} == {}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_import_goes_in_a_circle():
    names = {module_name(path): path for path in FILES}
    graph = {
        name: {found for found in imported_modules(path) if found in names} - {name} for name, path in names.items()
    }
    assert not list(circles(graph))


def circles(graph):
    """Each import circle, as a list of module names."""
    sorter = graphlib.TopologicalSorter(graph)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        yield error.args[1]


def test_circles_are_found():
    assert list(circles({"a": {"b"}, "b": {"a"}}))
    assert not list(circles({"a": {"b"}, "b": set()}))


def test_imports_inside_functions_are_of_what_is_heavy_or_optional():
    """A circle of imports could hide in a function. Only the command line imports evolve there, to be quick."""
    for path in FILES:
        if room_of(path) == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert not {m for m in imported_modules(path, node) if m.startswith("evolve")}, f"{path}:{node.lineno}"


def test_no_test_file_imports_another():
    folder = Path(__file__).parent
    tests = {path.stem for path in folder.rglob("test_*.py")}
    for path in folder.rglob("*.py"):
        assert not {name.rpartition(".")[2] for name in imported_modules(path)} & tests, path


def test_operators_do_not_know_each_other():
    shared = {"arranging", "base", "gradmax", "past", "regroup", "reinit", "shapes", "slots", "__init__"}
    shared |= {"costs", "criteria", "members", "ranking", "target"}
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
