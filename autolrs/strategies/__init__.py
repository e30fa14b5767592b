"""Strategies by name: they decide what happens next in a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Final

from autolrs.curves import curve_model
from autolrs.errors import SettingError, UnknownNameError
from autolrs.protocols import CurveModel, Strategy
from autolrs.samplers import GPSampler

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
        return _with(Horizon(), dict(options or {}), name)
    made = AutoLRS.published() if name == "autolrs-published" else AutoLRS(curves=model)
    return _with(made, dict(options or {}), name)


def _with(made: Any, options: dict[str, Any], name: str) -> Strategy:
    """`made` with its fields, and those of its sampler, set from plain values."""
    sampler = {key.removeprefix("sampler."): options.pop(key) for key in list(options) if key.startswith("sampler.")}
    values = {f.name: getattr(made, f.name) for f in fields(made)}
    if sampler:
        values["sampler"] = _made(GPSampler, _fields(values["sampler"]), sampler, f"{name}'s sampler")
    changed: Strategy = _made(type(made), values, options, f"strategy {name!r}")
    return changed


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _made(cls: type, values: dict[str, Any], options: Mapping[str, Any], what: str) -> Any:
    plain = sorted(key for key, value in values.items() if key not in ("sampler", "curves"))
    for key, value in options.items():
        if key not in plain:
            near = get_close_matches(key, plain, n=1)
            raise SettingError(
                f"{what} has no parameter {key!r}{f', did you mean {near[0]!r}?' if near else ''}; it has {plain}."
            )
        values[key] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**values)
    except TypeError as error:
        raise SettingError(f"{what} got a value of the wrong kind in {dict(options)}: {error}") from error
