"""What a run was asked for: settings checked and made comparable, before anything is written."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

from autolrs.curves import curve_model as curve_model_of
from autolrs.errors import SettingError
from autolrs.protocols import CurveModel, Strategy
from autolrs.records import Settings, to_json
from autolrs.space import SearchSpace
from autolrs.strategies import strategy as strategy_of

IDENTITY: Final = (
    *("steps", "seed", "space", "strategy", "options", "budget", "curve_model", "average", "restore_best", "rescue"),
    "lookahead",
)
"""Settings that must not change when a study is resumed."""

LATER: Final = {"restore_best": True, "rescue": True, "lookahead": False}
"""Those that came later: left out of the digest where they have this default, so that older studies are found."""


def strategy_from(given: Any, options: Mapping[str, Any] | None, curve_model: str | CurveModel) -> Strategy:
    """The strategy meant by a name, or given.

    Raises:
        SettingError: it is neither, or has options that it should not have.
        UnknownNameError: there is no such strategy, or curve model.
    """
    if isinstance(curve_model, str):
        curve_model_of(curve_model)  # raises if there is none
    if isinstance(given, str):
        return strategy_of(given, options, curve_model)
    if isinstance(given, type) or not isinstance(given, Strategy):
        raise SettingError(f"`strategy` must be a name or a `protocols.Strategy`, but got {given!r}.")
    if options:
        raise SettingError("`options` go with a strategy's name; give the strategy object its parameters itself.")
    return given


def settings_of(
    *,
    steps: int,
    space: SearchSpace,
    strategy: Strategy,
    search_budget: float | None = None,
    curve_model: str = "auto",
    checkpoint_every: int | None = None,
    seed: int = 0,
    average: bool = False,
    restore_best: bool = True,
    rescue: bool = True,
    lookahead: bool = False,
) -> Settings:
    """The settings that a run is stored under.

    Raises:
        SettingError: one breaks its rule.
    """
    budget = strategy.search_budget if search_budget is None else search_budget
    for rule, value, holds in (
        ("steps >= 1, an integer", steps, isinstance(steps, int) and not isinstance(steps, bool) and steps >= 1),
        ("0 <= search_budget <= 100", budget, isinstance(budget, int | float) and 0 <= budget <= 100),
        ("average is True or False", average, isinstance(average, bool)),
        ("restore_best is True or False", restore_best, isinstance(restore_best, bool)),
        ("rescue is True or False", rescue, isinstance(rescue, bool)),
        ("lookahead is True or False", lookahead, isinstance(lookahead, bool)),
        ("0 <= seed < 2**32, an integer", seed, isinstance(seed, int) and 0 <= seed < 2**32),
        (
            "checkpoint_every >= 1, an integer",
            checkpoint_every,
            checkpoint_every is None or (isinstance(checkpoint_every, int) and checkpoint_every >= 1),
        ),
    ):
        if not holds:
            raise SettingError(f"`{rule}` must hold, but got {value!r}.")
    return Settings(
        steps=steps,
        budget=math.floor(budget * steps + 1e-9),
        seed=seed,
        space=space,
        strategy=strategy.name,
        options=_plain_options(strategy),
        curve_model=curve_model,
        checkpoint_every=checkpoint_every or max(100, math.ceil(steps / 32)),
        average=average,
        restore_best=restore_best,
        rescue=rescue,
        lookahead=lookahead,
    )


def bytes_of(given: Any) -> int:
    """Bytes of a number or of a text like "512MiB"."""
    size = given
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?\s*", size)
        unit = (found and found[2]) or "B"
        base = 1024 if "i" in unit else 1000
        size = int(float(found[1]) * base ** "BKMGT".index(unit[0])) if found else None
    if not isinstance(size, int) or size < 0:
        raise SettingError(f"`replay_memory` must be bytes, 0 or more, or like '512MiB', but got {given!r}.")
    return size


def digest(settings: Settings) -> str:
    """8 hex digits of the settings that identify a run."""
    identity = {key: value for key, value in _identity(settings).items() if value is not LATER.get(key, ...)}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def changes(old: Settings, new: Settings) -> str:
    """What differs in the identity of two settings; "" if nothing does."""
    was, now = _identity(old), _identity(new)
    if was["strategy"] == now["strategy"]:  # name the options that differ, and not those that another setting explains
        same = {key for key, value in was["options"].items() if now["options"].get(key, was) == value}
        if was["curve_model"] != now["curve_model"]:
            same.add("curves")
        was, now = (
            side | {"options": {key: value for key, value in side["options"].items() if key not in same}}
            for side in (was, now)
        )
    return "; ".join(f"{key} was {was[key]!r}, now {now[key]!r}" for key in IDENTITY if was[key] != now[key])


def _identity(settings: Settings) -> dict[str, Any]:
    """What must not change when a study is resumed."""
    plain = json.loads(json.dumps(to_json(settings)))
    return {key: plain[key] for key in IDENTITY}


def arguments(args: Mapping[str, Any] | None) -> str:
    """The loop's own arguments as a text that differs where they do; what shows no value is known by its class."""
    return json.dumps(to_json(_plain(args or {})), sort_keys=True)


def _plain_options(strategy: Any) -> dict[str, Any]:
    """A strategy's parameters as plain values, for people and for comparing studies."""
    if not is_dataclass(strategy):
        return {"repr": type(strategy).__name__}
    return {f.name: _plain(getattr(strategy, f.name)) for f in fields(strategy)}


def _plain(value: Any) -> Any:
    """JSON values that differ where `value`'s parameters do; an object that shows none is known by its class."""
    if is_dataclass(value):
        return {"kind": type(value).__name__} | {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, int | float | str | None) else {"kind": type(value).__name__}
