"""Rows to docs/benchmarks.md and docs/benchmarks.png: `python -m benchmarks report`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from benchmarks.compare import Line, Ratio, best_line, line_of, over_tasks, ratio
from benchmarks.families import FAMILIES
from benchmarks.methods import METHODS
from benchmarks.rows import Row, read
from benchmarks.tasks import EXAMPLES, TASKS, Task

DOCS: Final = Path(__file__).parents[1] / "docs"
DOCUMENT: Final = DOCS / "benchmarks.md"
PICTURE: Final = DOCS / "benchmarks.png"

ACROSS: Final = 4
"""Panels in a row of the picture."""

FARTHEST: Final = 1.5
"""Ratios beyond it are an arrow at the picture's edge."""

ISSUED: Final = ("cosine", "linear", "wsd")
"""The families that the examples are also held against by themselves."""

SAME_TOTAL: Final = ("optuna-tpe", "optuna-gp", "pbt", "pb2", "asha")
"""Searches that take as many updates in all as `horizon` may."""

HEADER: Final = """# Benchmarks

Written by `python -m benchmarks report` from the rows that `python -m benchmarks run` puts into
`benchmarks/results/runs.parquet`; edit nothing here by hand.

A task has fixed training, validation and test splits. All runs with the same seed have the same initial weights and
batches and, unless a method says otherwise, the same number of kept steps and the same warm-up. Every setting of a
method (for a schedule: seven peak rates) is run with the first seed; its two best, by *validation* loss, with every
seed; the better of these by mean validation loss is its line. Development tasks are those that `horizon`'s defaults
were chosen on, with other seeds, or with their results in view; the others only confirm: the defaults were frozen in a
commit before the first run of `horizon` on them. Most of the development tasks have confirmed once; what their rows
showed was then mended. Test loss of `horizon` over the best schedule's in those blind trials, geometric mean (rows in
`benchmarks/results/former.parquet`; those of e469c73, whose defaults are those of today, below):

| defaults of commit | tasks | seeds | over the best | with averaged weights | over untuned |
| --- | --- | --- | --- | --- | --- |
| f45c3e0 | vit_digits, gru_weather, finetune_digits, glove_tokens | 4 | 1.133 [1.085, 1.182] | | 0.639 [0.608, 0.672] |
| d9049bd | stress_lstm, finetune_towns | 3 | 1.024 [0.997, 1.052] | 1.006 [0.981, 1.031] | 1.013 [0.982, 1.045] |
| 756716f | phonemes, flights, photo, VAE | 3 | 1.078 [0.977, 1.189] | 1.076 [0.974, 1.189] | 0.810 [0.736, 0.891] |
| e469c73 | stereo, computers, words, logP | 3 | 1.031 [0.987, 1.076] | 1.030 [0.986, 1.076] | 0.804 [0.767, 0.844] |
| the same, seeds 0 to 7 | the same | 8 | 1.068 [1.024, 1.114] | 1.068 [1.023, 1.114] | 0.830 [0.798, 0.863] |
| the same | folk tunes, relief, films, names | 8 | 1.017 [0.998, 1.037] | 1.001 [0.981, 1.022] | 0.779 [0.765, 0.793] |

`diamonds_resnet` and `photo_denoiser` were meant to confirm f45c3e0, too, but the first rows on them showed what was
wrong with it.

*search*: updates beyond the kept ones, as a share of them: for a method with settings the runs that were thrown away,
for autolrs its probes (less those adopted as training) and roll-backs. *wall*: mean of one run, in seconds on one
thread of a busy machine. Ratios are of losses, paired by seed, geometric means with 95 % intervals (Student's t over
seeds); below 1 is better. *best schedule* is the one with the lowest mean validation loss of all families.
*averaged weights*: `average=True`, `horizon` whose final weights are an average of the kept ones where that has the
lower validation loss; the run is the same. *and lookahead* (`horizon-both`): averaged weights, and with Adam, AdamW and
NAdam `lookahead=True`; `wsd-lookahead` is the schedule that `horizon` plans, tuned by full runs with lookahead. Tasks
with "@4" are four times as long, and tuned with the three best families at the three rates about the short task's best
only. Where the whole run overfits, `horizon` keeps the end of its best miniature (`finetune_digits`, `few_computers`);
a fixed schedule keeps its last weights.
"""


def write(path: Path = DOCUMENT) -> None:
    """Write the document and its picture from the rows on file."""
    rows = read()
    seen = [task for task in TASKS.values() if any(row.task == task.name for row in rows)]
    made = (
        f"Made with torch {_joined(row.torch for row in rows)}, autolrs {_joined(row.autolrs for row in rows)}, "
        f"commits {_joined(row.commit for row in rows)} (+: with changes not yet committed)."
    )
    parts = [
        HEADER.strip(),
        made,
        summary(rows, seen),
        equal_totals(rows, seen),
        "![losses over the best tuned schedule's](benchmarks.png)",
    ]
    parts += [section(rows, task) for task in seen]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    picture(rows, seen, PICTURE)
    print(f"{len(rows)} rows -> {path}")


