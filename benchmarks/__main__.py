"""Benchmarks of autolrs. Run from the repository's root.

python -m benchmarks run           all methods on all tasks      -> benchmarks/results/runs.parquet (continues)
python -m benchmarks report        those rows                    -> docs/benchmarks.md, docs/benchmarks.png
python -m benchmarks choices       what the defaults beat        -> docs/choices.md (continues)
python -m benchmarks lengths       the best rate by length       -> a part of docs/choices.md (continues)
python -m benchmarks multipliers   a rate for each group         -> a part of docs/choices.md (continues)
python -m benchmarks momentum      another momentum              -> a part of docs/choices.md (continues)
python -m benchmarks probes        length of probes, budget      -> a part of docs/choices.md (continues)
python -m benchmarks shapes        another shape of the decay    -> a part of docs/choices.md (continues)
python -m benchmarks performance   what a session costs          -> docs/performance.md
python -m benchmarks workers       what several workers cost     -> docs/workers.md
python -m benchmarks curves        curve models on real curves   -> docs/curves.md
python -m benchmarks siblings      choosing and stopping probes  -> that part of docs/curves.md
python -m benchmarks stopping      stopping probes only          -> that part of it
python -m benchmarks own-curves    curve models on our tasks     -> that part of docs/curves.md (continues)
python -m benchmarks models        curve models in whole runs    -> that part of docs/curves.md (continues)
python -m benchmarks laws          loss laws on real runs        -> stdout, a part of docs/curves.md
python -m benchmarks breaks        what is called a broken run   -> stdout
python -m benchmarks.mcmc own      the network against chains    -> rows; also `lcpfn`, `fit` (continues)
python -m benchmarks.mcmc report   those rows                    -> that part of docs/curves.md
python -m benchmarks.proposals     what a proposal costs
"""

from __future__ import annotations

import argparse
import os
from importlib import import_module

import torch

from benchmarks.tasks import EXAMPLES, TASKS


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--tasks", nargs="+", choices=TASKS, default=list(EXAMPLES))
    run.add_argument("--methods", nargs="+", metavar="METHOD", help="names, or kinds; default: all")
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="the first one chooses the finalists")
    run.add_argument("--budget-minutes", type=float, default=60.0, help="stop before a run that would not fit")
    models = commands.add_parser("models")
    models.add_argument("--tasks", nargs="+", choices=EXAMPLES, default=list(EXAMPLES))
    models.add_argument("--models", nargs="+", metavar="NAME", help="as the table names them; default: all")
    models.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    models.add_argument("--only-report", action="store_true", help="write what the rows on file say")
    for each in (run, models):
        each.add_argument("--share", default="0/1", metavar="K/N", help="this is process K, from 0, of N side by side")
    for name in (
        "report",
        "choices",
        "lengths",
        "momentum",
        "multipliers",
        "probes",
        "shapes",
        "performance",
        "laws",
        "breaks",
        "siblings",
        "stopping",
        "own-curves",
    ):
        commands.add_parser(name)
    workers = commands.add_parser("workers")
    workers.add_argument("sections", nargs="*", metavar="SECTION", help="measure only these again; default: all")
    curves = commands.add_parser("curves")
    curves.add_argument("--curves", metavar="FOLDER", help="parquet files of real curves; default: $AUTOLRS_CURVES")
    curves.add_argument("--most", type=int, default=40, help="windows of each source, kind and share")
    curves.add_argument("--only-windows", action="store_true", help="leave all parts of the report that follow")
    given = parser.parse_args()
    torch.set_num_threads(1)
    match given.command:
        case "run":
            _run(given)
        case "report":
            from benchmarks import report

            report.write()
        case "choices":
            from benchmarks import choices

            choices.run_all()
        case "lengths" | "momentum" | "multipliers" | "probes" | "shapes":
            from benchmarks import choices

            import_module(f"benchmarks.{given.command}").run_all()
            choices.run_all()
        case "performance":
            from benchmarks import performance

            performance.write()
        case "workers":
            from benchmarks.workers import write

            write(given.sections)
        case "laws":
            from benchmarks import laws

            print("\n".join(laws.section()))
        case "breaks":
            from benchmarks import breaks

            breaks.run_all()
        case "siblings" | "stopping":
            from benchmarks import siblings
            from benchmarks.curves import DOCUMENT

            siblings.write(DOCUMENT, only_stopping=given.command == "stopping")
        case "own-curves":
            from benchmarks import own_curves, unseen

            own_curves.record()
            unseen.write()
        case "models":
            _models(given)
        case "curves":
            _curves(given)


def _run(given: argparse.Namespace) -> None:
    from benchmarks.campaign import run_all
    from benchmarks.methods import METHODS

    asked = given.methods or list(METHODS)
    unknown = [name for name in asked if name not in METHODS and all(m.kind != name for m in METHODS.values())]
    if unknown:
        raise SystemExit(f"no method or kind is called {', '.join(unknown)}; there are {', '.join(METHODS)}.")
    methods = [method for method in METHODS.values() if method.name in asked or method.kind in asked]
    tasks = [TASKS[name] for name in given.tasks]
    run_all(tasks, methods, given.seeds, budget_minutes=given.budget_minutes, share=_share(given))


def _share(given: argparse.Namespace) -> tuple[int, int]:
    k, n = map(int, given.share.split("/"))
    return k, n


def _models(given: argparse.Namespace) -> None:
    from benchmarks import curve_models

    names = given.models or list(curve_models.VARIANTS)
    if unknown := [name for name in names if name not in curve_models.VARIANTS]:
        raise SystemExit(
            f"unknown: {', '.join(map(repr, unknown))}; there are {', '.join(map(repr, curve_models.VARIANTS))}."
        )
    if not given.only_report:
        tasks = [TASKS[name] for name in given.tasks]
        curve_models.run_all(given.seeds, tasks=tasks, names=names, share=_share(given))
    curve_models.write()


def _curves(given: argparse.Namespace) -> None:
    from benchmarks.curves import write
    from benchmarks.windows import VARIABLE

    if given.curves:
        os.environ[VARIABLE] = given.curves
    write(given.most, only_windows=given.only_windows)


if __name__ == "__main__":
    main()
