"""YAML in, with the line of every value and every fault of the text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from evolve.config.dialect import PREFIX, READERS, Loader
from evolve.config.faults import Fault, KeyPath, Place

Places = dict[KeyPath, Place]

_OCTAL = re.compile(r"[-+]?0[\d_]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Far above any configuration; below them a handful of aliases can still stand for more values than memory holds.
_MOST_VALUES = 100_000
_DEEPEST = 50
# PyYAML takes a minute for two million bytes, and seconds for a hundred thousand values.
_MOST_BYTES = 256 * 1024
_MOST_NODES = 20_000


_TOO_LONG = f"is longer than {_MOST_BYTES // 1024} KiB, which no configuration is. Is it the right file?"
_TOO_DEEP = f"is nested deeper than {_DEEPEST} levels; flatten it."


class _TooLargeError(Exception):
    """More values than a configuration can have."""


class _Composer(Loader):
    """Makes the tree of a text, but for one that is no configuration."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        if self._nodes > _MOST_NODES:
            raise _TooLargeError(f"holds more than {_MOST_NODES} keys and values, too many for a configuration.")
        if self._depth > 2 * _DEEPEST:
            raise _TooLargeError(_TOO_DEEP)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Reader:
    """Turns YAML nodes into plain values, noting places and faults."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.places: Places = {}
        self.faults: list[Fault] = []
        self._open: list[yaml.Node] = []
        self._values = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.places[path] = Place(self.file, node.start_mark.line + 1)
        self._values += 1
        if self._values > _MOST_VALUES:
            raise _TooLargeError(f"expands to more than {_MOST_VALUES} values by aliases or lists; shorten it.")
        if any(node is outer for outer in self._open):
            return self._fault(node, path, "this alias refers to a value that contains it; write the value out.")
        if len(self._open) > _DEEPEST:
            raise _TooLargeError(_TOO_DEEP)
        self._open.append(node)
        try:
            if isinstance(node, yaml.ScalarNode):
                return self._scalar(node, path)
            if node.tag not in (PREFIX + "map", PREFIX + "seq"):
                return self._foreign(node, path)
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result = self._merged(node, path)
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == PREFIX + "merge":
                continue
            if key_node.tag != PREFIX + "str":
                found = key_node.value if isinstance(key_node, yaml.ScalarNode) else "(a list or mapping)"
                self._fault(key_node, path, f"the key {found!s:.40} is not text; quote it or choose another name.")
                continue
            key = key_node.value
            if key in lines:
                self._fault(key_node, (*path, key), f"this key is already set in line {lines[key]}; keep one of them.")
                continue
            lines[key] = line
            inner = (*path, key)
            result[key] = self.value(value_node, inner)
            self.places[inner] = Place(self.file, line)
        return result

    def _merged(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        """What `<<` brings in; the last part is read first and own keys come later, so the winner's place stays."""
        parts: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == PREFIX + "merge":
                parts += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
        result: dict[str, Any] = {}
        for part in reversed(parts):
            if isinstance(part, yaml.MappingNode):
                result.update(self.value(part, path) or {})
            else:
                self._fault(part, path, "'<<' merges a mapping or a list of mappings; this is neither.")
        return result

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text = str(node.value)
        kind = node.tag.removeprefix(PREFIX)
        if kind not in READERS:
            return self._foreign(node, path)
        if kind == "int" and _OCTAL.fullmatch(text):
            plain = text.replace("_", "").lstrip("+-").lstrip("0") or "0"
            message = f"{text} could mean {plain} or an octal number; write {plain}, or '{text}' for text."
            return self._fault(node, path, message)
        if _SURROGATE.search(text):
            return self._fault(node, path, f"{text!r:.40} contains half of a surrogate pair; write the character.")
        try:
            return READERS[kind](text)
        except (KeyError, ValueError):  # `!!int abc`, or more digits than Python reads
            return self._fault(node, path, f"{text!r:.40} cannot be read as {kind}.")

    def _foreign(self, node: yaml.Node, path: KeyPath) -> None:
        self._fault(node, path, f"the tag {node.tag} is not allowed; only plain YAML values are.")

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
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
        text = content.decode("utf-8-sig") if len(content) <= _MOST_BYTES else None
    except FileNotFoundError:
        near = sorted(file.parent.glob("*.y*ml")) if file.parent.is_dir() else []
        have = f" In that folder: {', '.join(p.name for p in near[:8])}." if near else ""
        return {}, {}, [Fault((), whole, f"there is no such file.{have}")]
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        message = f"byte {error.start} (0x{byte:02x}) is not UTF-8; save the file as UTF-8."
        return {}, {}, [Fault((), Place(str(path), line), message)]
    except ValueError as error:  # a NUL character in the name
        return {}, {}, [Fault((), whole, f"cannot be a file name: {error}.")]
    except OSError as error:
        is_folder = isinstance(error, IsADirectoryError)
        message = "is a folder; give a YAML file in it." if is_folder else f"cannot be read: {error.strerror}."
        return {}, {}, [Fault((), whole, message)]
    return ({}, {}, [Fault((), whole, _TOO_LONG)]) if text is None else parse_yaml(text, str(path))


def parse_yaml(text: str, file: str) -> tuple[dict[str, Any], Places, list[Fault]]:
    """Reads YAML text; `file` is what faults call it. Returns as `load_yaml`."""
    if len(text.encode(errors="replace")) > _MOST_BYTES:
        return {}, {}, [Fault((), Place(file), _TOO_LONG)]
    node = _compose(text, file)
    if isinstance(node, Fault):
        return {}, {}, [node]
    reader = _Reader(file)
    try:
        value = reader.value(node, ())
    except _TooLargeError as error:
        return {}, {}, [Fault((), Place(file), str(error))]
    if isinstance(value, dict):
        return value, reader.places, reader.faults
    no_mapping = Fault((), Place(file, 1), f"has to be a mapping such as 'model: ...'; found {value!r:.60}.")
    return {}, {}, reader.faults or [no_mapping]


def _compose(text: str, file: str) -> yaml.Node | Fault:
    """Returns the text's tree, or why it has none."""
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Composer)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        problem = error.problem or "is not YAML"
        if "'\\t'" in problem or (mark and _starts_with_tab(text, mark.line)):
            problem = "a tab stands where YAML wants spaces; indent with spaces"
        elif problem == "but found another document":
            problem = "a second document starts here; a file may hold only one"
        elif problem == "mapping values are not allowed here":
            problem = "a colon stands where a value goes on: indent this line as its neighbours are, or quote the value"
        return Fault((), Place(file, line), f"{problem}.")
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        return Fault((), Place(file, line), f"the character {error.character!r} is not allowed in YAML.")
    except _TooLargeError as error:
        return Fault((), Place(file), str(error))
    except RecursionError:
        return Fault((), Place(file), _TOO_DEEP)
    return Fault((), Place(file), "is empty; a run needs at least 'model' and 'data'.") if node is None else node


def _starts_with_tab(text: str, line: int) -> bool:
    lines = text.split("\n")
    return any("\t" in entry[: len(entry) - len(entry.lstrip())] for entry in lines[max(0, line - 1) : line + 1])
