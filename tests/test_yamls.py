"""YAML of settings: keys once, numbers in texts."""

from __future__ import annotations

import math

import pytest
import yaml

from autolrs.errors import SettingError
from autolrs.yamls import as_whole, load_yaml


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: 1\nb: 2\na: 3\n", "`a` stands in line 1 and again in line 3"),
        ("a: {b: 1,\n b: 2}\n", "`b` stands in line 1 and again in line 2"),
        ("a:\n- x: 1\n- {y: 1, y: 2}\n", "`y` stands in line 3 and again in line 3"),
    ],
)
def test_a_key_that_stands_twice_is_refused_wherever_it_stands(text, where):
    with pytest.raises(SettingError, match=f"here: {where}: keep one"):
        load_yaml(text, "here")


def test_equal_keys_of_different_mappings_are_fine():
    text = "a: &one {b: 1}\nc: {b: 2}\nd: *one\ne: [*one, {b: 3}]\n"
    assert load_yaml(text, "here") == yaml.safe_load(text)
    assert load_yaml("", "here") is None


def test_aliases_are_followed_once():
    """A node may stand in itself, and a few lines of aliases of aliases are a billion nodes."""
    itself = load_yaml("a: &a [*a]\n", "here")
    assert itself["a"] is itself["a"][0]
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 30))
    assert len(load_yaml(f"l0: &l0 [x]\n{levels}", "here")) == 30


def test_what_is_no_yaml_is_yamls_own_error():
    with pytest.raises(yaml.YAMLError):
        load_yaml("a: [1", "here")


@pytest.mark.parametrize(
    ("value", "found"),
    [(7, 7), ("7", 7), (1e4, 10_000), ("1e4", 10_000), (2**70 + 1, 2**70 + 1), ("9007199254740993", 2**53 + 1)],
)
def test_whole_numbers_may_be_texts_and_floats(value, found):
    assert as_whole("steps", value) == found
    assert type(as_whole("steps", value)) is int


@pytest.mark.parametrize("value", [2.5, "2.5", math.nan, math.inf, "-inf", True, None, "many", [7], "+-5", "9" * 5000])
def test_what_is_not_whole_is_named(value):
    with pytest.raises(SettingError, match=r"`steps` must be a (whole )?number, but got \(steps="):
        as_whole("steps", value)