def summary(rows: Sequence[Row], tasks: Sequence[Task]) -> str:
    """`horizon` against what a user could do instead, task by task and over the confirmation tasks."""
    head = (
        *("task", "best schedule", "`horizon` / it, validation", "test", "/ untuned, test"),
        *("with averaged weights / best, test", "and lookahead", "seeds", "search"),
    )
    table, kinds = [], dict[str, list[tuple[Ratio | None, ...]]]()
    for task in tasks:
        ours, best = line_of(rows, task.name, "horizon"), best_line(rows, task.name, FAMILIES)
        others = ("untuned", "horizon-averaged", "horizon-both")
        untuned, averaged, both = (line_of(rows, task.name, name) for name in others)
        if ours is None or best is None:
            continue
        found = [ratio(ours, best, "validation_loss"), ratio(ours, best)]
        found.append(ratio(ours, untuned) if untuned else None)
        found += [ratio(line, best) if line else None for line in (averaged, both)]
        table.append(
            [
                _name(task),
                f"{best.method}, {fmean(row.rate for row in best.rows):.3g}",
                *(str(each) if each else "" for each in found),
                f"{found[0].pairs if found[0] else 0}",
                f"{_share(ours):.2f}",
            ]
        )
        kinds.setdefault(task.kind, []).append(tuple(found[1:]))
    for kind, each_task in kinds.items():
        means = [over_tasks([one for one in each if one]) if all(each) else "" for each in zip(*each_task, strict=True)]
        table.append([f"**{kind}, geometric mean**", "", "", *map(str, means), "", ""])
    return "## `horizon` against the best tuned schedule\n\n" + markdown(head, table)


def equal_totals(rows: Sequence[Row], tasks: Sequence[Task]) -> str:
    """`horizon` where its search counts: within the steps of one run, and beside searches of the same total."""
    head = ("task", "`horizon-short` / best cosine", "best search", "`horizon` / it")
    table, kinds = [], dict[str, list[tuple[Ratio, Ratio]]]()
    for task in tasks:
        ours, short, cosine = (line_of(rows, task.name, name) for name in ("horizon", "horizon-short", "cosine"))
        search = best_line(rows, task.name, SAME_TOTAL)
        if ours is None or short is None or cosine is None or search is None:
            continue
        found = ratio(short, cosine), ratio(ours, search)
        name = _name(task)
        table.append([name, *(str(each or "") for each in (found[0], search.method, found[1]))])
        if found[0] and found[1]:
            kinds.setdefault(task.kind, []).append((found[0], found[1]))
    for kind, pairs in kinds.items():
        first, second = (over_tasks(each) for each in zip(*pairs, strict=True))
        table.append([f"**{kind}, geometric mean**", str(first), "", str(second)])
    text = (
        "Test losses. `horizon-short` keeps 0.76 of the steps, so that with its whole search it takes those of one\n"
        "run; the cosine is the best of seven by full runs that are not counted. The searches\n"
        f"({', '.join(SAME_TOTAL)}) take 1.3 runs in all, as `horizon` may, and the best is\n"
        "chosen by validation. Trials are cosines over a fourth of that, with Optuna also over an eighth; those of\n"
        "PBT and PB2 are at constant rates, which are copied and changed five times on the way. Ray Tune's own\n"
        "schedulers run ASHA, PBT and PB2 (in step), one trial at a time."
    )
    parts = ["## With the search counted", text, markdown(head, table)]
    if table:
        parts += ["`horizon` over each search that was run on all of the tasks:", each_search(rows, tasks)]
    return "\n\n".join(parts)


def each_search(rows: Sequence[Row], tasks: Sequence[Task]) -> str:
    """`horizon` over every search of the same total, a row a kind of tasks; blank where a task has no run of it."""

    def mean(kind: str, search: str) -> str:
        ratios = []
        for task in tasks:
            ours, theirs = line_of(rows, task.name, "horizon"), line_of(rows, task.name, search)
            if task.kind == kind and ours:
                ratios.append(ratio(ours, theirs) if theirs else None)
        known = [each for each in ratios if each]
        return str(over_tasks(known)) if known and len(known) == len(ratios) else ""

    kinds = dict.fromkeys(task.kind for task in tasks)
    means = {search: [mean(kind, search) for kind in kinds] for search in SAME_TOTAL}
    shown = {search: each for search, each in means.items() if any(each)}
    table = [
        [f"**{kind}, geometric mean**", *cells]
        for kind, *cells in zip(kinds, *shown.values(), strict=True)
        if any(cells)
    ]
    return markdown(("tasks", *shown), table)


