"""The curve models on curves that nothing was chosen on: those of our own tasks -> a part of docs/curves.md.

Run: python -m benchmarks own-curves. The curves are those of `benchmarks.own_curves`, windows and metrics those of
`benchmarks.windows`, the choice of a rate that of `benchmarks.siblings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from autolrs.curves import CURVE_MODELS, curve_model
from autolrs.curves.points import noise_of
from benchmarks import siblings
from benchmarks.curves import DOCUMENT, HEAD, by_kind, cells, markdown, models
from benchmarks.own_curves import FOLDER
from benchmarks.siblings import by_heart, choice, levels, neighbours, replaced, summary
from benchmarks.windows import (
    KINDS,
    SHARES,
    Array,
    Timed,
    Window,
    errors,
    failed,
    forecast,
    log_scores,
    read_runs,
    windows,
)

HEADING: Final = "## Curves of our own tasks: never used to choose anything"

Statistic = Callable[[Array], float]
Groups = Mapping[float, Sequence[Sequence[Window]]]
"""Siblings by share."""

_CLIP = 2.0  # of a regret in means
_DRAWS = 2000
_NAMES = {"run": "whole runs", "piece": "first tenths", "fork": "forks"}

_INTRODUCTION = """\
Written by `python -m benchmarks own-curves` from `benchmarks/results/curves`: each step's training loss of the {tasks}
tasks of docs/benchmarks.md, one seed. Whole *runs* over half of a task's steps at its seven rates, constant from the
first step on, from the same weights with the same batches; and *forks*: the run at the middle rate, which from 35 % of
its steps on takes six other rates, from a tenth to ten times its own, for 25 % of them, as probes leave a run. Every
constant is the shipped one, and none was ever chosen on these curves. {windows} windows without blow-ups,
{blown} blow-ups, {groups} groups of siblings (runs, first tenths and forks of a task), at 10 / 20 / 40 %.
The models' choices of a rate are the pooled ones. *On tasks drawn anew*: what 90 % lie in."""

NOTE: Final = """\
*What holds*: no failure, with the blow-ups; intervals that are right (at 10 %, and of forks, too wide); the mean regret
at 20 %, the median ones at all shares, and no regret above 100 % from 20 % on; among forks, which are what is chosen
among in a run, all goals of the regret (mean .048 / .052 / .014, median .007 / .001 / .000). The order of the models is
that of the other curves: `auto` and `pfn` err least in the median and have the best log scores; `bayes` has the
smallest 90th percentile at 10 %. On the four tasks that came last (`folk_tunes`, `relief_unet`, `movie_genres`,
`language_names`: 9 groups) the mean regrets are .017 / .010 / .015.

*What does not*: median errors, 90th percentiles and log scores at all shares, the mean regret and the share above 100 %
at 10 %, the mean at 40 %, and the bias: the rates chosen are too low by .12 to .20 decades. **Pooled forecasts choose
no better here than the last losses do**: worse at 10 %, better at 20 %, worse at 40 %, each about within the luck of
the tasks (below); among forks the two are about equal.

*Why*, as far as the curves show it:

- These curves are short and loud: losses of single mini-batches, 9 to 63 of them seen of a fork or a piece at 10 %, and
  as few as 5 in the mean that is to be forecast. Its noise alone makes an error of .03 in the median (below: *noise*).
  Where this noise is below 1 % of the loss (62 windows of nine tasks) all goals of errors and scores hold: median
  errors are .060 / .034 / .016, 90th percentiles .67 / .24 / .20, log scores -1.06 / -1.56 / -2.06.
  On the louder half of the windows the median errors are .215 / .167 / .126, on the quieter one .082 / .066 / .037.
- Small data are learned by heart: 10 / 6 / 2 % of the truths are below .3 of the last loss seen. Of fine-tuning on
  digits, where the loss falls up to a hundredfold and more, half of the forecasts are off by 1.05 / .68 / .35 and more.
- What falls steeply when it is last seen is expected to fall on, and lower rates fall later: so rates too low are
  chosen. `few_computers` at a rate of 1e-4 has come from .95 to .20 at 10 %, is expected at nearly nothing by itself,
  at .10 when pooled, and ends at .11, while 3e-3, seen at .13, ends at .020. That, one more run (`molecules_graph`) and
  one first tenth (`finetune_digits`), in which the last loss errs as much, make .088 of the mean regret of .150.
  At 40 % `glove_tokens`, in the same way, makes .015 of .038; `gru_weather`, where the last loss errs as much, .007.
- Probes that were once three times above where probes begin are expected to fall no further, because none of 250 such
  was the best of its group on the other curves. Here five of 188 are, of 1,194: in first tenths of `stress_lstm` at all
  shares (RMSprop, which starts with a jump and then trains) and in forks of `mnist_cnn` at 20 and 40 % (single loud
  batches). Their groups make .005 / .009 / .003 of the mean regrets.

None of this was used to change a model.
"""


