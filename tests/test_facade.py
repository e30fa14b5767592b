"""The façade: few names, all lazy, quick to import."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

import autolrs

NAMES = {
    *("tune", "attach", "load_study", "Session", "Study", "Schedule", "SearchSpace", "Callback"),
    *("AutoLRSError", "__version__"),
}


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_names_are_these_and_no_more():
    assert set(autolrs.__all__) == NAMES
    assert set(dir(autolrs)) == NAMES


def test_every_name_resolves():
    for name in NAMES:
        assert getattr(autolrs, name) is getattr(autolrs, name)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", autolrs.__version__)
    assert issubclass(autolrs.AutoLRSError, Exception)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'tuna'"):
        _ = autolrs.tuna


def test_no_name_is_a_module():
    from importlib.util import find_spec

    assert not [name for name in NAMES if find_spec(f"autolrs.{name}")]


def test_importing_loads_nothing_heavy_and_is_quick():
    heavy = ["torch", "numpy", "scipy", "botorch", "optuna", "pandas", "matplotlib", "ray", "typer"]
    times = []
    for _ in range(3):  # the best of a few: other processes share the cores
        loaded, seconds = python(
            "import json, sys, time; start = time.perf_counter(); import autolrs, autolrs.protocols, autolrs.errors;"
            "seconds = time.perf_counter() - start;"
            f"print(json.dumps([[name for name in {heavy} if name in sys.modules], seconds]))"
        )
        assert loaded == []
        times.append(seconds)
    assert min(times) < 0.15
