"""Search spaces: rules, YAML files, messages."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import autolrs.space
from autolrs.errors import SettingError, UnknownNameError
from autolrs.records import from_json, to_json
from autolrs.schedules import BASES, Schedule
from autolrs.space import SearchSpace

ROOT = Path(__file__).parents[1]
SHIPPED = ("adagrad", "adam", "adamw", "adamw_finetune", "default", "lamb", "lion", "muon", "rmsprop", "sgd")
rates = st.floats(1e-12, 1e3)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    low, high = sorted(draw(st.lists(rates, min_size=2, max_size=2, unique=True)))
    return SearchSpace(
        name=draw(st.text(min_size=1)),
        bounds=(low, high),
        initial=draw(st.none() | st.floats(low, high)),
        schedule=draw(st.sampled_from(BASES)),
        warmup=draw(st.floats(0, 1, exclude_max=True)),
        decay=draw(st.floats(0, 1, exclude_min=True)),
        momentum=tuple(draw(st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=2))),
        params=draw(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text())),
    )


def test_shipped_spaces_are_whole_and_documented() -> None:
    assert SearchSpace.names() == SHIPPED
    document = (ROOT / "docs" / "search-spaces.md").read_text(encoding="utf-8")
    for name in SHIPPED:
        space = SearchSpace.load(name)
        low, high = space.bounds
        assert space.name == name
        assert len(space.reference) > 20
        assert 3.9 <= math.log10(high / low) <= 5.1 or name == "lamb"
        line = next(line for line in document.splitlines() if line.startswith(f"| `{name}` | "))
        first = space.initial or math.sqrt(low * high)
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        bounds = [float(bound) for bound in cells[1].split(" to ")]
        assert (bounds, float(cells[2])) == ([low, high], pytest.approx(first, rel=1e-2))
        assert (cells[3], cells[4]) == (f"{100 * space.warmup:.0f} %", space.schedule)


def test_documented_schema_is_the_class(tmp_path: Path) -> None:
    document = (ROOT / "docs" / "search-spaces.md").read_text(encoding="utf-8")
    example = document.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
    space = SearchSpace.load(tmp_path / "mine.yaml")
    assert (space.name, space.params, space.initial) == ("mine", {"dropout": 0.1}, 1e-3)
    for key in SearchSpace.__dataclass_fields__:
        assert f"\n| `{key}` | " in document


@pytest.mark.parametrize("message", [1, 2])
def test_documented_messages_are_the_messages(message: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = (ROOT / "docs" / "search-spaces.md").read_text(encoding="utf-8")
    shown = [line for line in document.splitlines() if line.startswith("mine.yaml: ")][message - 1]
    text = {1: "bound: [0.1, 1]", 2: "bounds: [0.1, 0.001]"}[message]
    Path("mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingError) as caught:
        SearchSpace.load("mine.yaml")
    assert str(caught.value) == shown


@given(spaces())
def test_json_gives_back_an_equal_space(space: SearchSpace) -> None:
    assert from_json(json.loads(json.dumps(to_json(space), allow_nan=False))) == space


@given(spaces(), st.integers(1, 500))
def test_every_space_makes_a_schedule_within_its_bounds(space: SearchSpace, steps: int) -> None:
    low, high = space.bounds
    rate = min(max(space.initial or math.sqrt(low * high), low), high)
    warmup = round(space.warmup * steps)
    schedule = Schedule.build(space.schedule, rate=rate, steps=steps, warmup=warmup, decay=space.decay)
    assert max(schedule(step) for step in range(steps)) <= high


@given(st.floats(allow_nan=True), st.floats(allow_nan=True))
def test_bounds_are_taken_exactly_if_the_rule_holds(low: float, high: float) -> None:
    if 0 < low < high < math.inf:
        assert SearchSpace("any", (low, high)).bounds == (low, high)
    else:
        with pytest.raises(SettingError, match="0 < low < high < inf"):
            SearchSpace("any", (low, high))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bounds": (1e-3,)}, ["two rates, [low, high]", "bounds=(0.001,)"]),
        ({"bounds": 0.1}, ["two rates", "bounds=0.1"]),
        ({"bounds": ("low", 1)}, ["`bounds` must be a number", "'low'"]),
        ({"bounds": (True, 2)}, ["`bounds` must be a number", "True"]),
        ({"initial": 2.0}, ["`initial` must lie within `bounds`", "initial=2.0", "bounds=(0.001, 1.0)"]),
        ({"initial": math.nan}, ["`initial` must lie within `bounds`", "nan"]),
        ({"schedule": "cosin"}, ["`schedule` must be one of constant, linear, cosine", "schedule='cosin'"]),
        ({"warmup": 1}, ["0 <= warmup < 1", "warmup=1.0"]),
        ({"warmup": -0.1}, ["0 <= warmup < 1", "warmup=-0.1"]),
        ({"warmup": "soon"}, ["`warmup` must be a number", "'soon'"]),
        ({"decay": 0}, ["0 < decay <= 1", "decay=0.0"]),
        ({"decay": math.nan}, ["0 < decay <= 1", "nan"]),
        ({"momentum": 0.8}, ["`momentum` must be a list", "0.8"]),
        ({"momentum": [0.8, 1]}, ["0 < momentum < 1", "1.0"]),
        ({"momentum": ["much"]}, ["`momentum` must be a number", "'much'"]),
        ({"name": ""}, ["`name` must not be empty"]),
        ({"optimizer": 3}, ["`optimizer` must be a text", "3"]),
        ({"params": [1]}, ["`params` must map", "[1]"]),
        ({"params": {1: 1}}, ["names in `params`", "name=1"]),
        ({"params": {"beta": [1]}}, ["`params.beta` must be a text", "[1]"]),
        ({"params": {"beta": math.inf}}, ["`params.beta`", "inf"]),
    ],
)
def test_bad_values_get_their_rule_and_value(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        SearchSpace(**{"name": "bad", "bounds": (1e-3, 1.0)} | values)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    with pytest.raises(SettingError) as from_file:
        SearchSpace.from_mapping({"bounds": [1e-3, 1.0]} | values, "dir/bad.yaml")
    assert str(from_file.value) == f"dir/bad.yaml: {caught.value}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bounds: [1, 2\n", ["cannot be read as YAML", "line 2"]),
        ("- bounds\n", ["must map keys to values", "['bounds']"]),
        ("", ["must map keys to values", "None"]),
        ("optimizer: sgd\n", ["`bounds: [low, high]` is missing", "'optimizer'"]),
        ("bounds: [0.1, 1]\nwarm_up: 0.1\n", ["unknown key `warm_up` (did you mean `warmup`?)", "0.1", "known keys"]),
        ("bounds: [0.1, 1]\n3: 0.1\n", ["unknown key `3` with value 0.1", "known keys: name, bounds"]),
        ("bounds: [0.1, 1]\nself: 1\n", ["unknown key `self`"]),
        ("bounds: [0.1, 1]\ngamma: 0\nbounds: [1, 2]\n", ["`bounds` stands in line 1 and again in line 3", "keep one"]),
        ("bounds: [0.1, 1]\nparams: {beta: 0.1,\n beta: 0.9}\n", ["`beta` stands in line 2 and again in line 3"]),
        ("bounds: !!python/name:os.system\n", ["cannot be read as YAML"]),
    ],
)
def test_bad_files_are_named(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingError) as caught:
        SearchSpace.load(str(path))
    assert all(word in str(caught.value) for word in (str(path), *words)), str(caught.value)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingError, match=r"mine\.yml: cannot be read as YAML"):
        SearchSpace.load(path)


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "0.001", "1.0e-3", "'1e-3'", ".001"])
def test_every_way_to_write_a_number(number: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"bounds: [{number}, 1]\ninitial: {number}\n", encoding="utf-8")
    assert SearchSpace.load(path) == SearchSpace("mine", (1e-3, 1.0), initial=1e-3)


@pytest.mark.parametrize("missing", ["adamx", "", "nowhere/adam.yaml", "../search_spaces/adam"])
def test_unknown_names_and_files_list_what_exists(missing: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        SearchSpace.load(missing)
    assert missing in str(caught.value)
    assert ", ".join(SHIPPED) in str(caught.value)


def test_an_installed_package_has_its_own_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel puts the files inside the package, and those are the ones that count."""
    package = tmp_path / "site-packages" / "autolrs"
    shutil.copytree(ROOT / "search_spaces", package / "search_spaces")
    (package / "search_spaces" / "only_here.yaml").write_text("bounds: [0.1, 1]", encoding="utf-8")
    monkeypatch.setattr(autolrs.space, "__file__", str(package / "space.py"))
    assert SearchSpace.names() == tuple(sorted([*SHIPPED, "only_here"]))
    assert SearchSpace.load("only_here").bounds == (0.1, 1.0)


def test_importing_the_module_loads_neither_yaml_nor_torch() -> None:
    code = "import sys, autolrs.space; print({'yaml', 'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
