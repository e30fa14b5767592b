"""The floors: a module imports only from its own floor or lower ones, nothing goes round in a circle, and what is
heavy is loaded only where it is used."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import autolrs

PACKAGE = Path(autolrs.__file__).parent
FLOORS = (
    # Values and plain functions.
    {
        "errors",
        "files",
        "forecasts",
        "protocols",
        "records",
        "lookahead",
        "momentum",
        "schedules",
        "scripts",
        "space",
        "yamls",
    },
    # Pure models.
    {"acquisitions", "curves", "surrogates"},
    # Pure decisions.
    {"engine", "samplers", "settings", "strategies"},
    # The world: the live training state, and the disk.
    {
        *("averages", "batches", "breaks", "director", "live", "rates", "runner", "session", "snapshot"),
        *("backends", "checkpoints", "codec", "journal", "locks", "mirror", "places", "storage"),
    },
    # The loop.
    {"distributed", "opening", "signals", "study", "tuner"},
    # Reading and asking.
    {
        "arguments",
        "cli",
        "exports",
        "integrations",
        "jobs",
        "manifests",
        "pfn_cli",
        "plots",
        "predict_cli",
        "predictions",
        "progress",
        "report",
    },
)
NETWORKS = {"curves.pfn.forward", "curves.pfn.network", "curves.pfn.training"}  # torch is what they are about
LIGHT = (FLOORS[0] | FLOORS[1] | FLOORS[2]) - {"surrogates"}  # a surrogate is a BoTorch model
HEAVY = ("torch", "botorch", "gpytorch", "scipy", "optuna", "pandas", "matplotlib", "ray", "rich", "yaml")


def modules() -> dict[str, Path]:
    """Dotted name within the package by file, without the façade."""
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in names.items() if name != "__init__"}


@cache
def imports(name: str) -> frozenset[tuple[str, bool]]:
    """What a module of ours imports: modules of ours, and the top names of others; True: as soon as it is imported.

    What only the type checker sees does not count.
    """
    found: set[tuple[str, bool]] = set()

    def visit(node: ast.AST, at_once: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update((ours(alias.name), at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            assert node.module is not None
            for alias in node.names:
                inner = ours(f"{node.module}.{alias.name}")
                found.add((inner if inner in modules() else ours(node.module), at_once))
        for child in ast.iter_child_nodes(node):
            visit(child, at_once and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    visit(ast.parse(modules()[name].read_text(encoding="utf-8")), True)
    return frozenset(found)


def ours(name: str) -> str:
    return name.removeprefix("autolrs.") if name.startswith("autolrs.") else name.partition(".")[0]


def floor(name: str) -> int:
    """Floor of a module, or of the package that it is in."""
    top = name.partition(".")[0]
    found = [number for number, names in enumerate(FLOORS) if top in names]
    assert found, f"module {name!r} is new: say in {Path(__file__).name} on which floor it is"
    return found[0]


def test_no_module_is_on_two_floors():
    assert sum(map(len, FLOORS)) == len(set().union(*FLOORS))


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_from_its_own_floor_or_lower_ones(name):
    higher = {other: floor(other) for other, _ in imports(name) if other in modules() and floor(other) > floor(name)}
    assert higher == {}, f"{name} is on floor {floor(name)}"
    assert "autolrs" not in {other for other, _ in imports(name)}, "import the module, not the façade"


def test_no_import_goes_round_in_a_circle():
    graph = {name: {other for other, _ in imports(name) if other in modules()} for name in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(
    "name", sorted(name for name in modules() if name.partition(".")[0] in LIGHT and name not in NETWORKS)
)
def test_what_is_light_loads_nothing_heavy_when_it_is_imported(name):
    at_once = {other for other, now in imports(name) if now}
    assert not at_once & set(HEAVY)


def test_what_is_quick_to_import_is():
    """The names that the command line imports before it knows what is asked."""
    quick = ["autolrs", "autolrs.cli", "autolrs.strategies", "autolrs.space", "autolrs.records", "autolrs.engine"]
    heavy = [name for name in HEAVY if name not in ("rich", "yaml")]  # typer brings rich
    code = (
        "import json, sys, importlib\n"
        "loaded = {}\n"
        f"for name in {quick}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded[name] = [heavy for heavy in {heavy} if heavy in sys.modules]\n"
        "print(json.dumps(loaded))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {name: [] for name in quick}


def test_the_test_sees_what_it_looks_for():
    """Against a test that cannot fail: known edges are found, type-only ones are not."""
    assert {("engine", True), ("records", True)} <= imports("strategies.horizon")
    assert ("strategies.horizon", False) in imports("strategies")
    assert ("torch", False) in imports("schedules")
    assert ("torch", True) not in imports("schedules")
    assert ("codec", True) in imports("checkpoints")
    assert "study" not in {name for name, _ in imports("session")}
    assert floor("strategies.horizon") == 2
