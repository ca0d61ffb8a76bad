"""The YAML dialect of evolve: PyYAML without its traps, for reading and for writing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml
from pydantic import BaseModel

PREFIX = "tag:yaml.org,2002:"

_NUMBER = r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?"
_PATTERNS = {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "null": r"~|null|Null|NULL|",
    "int": r"[-+]?\d[\d_]*",
    "float": rf"{_NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": "<<",
}
# PyYAML writes these line breaks and marks unescaped into single quotes and cannot read them back.
_UNQUOTABLE = re.compile("[\x85\u2028\u2029\ufeff]")

# From the text of a scalar to its value; a text of another kind raises KeyError or ValueError.
READERS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: {"": None, "~": None, "null": None}[text.lower()],
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": lambda text: int(text.replace("_", "")),
    "float": lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.replace("_", "").lower())),
    "str": lambda text: text,
}


class Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2: `1e-3` is a number; `on`, `yes`, `1:30` and dates are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - declared so by PyYAML


class _Dumper(yaml.SafeDumper):
    """Quotes what `Loader` would not read back as text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - declared so by PyYAML

    def ignore_aliases(self, data: Any) -> bool:
        """Writes a value that stands in two places twice."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(PREFIX + "str", text, style='"' if _UNQUOTABLE.search(text) else None)


for _tag, _pattern in _PATTERNS.items():
    for _kind in (Loader, _Dumper):
        _kind.add_implicit_resolver(PREFIX + _tag, re.compile(rf"^({_pattern})$"), None)
_Dumper.add_representer(str, _represent_text)


def dump_yaml(config: BaseModel) -> str:
    """Returns a configuration with all its defaults as YAML that reads back as an equal one."""
    return dump_values(config.model_dump(mode="json"))


def dump_values(values: Any) -> str:
    """Returns JSON values as YAML that reads back as equal ones."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
