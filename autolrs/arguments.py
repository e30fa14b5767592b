"""From the words of a command line to values: the train function, `--set` and `--arg`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from autolrs.errors import SettingError, UnknownNameError
from autolrs.files import is_file
from autolrs.scripts import load_file
from autolrs.space import SearchSpace
from autolrs.yamls import load_yaml

SECTIONS: Final = ("space", "strategy")
"""What `--set SECTION.KEY=VALUE` may change."""


def load_train(spec: str) -> Callable[[Any], Any]:
    """The function named by "path/to/file.py:function" or "package.module:function".

    The file's folder, or the working directory, becomes importable, as if Python had run it from there. What the
    file itself raises on import comes out unchanged.

    Raises:
        SettingError: the words are not of that form, or the name is not a function.
        UnknownNameError: no such file, module or function; the message lists the file's functions.
    """
    where, colon, name = spec.rpartition(":")
    if not (colon and where and name.isidentifier()):
        raise SettingError(f"TRAIN must be like 'train.py:train' or 'package.module:train', but got {spec!r}.")
    module = _file(Path(where)) if where.endswith(".py") else _module(where)
    if not hasattr(module, name):
        known = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise UnknownNameError.of(f"function in {where}", name, known)
    train = getattr(module, name)
    if not callable(train):
        raise SettingError(f"{spec!r} must name a function that takes a session, but it is a {type(train).__name__}.")
    found: Callable[[Any], Any] = train
    return found


def _file(path: Path) -> Any:
    if not is_file(path):
        raise UnknownNameError(f"there is no file {path} (looked in {Path.cwd()}).")
    return load_file(path)


def _module(name: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # something that the module itself imports
        raise UnknownNameError(
            f"there is no module {error.name!r} on the import path or in {Path.cwd()}; "
            f"to name a file, end it in .py: '{name.replace('.', '/')}.py:...'."
        ) from None


def parse(words: Iterable[str], flag: str) -> dict[str, Any]:
    """Values by key of "key=value" words; values are read as YAML, and what looks like a number is one.

    Raises:
        SettingError: a word has no "=", its value is not YAML, or a key comes twice.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (equals and key):
            raise SettingError(f"{flag} must be like key=value, but got {word!r}.")
        if key in values:
            raise SettingError(f"{flag} got {key!r} twice.")
        values[key] = _value(text, f"{flag} {word}")
    return values


def sections(words: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The values of `--set SECTION.KEY=VALUE`, by section.

    Raises:
        SettingError: see `parse`; or there is no such section.
    """
    found: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for path, value in parse(words, "--set").items():
        section, dot, key = path.partition(".")
        if section not in found or not (dot and key):
            raise SettingError(f"--set must begin with {' or '.join(f'{s}.' for s in SECTIONS)}, but got {path!r}.")
        found[section][key] = value
    return found


def space_with(name: str, changes: Mapping[str, Any]) -> SearchSpace:
    """The space called `name`, or at that path, with some of its keys changed; checked like a file.

    Raises:
        UnknownNameError, SettingError: see `SearchSpace.load`.
    """
    space = SearchSpace.load(name)
    if not changes:
        return space
    own = {field.name: getattr(space, field.name) for field in fields(space)}
    return SearchSpace.from_mapping({**own, **changes}, f"--space {name} with --set")


def _value(text: str, where: str) -> Any:
    import yaml

    try:
        return _numbers(load_yaml(text, where))
    except yaml.YAMLError as error:
        raise SettingError(f"{where}: the value is not YAML: {error}") from error


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-3, without a point, as a text; here it is a number."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value
