"""YAML in, with the line of every value, without PyYAML's traps, and out again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from evolve.config.faults import Fault, KeyPath, Place

Places = dict[KeyPath, Place]

_NUMBER = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?")
_OCTAL = re.compile(r"[-+]?0\d[\d_]*")


class _Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2: `1e-3` is a number; `on`, `yes`, `1:30` and dates are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - declared so by PyYAML


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read back as text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - declared so by PyYAML


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), None)
    _kind.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), None)
    _kind.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d[\d_]*$"), None)
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(rf"^({_NUMBER.pattern}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"), None
    )
    _kind.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), None)


_READERS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text.replace("_", "")),
    "float": lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.replace("_", "").lower())),
    "str": lambda text: text,
}


class _Reader:
    """Turns YAML nodes into plain values, noting places and faults."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.places: Places = {}
        self.faults: list[Fault] = []
        self._open: list[yaml.Node] = []

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.places[path] = Place(self.file, node.start_mark.line + 1)
        if any(node is outer for outer in self._open):
            return self._fault(node, path, "an alias refers to what it lies in; write the value out.")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                parts = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for part in parts:
                    read = self.value(part, path)
                    merged = {**(read if isinstance(read, dict) else {}), **merged}
                continue
            if key_node.tag != "tag:yaml.org,2002:str":
                found = getattr(key_node, "value", "a list or mapping")
                self._fault(key_node, path, f"the key {found!s:.40} is no text; write it in quotes or choose a name.")
                continue
            key = key_node.value
            if key in lines:
                self._fault(key_node, (*path, key), f"the key stands here and in line {lines[key]}; keep one.")
                continue
            lines[key] = line
            inner = (*path, key)
            result[key] = self.value(value_node, inner)
            self.places[inner] = Place(self.file, line)
        return {**merged, **result}

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        text = str(node.value)
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "int" and _OCTAL.fullmatch(text):
            plain = text.replace("_", "").lstrip("+-").lstrip("0") or "0"
            message = f"{text} could mean {plain} or an octal number; write {plain}, or '{text}' for text."
            return self._fault(node, path, message)
        if kind not in _READERS:
            return self._fault(node, path, f"the tag {node.tag} is not allowed; only plain YAML values are.")
        return _READERS[kind](text)

    def _fault(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.faults.append(Fault(path, Place(self.file, node.start_mark.line + 1), message))


def load_yaml(path: str | Path) -> tuple[dict[str, Any], Places, list[Fault]]:
    """Reads a YAML file.

    Returns:
        The values, where each was written, and the faults: a file that cannot be read at all gives an empty mapping
        and one fault.
    """
    file = Path(path)
    whole = Place(str(path))
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        near = sorted(file.parent.glob("*.y*ml")) if file.parent.is_dir() else []
        have = f" In that folder: {', '.join(p.name for p in near[:8])}." if near else ""
        return {}, {}, [Fault((), whole, f"there is no such file.{have}")]
    except IsADirectoryError:
        return {}, {}, [Fault((), whole, "is a folder; give a YAML file in it.")]
    except OSError as error:
        return {}, {}, [Fault((), whole, f"cannot be read: {error.strerror}.")]
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        message = f"byte {error.start} (0x{byte:02x}) is not UTF-8; save the file as UTF-8."
        return {}, {}, [Fault((), Place(str(path), line), message)]
    return parse_yaml(text, str(path))


def parse_yaml(text: str, file: str) -> tuple[dict[str, Any], Places, list[Fault]]:
    """Reads YAML text; `file` is what faults call it. Returns as `load_yaml`."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        problem = error.problem or "is no YAML"
        if "'\\t'" in problem or (mark and _starts_with_tab(text, mark.line)):
            problem = "a tab stands where YAML wants spaces; indent with spaces"
        return {}, {}, [Fault((), Place(file, line), f"{problem}.")]
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        return {}, {}, [Fault((), Place(file, line), f"the character {error.character!r} is not allowed in YAML.")]
    if node is None:
        return {}, {}, [Fault((), Place(file), "is empty; a run needs at least 'model' and 'data'.")]
    reader = _Reader(file)
    value = reader.value(node, ())
    if not isinstance(value, dict):
        return {}, {}, [Fault((), Place(file, 1), f"has to be a mapping such as 'model: ...'; found {value!r:.60}.")]
    return value, reader.places, reader.faults


def _starts_with_tab(text: str, line: int) -> bool:
    lines = text.split("\n")
    return any("\t" in entry[: len(entry) - len(entry.lstrip())] for entry in lines[max(0, line - 1) : line + 1])


def dump_yaml(config: BaseModel) -> str:
    """Returns a configuration with all its defaults as YAML that reads back as an equal one."""
    data = config.model_dump(mode="json")
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