class Measure(NamedTuple):
    """A row of the table of goals: a statistic of a column of `_by_window` or `_by_choice`."""

    name: str
    goal: str
    column: str
    of: Statistic
    form: str


def _higher(q: float) -> Statistic:
    return lambda x: float(np.quantile(x, q, method="higher"))


_ERRORS = (
    Measure("median error", "0.060 / 0.050 / 0.034", "error", _higher(0.5), ".3f"),
    Measure("90 % of the errors", "0.75 / 0.55 / 0.30", "error", _higher(0.9), ".2f"),
    Measure("log score", "-0.60 / -1.10 / -1.60", "score", np.mean, ".2f"),
    Measure("in the 90 % interval", "86 % to 94 %", "inside", np.mean, ".0%"),
)
_CHOICES = (
    Measure("regret, mean", "0.12 / 0.09 / 0.03", "clipped", np.mean, ".3f"),
    Measure("regret, median", "0.025 / 0.006 / 0.001", "regret", np.median, ".3f"),
    Measure("regret above 100 %", "3 %", "above", np.mean, ".0%"),
    Measure("bias [decades]", "0.05", "bias", np.mean, "+.2f"),
)


def write() -> None:
    """Judge the models again and put this part of the report in its place."""
    DOCUMENT.write_text(replaced(DOCUMENT.read_text("utf-8"), HEADING, section()), encoding="utf-8")


def own(folder: Path = FOLDER) -> list[Window]:
    """Windows of these curves. Of a run that probes left, what was before is counted once, not with each probe."""
    return [w for w in windows(folder=folder) if w.kind == "fork" or not w.curve_id.startswith("fork")]


def section(names: Sequence[str] = CURVE_MODELS, folder: Path = FOLDER) -> list[str]:
    """Markdown lines for docs/curves.md."""
    found = own(folder)
    timed = {name: forecast(model, found) for name, model in models(names).items()}
    groups = {share: siblings.grouped([w for w in found if w.share == share]) for share in SHARES}
    counts = [[sum(w.share == share and w.blow_up == blown for w in found) for share in SHARES] for blown in (0, 1)]
    introduction = _INTRODUCTION.format(
        tasks=len({w.source for w in found}),
        windows=" / ".join(map(str, counts[0])),
        blown=" / ".join(map(str, counts[1])),
        groups=" / ".join(str(len(groups[share])) for share in SHARES),
    )
    return [
        *introduction.splitlines(),
        "",
        *_goals(timed, groups, found),
        "",
        *NOTE.splitlines(),
        "",
        "### Errors of the forecast",
        "",
        *_tables(timed, found),
        "",
        *_floor(found, folder),
        "",
        "### Choosing the rate among them",
        "",
        *_choosing([name for name in names if name != "law"], groups, folder),
        "",
        "### By task, at 10 / 20 / 40 %",
        "",
        *_by_task(timed, groups, found),
    ]


def _by_window(timed: Timed, found: Sequence[Window]) -> pd.DataFrame:
    """A row a window that does not blow up."""
    level = timed.forecasts.cdf(np.array([w.truth for w in found]))
    table = pd.DataFrame(
        {
            "source": [w.source for w in found],
            "share": [w.share for w in found],
            "error": errors(timed.forecasts, found),
            "score": log_scores(timed.forecasts, found),
            "inside": (np.abs(level - 0.5) <= 0.45).astype(float),
        }
    )
    return table[[not w.blow_up for w in found]]


