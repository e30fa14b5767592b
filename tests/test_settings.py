"""Settings: what is stored, what counts as the same run, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tuned_loops import SPACE

from autolrs.curves.exponential import Exponential
from autolrs.errors import SettingError, UnknownNameError
from autolrs.records import from_json, to_json
from autolrs.settings import LATER, bytes_of, changes, digest, settings_of, strategy_from
from autolrs.strategies.autolrs import AutoLRS
from autolrs.strategies.horizon import Horizon

SETTINGS = settings_of(steps=100, space=SPACE, strategy=Horizon())


def test_settings_hold_every_parameter_of_the_strategy() -> None:
    options = settings_of(steps=10, space=SPACE, strategy=AutoLRS(curves=Exponential())).options
    assert options["k"] == 10
    assert options["sampler"]["kind"] == "GPSampler"
    assert options["sampler"]["kappa"] == 2.0
    assert options["curves"]["kind"] == "Exponential"
    assert json.loads(json.dumps(options))


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"steps": 0}, "steps >= 1"),
        ({"steps": True}, "steps >= 1"),
        ({"search_budget": -0.1}, "search_budget"),
        ({"search_budget": float("nan")}, "search_budget"),
        ({"seed": 2**32}, "seed"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"average": 1}, "average"),
        ({"restore_best": None}, "restore_best"),
        ({"lookahead": 5}, "lookahead"),
    ],
)
def test_what_breaks_a_rule_is_refused(given: dict[str, Any], rule: str) -> None:
    with pytest.raises(SettingError, match=rule):
        settings_of(**{"steps": 100, "space": SPACE, "strategy": Horizon(), **given})


def test_the_budget_is_in_whole_steps_and_not_above_what_was_asked() -> None:
    budgets = [settings_of(steps=99, space=SPACE, strategy=Horizon(), search_budget=b).budget for b in (0.3, 1 / 3, 0)]
    assert budgets == [29, 33, 0]


def test_the_same_settings_have_the_same_digest_and_no_changes() -> None:
    again = settings_of(steps=100, space=SPACE, strategy=Horizon())
    assert digest(again) == digest(SETTINGS)
    assert changes(SETTINGS, again) == ""
    assert changes(SETTINGS, replace(SETTINGS, checkpoint_every=7)) == ""  # changes no result


@pytest.mark.parametrize("name", LATER)
def test_a_setting_that_came_later_changes_the_digest_only_where_it_is_not_its_default(name: str) -> None:
    older = {key: value for key, value in to_json(SETTINGS).items() if key != name}
    assert from_json(older) == SETTINGS
    other = replace(SETTINGS, **{name: not getattr(SETTINGS, name)})
    assert digest(other) != digest(SETTINGS)
    assert name in changes(SETTINGS, other)


def test_what_differs_is_named() -> None:
    other = settings_of(steps=120, space=SPACE, strategy=Horizon(gamma=0.1), restore_best=False)
    assert digest(other) != digest(SETTINGS)
    text = changes(SETTINGS, other)
    for part in ("steps was 100, now 120", "'gamma': 0.25", "'gamma': 0.1", "restore_best was True, now False"):
        assert part in text
    assert "shortest" not in text  # an option that is the same


def test_a_strategy_is_a_name_or_an_object() -> None:
    made = strategy_from("horizon", {"gamma": 0.1}, "auto")
    assert isinstance(made, Horizon)
    assert made.gamma == 0.1
    assert strategy_from(given := Horizon(), None, "auto") is given
    with pytest.raises(SettingError, match="a name or a"):
        strategy_from(Horizon, None, "auto")
    with pytest.raises(SettingError, match="parameters itself"):
        strategy_from(Horizon(), {"gamma": 0.1}, "auto")
    with pytest.raises(UnknownNameError):
        strategy_from("horizon", None, "none such")


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GiB", 1 << 30), ("1.5 KiB", 1536), ("2MB", 2_000_000), ("3TiB", 3 << 40), (" 8B ", 8), ("17", 17), (0, 0)],
)
def test_replay_memory_is_bytes_or_words(text: int | str, size: int) -> None:
    assert bytes_of(text) == size
