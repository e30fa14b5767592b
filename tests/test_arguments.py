"""Command-line words: each mistake has its own clear error."""

from __future__ import annotations

import sys

import pytest

from autolrs.arguments import load_train, parse, sections, space_with
from autolrs.errors import SettingError, UnknownNameError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "helper_of_loop.py").write_text("VALUE = 3\n")
    (tmp_path / "loop_here.py").write_text(
        "from pathlib import Path\nimport helper_of_loop\nNUMBER = 1\n"
        "def train(session):\n    return helper_of_loop.VALUE\n"
    )
    (tmp_path / "broken_loop.py").write_text("import nothing_of_that_name\n")
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_file_is_loaded_with_its_neighbours(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train = load_train("../loop_here.py:train")
    assert train(None) == 3
    assert train.__name__ == "train"


def test_a_module_is_loaded_from_the_working_directory():
    assert load_train("loop_here:train")(None) == 3


@pytest.mark.parametrize("spec", ["train", "loop_here.py", ":train", "loop_here.py:", "loop_here.py:1x"])
def test_other_forms_are_refused(spec):
    with pytest.raises(SettingError, match=r"must be like 'train\.py:train'"):
        load_train(spec)


def test_what_is_missing_is_named():
    with pytest.raises(UnknownNameError, match=r"there is no file other\.py \(looked in"):
        load_train("other.py:train")
    with pytest.raises(UnknownNameError, match=r"there is no file x+\.py \(looked in"):
        load_train(f"{'x' * 3000}.py:train")
    with pytest.raises(UnknownNameError, match=r"there is no module 'other'.*'other/loop\.py:"):
        load_train("other.loop:train")
    with pytest.raises(UnknownNameError, match=r"unknown function in loop_here\.py 'tran'; known: train$"):
        load_train("loop_here.py:tran")
    with pytest.raises(SettingError, match="must name a function that takes a session, but it is a int"):
        load_train("loop_here.py:NUMBER")


@pytest.mark.parametrize("spec", ["broken_loop.py:train", "broken_loop:train"])
def test_the_files_own_import_error_comes_out(spec):
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        load_train(spec)


def test_a_value_with_a_key_twice_is_refused():
    with pytest.raises(SettingError, match=r"--set space\.params=.*`a` stands in line 1 and again in line 1"):
        sections(["space.params={a: 1, a: 2}"])


def test_values_are_yaml_and_numbers_are_numbers():
    words = ["a=6", "b=1e-3", "c=[1e-4, 1]", "d=true", "e=text=more", "f=", "g=adam", "h=2.5", "i=1.2.3"]
    assert parse(words, "--arg") == {
        "a": 6,
        "b": 1e-3,
        "c": [1e-4, 1],
        "d": True,
        "e": "text=more",
        "f": None,
        "g": "adam",
        "h": 2.5,
        "i": "1.2.3",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "--arg must be like key=value, but got 'a'"),
        (["=1"], "key=value"),
        (["a=1", "a=2"], "'a' twice"),
        (["a=["], "not YAML"),
    ],
)
def test_bad_words_say_what_is_wrong(words, message):
    with pytest.raises(SettingError, match=message):
        parse(words, "--arg")


def test_sections_sort_the_settings():
    assert sections(["strategy.k=6", "strategy.sampler.kappa=2", "space.bounds=[1e-4,1]"]) == {
        "strategy": {"k": 6, "sampler.kappa": 2},
        "space": {"bounds": [1e-4, 1]},
    }
    for word in ("k=6", "tune.k=6", "strategy=6", "strategy.=6"):
        with pytest.raises(SettingError, match=r"must begin with space\. or strategy\."):
            sections([word])


def test_a_space_can_be_changed_and_is_checked():
    assert space_with("sgd", {"bounds": [1e-4, 1], "warmup": 0.1}).bounds == (1e-4, 1.0)
    with pytest.raises(SettingError, match=r"--space sgd with --set: .*`0 < low < high < inf`"):
        space_with("sgd", {"bounds": [1, 1e-4]})
    with pytest.raises(SettingError, match=r"unknown key `bound` .*did you mean `bounds`"):
        space_with("sgd", {"bound": [1e-4, 1]})
