"""Every curve model over windows of real curves -> docs/curves.md, docs/curves.png, benchmarks/results/curves.csv.

Run: python -m benchmarks curves [--curves FOLDER] [--most N]. Windows and metrics are those of `benchmarks.windows`;
settings that never saw a source are in `benchmarks.left_out`, choosing and stopping probes in `benchmarks.siblings`,
loss laws in `benchmarks.laws`, curves that nothing was chosen on in `benchmarks.unseen`. What whole runs
(`benchmarks.curve_models`) and Markov chains (`benchmarks.mcmc_report`) have stored is written as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from autolrs.curves import CURVE_MODELS, curve_model
from autolrs.curves.exponential import PublishedExponential
from autolrs.curves.points import points_of
from autolrs.forecasts import Forecasts
from autolrs.protocols import CurveModel
from autolrs.records import Curve
from autolrs.schedules import Schedule
from benchmarks import left_out
from benchmarks.rows import RESULTS, commit
from benchmarks.windows import KINDS, SHARES, Array, Timed, Window, balanced, forecast, score, windows

if TYPE_CHECKING:
    import pandas as pd

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "curves.md"
PICTURE: Final = DOCUMENT.with_suffix(".png")
ROWS: Final = RESULTS / "curves.csv"
MOST: Final = 40
"""Windows of each source, kind and share."""

LEFT_OUT: Final = {"bayes": left_out.bayes, "auto": left_out.auto}

HEAD: Final = ("model", "seen", "median", "90 %", "failures", "log score", "50 %", "80 %", "90 %", "95 %", "ms", "99 %")
"""Of a table whose rows are `cells`."""

_LEVELS = np.linspace(0.05, 0.95, 19)  # intervals of the picture
_INTRODUCTION = """\
Written by `python -m benchmarks curves`; edit nothing here by hand. The first 10, 20 or 40 % of a stretch of a real
training run is seen, as at most 50 bin means; the mean loss of its last 5 % is forecast. Windows are whole *runs*,
*pieces* (a run's first tenth, quarters from mid-training) and *forks* (from where the rate changes to the end), at
most {most} of each source, kind and share: {count} without blow-ups. Only failures count blow-ups, and a failure
counts as an infinite error. `siblings` (or its part `stopping`), `own-curves`, `models` and
`python -m benchmarks.mcmc report` write their sections alone; those of the last two are of rows on file.

- *median*, *90 %*: quantiles of the relative error.
- *failures*: no finite forecast, or one above ten times what was seen, or not above 0 where all losses are.
- *log score*: mean negative log density of loss/last at the truth, clipped at 8; lower is better.
- *50 %* to *95 %*: how many truths lie in that central interval.
- *ms*: CPU time of a single curve, median and 99th percentile, one core.
- *left out*: settings and widths of `bayes`, and of `auto` its prior weights and the network's widening, are chosen on
  the other sources, for each source in turn. **Not left out** are the network's weights: they were trained on draws of
  a synthetic prior, but its constants were matched to all sources; nor, in `auto`, the settings of `bayes`. The
  constants of all other rows are the shipped ones, which were chosen on these curves."""


@dataclass(frozen=True, slots=True)
class Last:
    """The last value, as wide as what the last doubling of the steps brought, for each further one."""

    def extrapolate(
        self,
        curves: Sequence[Curve],
        at: Sequence[float],
        *,
        schedule: Schedule | None = None,
        history: Sequence[Curve] = (),
    ) -> Forecasts:
        rows = [self._forecast(curve, offset) for curve, offset in zip(curves, at, strict=True)]
        location, scale = np.array(rows, dtype=np.float64).reshape(-1, 2).T
        with np.errstate(invalid="ignore"):  # of a curve without a finite point
            return Forecasts.student_t(at, location, scale, 3)

    @staticmethod
    def _forecast(curve: Curve, at: float) -> tuple[float, float]:
        points = points_of(curve)
        if points is None:
            return np.nan, np.inf
        doublings = np.log2(max(points.ahead(at), 1.0)) if points.span > 0 else 1.0
        change = abs(float(points.y[len(points) // 2]) - points.last)
        return points.last * points.scale, points.scale * (change * doublings + points.noise + 1e-3 * abs(points.last))


def models(names: Sequence[str] = CURVE_MODELS) -> dict[str, CurveModel]:
    """The baselines, and the curve models of these names; `law`, which needs rates, is judged by itself."""
    ours = {name: curve_model(name) for name in names if name != "law"}
    return {"last value": Last(), "published": PublishedExponential()} | ours


def write(most: int = MOST, names: Sequence[str] = CURVE_MODELS, *, only_windows: bool = False) -> None:
    """Judge every model and write rows, picture and document; `only_windows`: leave the parts that follow."""
    import pandas as pd

    from benchmarks import curve_models, laws, mcmc_report, siblings, unseen

    found = balanced(windows(), most)
    results: dict[str, Timed] = {}
    for name, model in models(names).items():
        results[name] = forecast(model, found)
        print(f"{name}: {np.median(results[name].milliseconds):.2f} ms a curve", flush=True)
    rows = pd.concat(
        {(n, k): t for n, r in results.items() for k, t in by_kind(r, found).items()}, names=["model", "kind"]
    )
    rows.assign(commit=commit()).round(5).to_csv(ROWS, lineterminator="\n")
    picture(results, found, PICTURE)
    out = {f"{name}, left out": score(make(found), found) for name, make in LEFT_OUT.items()}
    lines = document(rows, out, raw(found, names), most)
    if only_windows:
        rest = DOCUMENT.read_text("utf-8").partition(f"\n{siblings.HEADING}\n")[2].splitlines()
    else:
        rest = ["", *siblings.section(), "", *laws.section(), "", unseen.HEADING, "", *unseen.section(names)]
        rest += ["", curve_models.HEADING, "", *curve_models.section()]
        rest += ["", mcmc_report.HEADING, "", *mcmc_report.section()]
    lines += ["", siblings.HEADING, *rest]
    DOCUMENT.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def by_kind(timed: Timed, found: Sequence[Window]) -> dict[str, pd.DataFrame]:
    """`score` of each kind of windows, and of "any"."""
    parts = {"any": list(range(len(found)))}
    parts |= {kind: kept for kind in KINDS if (kept := [i for i, w in enumerate(found) if w.kind == kind])}
    return {
        kind: score(_taken(timed.forecasts, kept), [found[i] for i in kept], timed.milliseconds[kept])
        for kind, kept in parts.items()
    }


def raw(found: Sequence[Window], names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """`score` on whole runs of models that are shown every point instead of bin means."""
    runs = [w for w in found if w.kind == "run"]
    timed = {name: forecast(curve_model(name), runs, raw=True) for name in names if name != "law"}
    return {name: score(of.forecasts, runs, of.milliseconds) for name, of in timed.items()}


def _taken(forecasts: Forecasts, kept: Sequence[int]) -> Forecasts:
    columns = (forecasts.at, forecasts.mean, forecasts.std, forecasts.table, forecasts.log)
    return Forecasts(*(None if column is None else column[list(kept)] for column in columns))


def document(
    rows: pd.DataFrame, out: Mapping[str, pd.DataFrame], every_point: Mapping[str, pd.DataFrame], most: int
) -> list[str]:
    """The report's own part, in Markdown."""
    every = rows.xs("any", level="kind")
    names = list(dict.fromkeys(every.index.get_level_values("model")))
    sources = [name for name in dict.fromkeys(every.index.get_level_values("source")) if name != "all"]
    count = " / ".join(f"{every.loc[(names[0], 'all', share), 'windows']:.0f}" for share in SHARES)
    whole = [cells(name, share, every.loc[(name, "all", share)]) for share in SHARES for name in names]
    whole += [cells(name, share, table.loc[("all", share)]) for share in SHARES for name, table in out.items()]
    whole.sort(key=lambda row: row[1])
    kinds = [
        cells(f"{name}, {kind}", share, rows.loc[(name, kind, "all", share)])
        for kind in KINDS
        for share in SHARES
        for name in names
    ]
    points = [cells(name, share, table.loc[("all", share)]) for share in SHARES for name, table in every_point.items()]

    def by_source(column: str, digits: int) -> list[list[str]]:
        def cell(table: pd.DataFrame, *key: str) -> str:
            return " / ".join(
                f"{table.loc[(*key, share), column]:.{digits}f}" if (*key, share) in table.index else ""
                for share in SHARES
            )

        return [
            [source, *(cell(every, name, source) for name in names), *(cell(table, source) for table in out.values())]
            for source in sources
        ]

    return [
        "# Curve models on real curves",
        "",
        *_INTRODUCTION.format(most=most, count=count).splitlines(),
        "",
        f"![calibration and errors]({PICTURE.name})",
        "",
        "## All windows",
        "",
        *markdown(HEAD, whole),
        "",
        "## By source: median relative error at 10 / 20 / 40 %",
        "",
        *markdown(["source", *names, *out], by_source("median", 3)),
        "",
        "## By source: log score at 10 / 20 / 40 %",
        "",
        *markdown(["source", *names, *out], by_source("log_score", 2)),
        "",
        "## By kind of window",
        "",
        *markdown(HEAD, kinds),
        "",
        "## Whole runs, every point seen instead of 50 bin means",
        "",
        *markdown(HEAD, points),
    ]


def cells(name: str, share: float, row: pd.Series[float]) -> list[str]:
    """A row of `score`, as `HEAD` has it."""
    return [
        name,
        f"{share:.0%}",
        f"{row['median']:.3f}",
        f"{row.p90:.2f}",
        f"{row.failures:.1%}",
        f"{row.log_score:.2f}",
        *(f"{row[f'cover{c}']:.0%}" for c in (50, 80, 90, 95)),
        *(("", "") if np.isnan(row.ms) else (f"{row.ms:.2f}", f"{row.ms99:.1f}")),
    ]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def picture(results: Mapping[str, Timed], found: Sequence[Window], path: Path) -> None:
    """Left: coverage of central intervals against what they claim. Right: quantiles of the relative error by model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from benchmarks.windows import errors

    usual = np.array([not w.blow_up for w in found])
    share = np.array([w.share for w in found])
    truth: Array = np.array([w.truth for w in found])
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    for number, (name, timed) in enumerate(results.items()):
        off = 2 * np.abs(timed.forecasts.cdf(truth)[usual] - 0.5)
        left.plot(_LEVELS, [(off <= level).mean() for level in _LEVELS], label=name, color=f"C{number}")
        error = errors(timed.forecasts, found)
        for place, seen in enumerate(SHARES):
            low, middle, high = np.quantile(error[usual & (share == seen)], (0.1, 0.5, 0.9), method="higher")
            x = place + 0.8 * (number + 0.5) / len(results) - 0.4
            right.plot([x, x], [low, min(high, 1e3)], color=f"C{number}", linewidth=3, alpha=0.4)
            right.plot(x, middle, "o", color=f"C{number}")
    left.set(xlabel="claimed", ylabel="covered", title="Central intervals, all shares", xlim=(0, 1), ylim=(0, 1))
    left.legend(frameon=False)
    right.set(yscale="log", ylabel="relative error: 10 %, median, 90 %", title="Error of the forecast")
    right.set_xticks(range(len(SHARES)), [f"{seen:.0%} seen" for seen in SHARES])
    figure.savefig(path, dpi=110, metadata={"Software": ""})
