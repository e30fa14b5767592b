"""YAML as settings are written in it: each key once, and numbers that it reads as texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from autolrs.errors import SettingError

if TYPE_CHECKING:
    import yaml


def load_yaml(text: str, place: str) -> Any:
    """The plain value that `text` says; `place`, where it stands, is named in errors.

    Raises:
        yaml.YAMLError: it is no YAML.
        SettingError: a key stands twice in one mapping, of which YAML's own loader silently takes the last.
    """
    import yaml

    for mapping in _mappings(yaml.compose(text, yaml.SafeLoader), set()):
        lines: dict[str, int] = {}
        for node, _ in mapping.value:
            key, line = str(node.value), node.start_mark.line + 1
            if key in lines:
                raise SettingError(f"{place}: `{key}` stands in line {lines[key]} and again in line {line}: keep one.")
            lines[key] = line
    return yaml.safe_load(text)


def as_number(key: str, value: Any) -> float:
    """`value` as a float. YAML 1.1 reads 1e-3, without a point, as a text: numbers in texts are numbers too.

    Raises:
        SettingError: it is none; `key` is named.
    """
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise SettingError(f"`{key}` must be a number, but got ({key}={value!r}).")


def as_whole(key: str, value: Any) -> int:
    """`value` as an int, where it is a whole number; texts and floats (1e4) may be, too.

    Raises:
        SettingError: it is none; `key` is named.
    """
    if isinstance(value, str):
        try:
            return int(value)  # a float holds 53 bits of it
        except ValueError:
            pass
    number = value if isinstance(value, int) else as_number(key, value)
    if isinstance(value, bool) or not (isinstance(number, int) or number.is_integer()):
        raise SettingError(f"`{key}` must be a whole number, but got ({key}={value!r}).")
    return int(number)


def _mappings(node: yaml.Node | None, seen: set[int]) -> Iterator[yaml.MappingNode]:
    """A YAML tree's mappings, the outer ones first, each once: by aliases a node may stand anywhere, in itself too."""
    import yaml

    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield node
        children = [value for _, value in node.value]
    else:
        children = node.value if isinstance(node, yaml.SequenceNode) else []
    for child in children:
        yield from _mappings(child, seen)