def section(rows: Sequence[Row], task: Task) -> str:
    """One task's tables."""
    lines = [line for method in METHODS if (line := line_of(rows, task.name, method))]
    best = best_line(rows, task.name, FAMILIES)
    three = best_line(rows, task.name, ISSUED) if task.name in EXAMPLES else None
    head = ("method", "setting", "seeds", "validation", "sd", "test", "sd", "steps", "search", "wall", "test to best")
    table = [_cells(line, best) for line in lines]
    text = [
        f"## {task.name}",
        f"`{task.module.replace('.', '/')}.py`, {task.steps} steps, space `{task.space}`, " + f"{task.kind}.",
        markdown(head, table),
    ]
    ours = line_of(rows, task.name, "horizon")
    if three and ours and (of_three := ratio(ours, three, "validation_loss")):
        text.append(
            f"`horizon` over the best of {', '.join(ISSUED)} ({three.method} at {three.rows[0].rate:.3g}) by "
            f"validation loss: {of_three}, of means {_mean_ratio(ours, three):.3f}."
        )
    text += ["Validation loss of every fixed schedule with the first seed:", _rates(rows, task)]
    return "\n\n".join(text)


def picture(rows: Sequence[Row], tasks: Sequence[Task], path: Path) -> None:
    """Test losses over the best tuned schedule's, a panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [
        task
        for task in tasks
        if task.times == 1 and line_of(rows, task.name, "horizon") and best_line(rows, task.name, FAMILIES)
    ]
    if not shown:
        return
    across = min(ACROSS, len(shown))
    down = -(-len(shown) // across)
    size = (2.6 * across + 1.4, 5.2 * down)
    figure, axes = plt.subplots(down, across, figsize=size, sharey=True, squeeze=False)
    names = [name for name in METHODS if any(row.method == name for row in rows)][::-1]
    colours = {"fixed": "0.45", "free": "tab:green", "rule": "tab:brown", "search": "tab:purple", "ours": "tab:red"}
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat[: len(shown)], shown, strict=True):
        best = best_line(rows, task.name, FAMILIES)
        assert best is not None
        for y, name in enumerate(names):
            line = line_of(rows, task.name, name)
            if line is None or (found := ratio(line, best)) is None:
                continue
            fits, error = found.value < FARTHEST, [[found.value - found.low], [found.high - found.value]]
            axis.errorbar(
                min(found.value, FARTHEST),
                y,
                xerr=error if fits and found.pairs > 1 else None,
                fmt="o" if fits else ">",
                color=colours[METHODS[name].kind],
                markersize=4,
                linewidth=1,
            )
        axis.axvline(1.0, color="0.7", linewidth=0.8, zorder=0)
        axis.set_xlim(0.7, FARTHEST + 0.05)
        axis.set_title(_name(task).replace(" ", "\n"), fontsize=9)
        axis.set_xlabel("test loss / best schedule", fontsize=8)
        axis.tick_params(labelsize=8)
    axes[0][0].set_yticks(range(len(names)), names)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _cells(line: Line, best: Line | None) -> list[str]:
    rates = sorted(row.rate for row in line.rows)
    of = f"{rates[0]:.3g}" if rates[0] == rates[-1] else f"{rates[0]:.3g} to {rates[-1]:.3g}"
    found = ratio(line, best) if best else None
    return [
        f"**{line.method}**" if METHODS[line.method].kind == "ours" else line.method,
        of if line.tries == 1 else f"{of}, of {line.tries}",
        ", ".join(str(row.seed) for row in line.rows),
        *(f"{line.validation:.5g}", _sd([row.validation_loss for row in line.rows])),
        *(f"{line.test:.5g}", _sd([row.test_loss for row in line.rows])),
        f"{fmean(row.kept_steps for row in line.rows):.0f}",
        f"{_share(line):.2f}",
        f"{fmean(row.wall_seconds for row in line.rows):.1f}",
        str(found) if found else "",
    ]


def _name(task: Task) -> str:
    return f"{task.name}{' (confirms)' if task.kind == 'confirmation' else ''}"


def _share(line: Line) -> float:
    """Search updates over those of one run."""
    return line.search_steps / TASKS[line.rows[0].task].steps


def _mean_ratio(line: Line, other: Line) -> float:
    """Ratio of mean validation losses, over the seeds that both have."""
    seeds = {row.seed for row in line.rows} & {row.seed for row in other.rows}
    mine, theirs = (fmean(row.validation_loss for row in each.rows if row.seed in seeds) for each in (line, other))
    return mine / theirs


def _rates(rows: Sequence[Row], task: Task) -> str:
    first = min(row.seed for row in rows if row.task == task.name)
    losses = {(row.method, row.rate): row.validation_loss for row in rows if (row.task, row.seed) == (task.name, first)}
    table = [
        [family, *(f"{losses[family, rate]:.4g}" if (family, rate) in losses else "" for rate in task.rates)]
        for family in FAMILIES
        if any((family, rate) in losses for rate in task.rates)
    ]
    return markdown(("peak rate", *(f"{rate:g}" for rate in task.rates)), table)


def _sd(values: Sequence[float]) -> str:
    return f"{stdev(values):.2g}" if len(values) > 1 else ""


def _joined(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))
