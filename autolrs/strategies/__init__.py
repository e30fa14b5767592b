"""Strategies by name: they decide what happens next in a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from inspect import formatannotation
from types import UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

from autolrs.curves import curve_model
from autolrs.errors import SettingError, UnknownNameError
from autolrs.protocols import CurveModel, Strategy

STRATEGIES: Final = ("autolrs", "autolrs-published", "horizon")


def strategy(name: str, options: Mapping[str, Any] | None = None, curves: str | CurveModel = "auto") -> Strategy:
    """The strategy called `name` with some of its parameters set.

    Args:
        options: parameters by name; those of the sampler as "sampler.kappa" and so on.
        curves: name of the curve model, or one.

    Raises:
        UnknownNameError: no such strategy or curve model.
        SettingError: no such parameter, or a value that breaks its rule.
    """
    if name not in STRATEGIES:
        raise UnknownNameError.of("strategy", name, STRATEGIES)
    from autolrs.strategies.autolrs import AutoLRS
    from autolrs.strategies.horizon import Horizon

    model = curve_model(curves) if isinstance(curves, str) else curves
    if name == "horizon":
        return _with(Horizon(curves=model), dict(options or {}), name)
    made = AutoLRS.published() if name == "autolrs-published" else AutoLRS(curves=model)
    return _with(made, dict(options or {}), name)


def _with(made: Any, options: dict[str, Any], name: str) -> Strategy:
    """`made` with its fields, and those of its sampler, set from plain values."""
    sampler = {key.removeprefix("sampler."): options.pop(key) for key in list(options) if key.startswith("sampler.")}
    if sampler:
        made = replace(made, sampler=_changed(made.sampler, sampler, f"{name}'s sampler"))
    changed: Strategy = _changed(made, options, f"strategy {name!r}")
    return changed


def _changed(made: Any, options: Mapping[str, Any], what: str) -> Any:
    kinds = {key: kind for key, kind in get_type_hints(type(made)).items() if key not in ("sampler", "curves")}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    for key, value in values.items():
        if key not in kinds:
            near = get_close_matches(key, kinds, n=1)
            meant = f", did you mean {near[0]!r}?" if near else ""
            raise SettingError(f"{what} has no parameter {key!r}{meant}; it has {', '.join(sorted(kinds))}.")
        if not _is_a(kinds[key], value):
            raise SettingError(f"`{key}` of {what} must be {formatannotation(kinds[key])}, but got {value!r}.")
    return replace(made, **values)


def _is_a(kind: Any, value: Any) -> bool:
    """Whether a plain value is of an annotated kind; an integer is also a float, true and false are no numbers."""
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(get_args(kind)[0], item) for item in value)
    if isinstance(kind, UnionType):
        return any(_is_a(each, value) for each in get_args(kind))
    return type(value) in ((int, float) if kind is float else (kind,))
