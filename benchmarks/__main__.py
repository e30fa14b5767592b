"""Benchmarks of autolrs. Run from the repository's root.

python -m benchmarks baselines     fixed schedules on every task -> benchmarks/results/baselines.csv (continues)
python -m benchmarks tuned         autolrs on every task         -> benchmarks/results/tuned.csv (continues)
python -m benchmarks table         both                          -> docs/benchmarks.md
python -m benchmarks choices       what the defaults beat        -> docs/choices.md (continues)
python -m benchmarks performance   what a session costs          -> docs/performance.md
python -m benchmarks workers       what several workers cost     -> docs/workers.md
python -m benchmarks curves        curve models on real curves  -> docs/curves.md
python -m benchmarks siblings      choosing and stopping probes  -> stdout, a part of docs/curves.md
python -m benchmarks laws          loss laws on real runs        -> stdout, a part of docs/curves.md
python -m benchmarks.proposals     what a proposal costs
"""

from __future__ import annotations

import argparse
import os

import torch

from benchmarks import baselines
from benchmarks.tasks import TASKS


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("baselines", "tuned"):
        command = commands.add_parser(name)
        command.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
        command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    commands.choices["baselines"].add_argument("--budget-minutes", type=float, default=60)
    commands.choices["tuned"].add_argument("--strategies", nargs="+", default=["horizon", "autolrs"])
    commands.add_parser("table")
    commands.add_parser("choices")
    commands.add_parser("performance")
    commands.add_parser("workers")
    commands.add_parser("laws")
    commands.add_parser("siblings")
    curves = commands.add_parser("curves")
    curves.add_argument("--curves", metavar="FOLDER", help="parquet files of real curves; default: $AUTOLRS_CURVES")
    curves.add_argument("--most", type=int, default=40, help="windows of each source, kind and share")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.command == "table":
        from benchmarks.table import write

        write()
        return
    if given.command == "choices":
        from benchmarks import choices

        choices.run_all()
        return
    if given.command == "workers":
        from benchmarks import workers

        workers.write()
        return
    if given.command == "performance":
        from benchmarks import performance

        performance.write()
        return
    if given.command == "laws":
        from benchmarks.laws import section

        print("\n".join(section()))
        return
    if given.command == "siblings":
        from benchmarks import siblings

        print("\n".join(siblings.section()))
        return
    if given.command == "curves":
        from benchmarks.curves import write as write_curves
        from benchmarks.windows import VARIABLE

        if given.curves:
            os.environ[VARIABLE] = given.curves
        write_curves(given.most)
        return
    tasks = [TASKS[name] for name in given.tasks]
    if given.command == "baselines":
        baselines.run_all(tasks, given.seeds, given.budget_minutes)
    else:
        from benchmarks import tuned

        tuned.run_all(tasks, given.strategies, given.seeds)


if __name__ == "__main__":
    main()