def _by_choice(name: str, groups: Groups) -> pd.DataFrame:
    """A row a group: what comes of the rate that a model, pooled, or the last value expects to end lowest."""
    model = None if name == "last value" else curve_model(name)
    made = [(s, g, choice(g, levels(g, model, pool=model is not None))) for s in groups for g in groups[s]]
    regret = np.array([c.regret for *_, c in made])
    return pd.DataFrame(
        {
            "source": [g[0].source for _, g, _ in made],
            "share": [share for share, *_ in made],
            "regret": regret,
            "clipped": np.minimum(regret, _CLIP),
            "above": (regret > 1).astype(float),
            "bias": [c.bias for *_, c in made],
        }
    )


def _goals(timed: Mapping[str, Timed], groups: Groups, found: Sequence[Window]) -> list[str]:
    """A row a goal, a column a model, and where 90 % of the first one's lie on as many tasks, drawn anew."""
    shown = [name for name in ("auto", "pfn", "bayes", "exponential", "last value") if name in timed]
    rows = []
    for measures, tables in (
        (_ERRORS, {name: _by_window(timed[name], found) for name in shown}),
        (_CHOICES, {name: _by_choice(name, groups) for name in shown}),
    ):
        for measure in measures:
            values = [_three(table, measure) for table in tables.values()]
            ends = [_range(tables[shown[0]].query(f"share == {share}"), measure) for share in SHARES]
            rows.append([measure.name, measure.goal, *values, " / ".join(ends)])
    failures = [f"{failed(timed[name].forecasts, found).mean():.1%}" for name in shown]
    rows.insert(len(_ERRORS), ["failures, blow-ups included", "0", *failures, ""])
    return markdown(["at 10 / 20 / 40 %", "goal", *shown, f"{shown[0]}, on tasks drawn anew"], rows)


def _three(table: pd.DataFrame, measure: Measure) -> str:
    """At each share."""
    parts = [table[table.share == share][measure.column].to_numpy() for share in SHARES]
    return " / ".join(format(measure.of(part), measure.form) for part in parts if len(part))


def _range(table: pd.DataFrame, measure: Measure) -> str:
    """What 90 % of the statistics of as many tasks, drawn from these with replacement, lie in."""
    parts = [part.to_numpy() for _, part in table.groupby("source")[measure.column]]
    draws = np.random.default_rng(0).integers(0, len(parts), (_DRAWS, len(parts)))
    found = [measure.of(np.concatenate([parts[i] for i in draw])) for draw in draws]
    return " to ".join(format(end, measure.form) for end in np.quantile(found, (0.05, 0.95)))


def _tables(timed: Mapping[str, Timed], found: Sequence[Window]) -> Iterator[str]:
    """All windows, and each kind; what a forecast takes is measured on the other curves."""
    scores = {name: by_kind(of, found) for name, of in timed.items()}
    for kind in ("any", *KINDS):
        yield from markdown(
            ["model" if kind == "any" else kind, *HEAD[1:-2]],
            [cells(n, s, scores[n][kind].loc[("all", s)])[:-2] for s in SHARES for n in timed if kind in scores[n]],
        )
        yield ""


def before_the_end(found: Sequence[Window], folder: Path) -> Array:
    """Mean loss of the 5 % before each window's last 5 %: no forecast is told so much."""
    return np.array([losses[(share > 0.9) & (share <= 0.95)].mean() for share, losses in _inside(found, folder)])


def noise(found: Sequence[Window], folder: Path) -> Array:
    """Standard error of each window's truth: of the mean over the mini-batches of its last 5 %."""
    return np.array([noise_of(losses) / np.sqrt((share > 0.95).sum()) for share, losses in _inside(found, folder)])


def _inside(found: Sequence[Window], folder: Path) -> Iterator[tuple[Array, Array]]:
    """How far into each window each of its points is, and all its losses."""
    runs = {(run.source, run.curve_id): run for run in read_runs(folder)}
    for window in found:
        run = runs[window.source, window.curve_id]
        share = (run.steps - window.start) / window.length
        inside = (share >= 0) & (share <= 1)
        yield share[inside], run.losses[inside]


