"""The text of an exported `model.py`."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import ModuleType

from torch import nn

from evolve.export import plain, plain_past
from evolve.export.source import WIDTH, Call, is_name

WEIGHTS = "model.safetensors"
BUFFERS = "buffers.safetensors"  # what the model computes when it is made, where mutations changed it
_BASES = {"AroundThen": "Around", "AroundBlend": "Around", "AroundBeside": "Around"}
# What the text may use, and how it is imported.
_NAMES = {
    "Sequence": "from collections.abc import Sequence",
    "Path": "from pathlib import Path",
    "Any": "from typing import Any",
    "copy": "import copy",
    "torch": "import torch",
    "load_file": "from safetensors.torch import load_file",
    "load_model": "from safetensors.torch import load_model",
    "Tensor": "from torch import Tensor",
    "nn": "from torch import nn",
    "F": "from torch.nn import functional as F",
}


@dataclass
class ModuleFile:
    """What `model.py` is made of.

    Attributes:
        title: First line of its docstring.
        result: The expression that builds the model, before the statements.
        imports: Pairs of a module and a name in it, or "" for the module itself.
        classes: The built-in models' classes that the source uses.
        needs: Plain classes that it uses.
        statements: What changes the model once it is built.
        buffers: Statements that set buffers of a file of their own, `buffers`.
    """

    title: str
    result: Call
    imports: Sequence[tuple[str, str]] = ()
    classes: dict[str, type[nn.Module]] = field(default_factory=dict)
    needs: set[str] = field(default_factory=set)
    statements: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Returns the source."""
        body = [*self._plain(), *self._built_in(), self._build(), self._load()]
        code = "\n\n\n".join(part.strip("\n") for part in body) + "\n"
        docstring = f'"""{self.title}\n\n`load()` gives it with its weights.\n"""'
        return f"{docstring}\n\n{self._imports(code)}\n\n\n{code}"

    def _plain(self) -> list[str]:
        wanted = self.needs | {_BASES[name] for name in self.needs if name in _BASES}
        order = [*vars(plain), *vars(plain_past)]
        classes = {**vars(plain), **vars(plain_past)}
        return [inspect.getsource(classes[name]) for name in dict.fromkeys(order) if name in wanted]

    def _built_in(self) -> list[str]:
        return [self._class(cls) for cls in reversed(self.classes.values())]

    def _class(self, cls: type[nn.Module]) -> str:
        """A class of the built-in models: its forward, and a constructor that takes its parts or has them."""
        used = [each for each in _calls(self.result) if each.function == cls.__name__]
        first = dict(used[0].arguments or ())
        lines = [f"class {cls.__name__}(nn.Module):", f'    """{_summary(cls)}"""', ""]
        if used[0] is self.result:
            lines += ["    def __init__(self) -> None:", "        super().__init__()"]
            for name, value in first.items():
                target = f"self.{name} = "
                text = value if isinstance(value, str) else value.text(8, len(target))
                lines.append(f"        {target}{text}")
        else:
            typed = [f"{name}: {_kind(value)}" for name, value in first.items()]
            head = f"    def __init__(self, {', '.join(typed)}) -> None:"
            if len(head) > WIDTH:
                head = "\n".join(["    def __init__(", f"        self, {', '.join(typed)}", "    ) -> None:"])
            lines += [head, "        super().__init__()", *(f"        self.{name} = {name}" for name in first)]
        forward = textwrap.dedent(inspect.getsource(cls.forward)).replace("EvolveError", "ValueError")
        return "\n".join([*lines, "", textwrap.indent(forward, "    ")])

    def _build(self) -> str:
        result = self.result
        if result.function in self.classes and result.arguments:
            result = Call(result.function)
        lines = ["def build() -> nn.Module:", '    """Returns the architecture, its weights drawn anew."""']
        if self.statements:
            lines += [
                f"    model = {result.text(4, 8)}",
                *(f"    {line}" for line in self.statements),
                "    return model",
            ]
        else:
            lines.append(f"    return {result.text(4, 7)}")
        return "\n".join(lines)

    def _load(self) -> str:
        lines = [
            "def load(folder: str | Path = Path(__file__).parent) -> nn.Module:",
            '    """Returns the model with the weights in a folder, on the CPU and in eval mode."""',
            "    model = build()",
            f'    load_model(model, Path(folder) / "{WEIGHTS}")',
        ]
        if self.buffers:
            lines.append(f'    buffers = load_file(Path(folder) / "{BUFFERS}")')
            lines += [f"    {line}" for line in self.buffers]
        return "\n".join([*lines, "    return model.eval()"])

    def _imports(self, code: str) -> str:
        used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
        lines = {line for name, line in _NAMES.items() if name in used}
        if {"Tensor", "nn"} <= used:
            lines = {line for line in lines if not line.startswith("from torch import")} | {
                "from torch import Tensor, nn"
            }
        by_module: dict[str, set[str]] = {}
        for module, name in self.imports:
            by_module.setdefault(module, set()).add(name)
        for module, names in by_module.items():
            if "" in names:
                lines.add(f"import {module}")
            if named := sorted(
                f"{name} as {other}" if (other := imported_as(name)) != name else name for name in names - {""}
            ):
                lines.add(f"from {module} import {', '.join(named)}")
        standard = {_NAMES[name] for name in ("copy", "Sequence", "Path", "Any")}
        blocks = [sorted(lines & standard, key=_order), sorted(lines - standard, key=_order)]
        return "\n\n".join("\n".join(block) for block in blocks if block)


def imported_as(name: str) -> str:
    """Returns the name that something of somebody else's has in the source, where ours may have the same."""
    ours = {*_NAMES, "build", "load", "model", *_defined(plain), *_defined(plain_past)}
    return f"Base{name}" if name in ours else name


def _defined(module: ModuleType) -> set[str]:
    return {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}


def _order(line: str) -> tuple[bool, str]:
    return line.startswith("from"), line


def _calls(call: Call) -> Iterable[Call]:
    yield call
    for _, value in call.arguments or ():
        if isinstance(value, Call):
            yield from _calls(value)


def _summary(cls: type) -> str:
    line = (inspect.getdoc(cls) or cls.__name__).partition("\n\n")[0].replace("\n", " ")
    return re.split(r"[:;] \d", line)[0].rstrip(".") + "."  # sizes at the defaults are others now


def _kind(value: Call | str) -> str:
    if isinstance(value, Call):
        return "nn.Module"
    kind = type(ast.literal_eval(value))
    return kind.__name__ if kind in (bool, int, float, str, list, tuple) else "object"


def module_name(cls: type) -> str:
    """Returns the name of a class, where it can stand in a docstring."""
    return cls.__name__ if is_name(cls.__name__) else "Model"