def _floor(found: Sequence[Window], folder: Path) -> list[str]:
    """What is left of errors and scores when nothing but the noise of the truth is unknown."""
    from scipy.special import ndtri

    normal = np.abs(ndtri((np.arange(99) + 0.5) / 99))
    rows = []
    for name, kinds in {"all": KINDS, **{kind: (kind,) for kind in KINDS}}.items():
        usual = [w for w in found if w.share == SHARES[-1] and not w.blow_up and w.kind in kinds]
        if usual:
            truth, last = (np.array([getattr(w, column) for w in usual]) for column in ("truth", "last"))
            deviation = noise(usual, folder)
            drawn = np.outer(deviation / np.abs(truth), normal).ravel()
            told = np.abs(before_the_end(usual, folder) / truth - 1)
            score = 0.5 * np.log(2 * np.pi * np.e) + np.log(np.maximum(deviation / np.abs(last), np.exp(-8.0)))
            rows.append([name, *(f"{_higher(q)(error):.3f}" for error in (drawn, told) for q in (0.5, 0.9))])
            rows[-1].insert(3, f"{score.mean():.2f}")
    return [
        "What remains to those who know everything but the mini-batches' noise in the mean of the last 5 % (their log",
        f"score: over the last loss at {SHARES[-1]:.0%}), and to those who forecast the mean of the 5 % before:",
        "",
        *markdown(["windows", "noise: median", "90 %", "log score", "5 % before: median", "90 %"], rows),
    ]


def _choosing(names: Sequence[str], groups: Groups, folder: Path) -> list[str]:
    """A row a way of reading the probes, as in `siblings.choosing`; the parts are of the first model."""

    def row(title: str, expected: Callable[[Sequence[Window]], Array], only: Callable[..., bool] = bool) -> list[str]:
        return [title, *(summary([choice(g, expected(g)) for g in groups[s] if only(g)]) for s in SHARES)]

    def by(name: str | None, *, pool: bool = True) -> Callable[[Sequence[Window]], Array]:
        model = None if name is None else curve_model(name)
        return lambda group: levels(group, model, pool=pool and model is not None)

    rows = [row("last value", by(None))]
    for name in names:
        rows += [row(name, by(name, pool=False)), row(f"{name}, pooled", by(name))]
    parts: dict[str, Callable[[Sequence[Window]], bool]] = {"not by heart": lambda group: not by_heart(group)}
    parts |= {_NAMES[kind]: lambda group, kind=kind: group[0].kind == kind for kind in KINDS}
    for title, only in parts.items():
        if all(any(map(only, groups[share])) for share in SHARES):
            rows.append(row(f"last value, {title}", by(None), only))
            rows.append(row(f"{names[0]}, pooled, {title}", by(names[0]), only))
    rows.append(row("*the neighbours' ends*", neighbours))
    rows.append(row("*the 5 % before the end*", lambda group: _finite(before_the_end(group, folder))))
    head = [f"{share:.0%}: regret, mean | median | > 100 % | bias | rank" for share in SHARES]
    lines = markdown(["read by", *head], rows)
    tables = [_by_choice(name, groups) for name in (names[0], "last value")]
    less = tables[0].assign(clipped=tables[0].clipped - tables[1].clipped)
    measure = _CHOICES[0]._replace(form="+.3f")
    ends = " / ".join(_range(less[less.share == share], measure) for share in SHARES)
    return [
        *(lines[0], "|" + " --- |" * (1 + 5 * len(SHARES)), *lines[2:], ""),
        f"Mean regret of `{names[0]}`, pooled, less that of the last value: {_three(less, measure)}; on tasks",
        f"drawn anew, 90 % of such means lie in {ends}.",
    ]


def _finite(x: Array) -> Array:
    return np.where(np.isnan(x), np.inf, x)


def _by_task(timed: Mapping[str, Timed], groups: Groups, found: Sequence[Window]) -> list[str]:
    """Of the last value, and of the default."""
    shown = ("last value", "auto")
    columns = [(m, name, _by_window(timed[name], found)) for m in (_ERRORS[0], _ERRORS[2]) for name in shown]
    columns += [(_CHOICES[0], name, _by_choice(name, groups)) for name in shown]
    rows = [
        [task, *(_three(table[table.source == task], measure) for measure, _, table in columns)]
        for task in dict.fromkeys(w.source for w in found)
    ]
    return markdown(["task", *(f"{measure.name}: {name}" for measure, name, _ in columns)], rows)
