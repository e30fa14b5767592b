"""`autolrs plot`: a study as one picture of four panels, or a web page with the picture and the tables.

Figures are made without pyplot: no global state, no display. Colours are those of Okabe and Ito (2008) and viridis,
which stay apart for colour-blind eyes and in grey.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from autolrs.errors import SettingError
from autolrs.records import Curve, Record, Stage, Trial, TrialState
from autolrs.report import number, report
from autolrs.samplers import GPSampler
from autolrs.strategies.common import observations, pooled_observations
from autolrs.study import Study, came_true

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GREY, GRID = "#222222", "#8c8c8c", "#e6e6e6"
BLUE, ORANGE, RED = "#0072b2", "#e69f00", "#d55e00"
STAGES: Final = (BLUE, ORANGE, "#009e73", "#cc79a7")
"""Colours of the stages in the surrogate's panel; so many are shown."""

INSET: Final = 0.46
"""Where the inset begins, as a share of its panel."""

_STYLE: Final[dict[Any, Any]] = {
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def save(study: Study, path: Path) -> None:
    """Write the picture (`.png`) or the page (`.html`).

    Raises:
        SettingError: another suffix, or nothing has been decided or probed yet.
    """
    suffix = path.suffix.lower()
    if suffix not in (".png", ".html"):
        raise SettingError(f"the file must end in .png or .html, but got {str(path)!r}.")
    picture = png(study)
    if suffix == ".png":
        path.write_bytes(picture)
    else:
        path.write_text(page(study, picture), encoding="utf-8")


def png(study: Study) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure(study)).print_figure(buffer, format="png", metadata={"Title": f"autolrs {study.name}"})
    return buffer.getvalue()


def page(study: Study, picture: bytes) -> str:
    """A web page of one file: the picture, and what `autolrs show` prints."""
    from rich.console import Console

    console = Console(record=True, file=io.StringIO(), width=120, force_terminal=True)
    console.print(report(study, wide=True))
    tables = console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
    image = base64.b64encode(picture).decode()
    name = html.escape(study.name)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>autolrs {name}</title>\n'
        "<style>body{max-width:1100px;margin:2em auto;font-family:sans-serif;color:#222}img{width:100%}"
        "pre{font:13px/1.35 monospace;overflow-x:auto}</style>\n"
        f'<h1>{name}</h1>\n<img alt="schedule, losses, forecasts and surrogate of {name}" '
        f'src="data:image/png;base64,{image}">\n{tables}\n</html>\n'
    )


def figure(study: Study) -> Figure:
    """Schedule, losses, forecasts against what came true, surrogate by stage.

    Raises:
        SettingError: nothing has been decided or probed yet.
    """
    import matplotlib

    record = study.record
    if not record.stages or not (record.pieces or record.stages[0].trials):
        raise SettingError(f"study {study.name!r} has nothing to plot yet.")
    with matplotlib.rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        fig = Figure(figsize=(11, 7.6), dpi=150, layout=layout)
        axes = fig.subplots(2, 2)
        _title(fig, study)
        _schedule(axes[0, 0], record)
        _losses(axes[0, 1], record)
        _forecasts(axes[1, 0], record)
        _surrogate(axes[1, 1], record)
    return fig


def _title(fig: Figure, study: Study) -> None:
    settings, cost = study.record.settings, study.cost
    done = (
        f"{study.record.kept_steps:,} of {settings.steps:,} steps"
        if not study.finished
        else f"{settings.steps:,} steps"
    )
    loss = f", final loss {number(study.final_loss)}" if study.final_loss is not None else ""
    if (early := study.record.early) is not None:
        loss += f" of probe {early.stage}.{early.number} (the run: {number(study.record.plain_loss)})"
    fig.suptitle(
        f"{study.name}   {done}, strategy {settings.strategy}, space {settings.space.name}{loss}, "
        f"search cost {cost.search_cost:.2f}",
        fontsize=11,
        x=0.01,
        ha="left",
    )


def _schedule(axes: Axes, record: Record) -> None:
    axes.set(title="Schedule", xlabel="kept step", ylabel="learning rate")
    schedule = record.schedule
    if schedule is None:
        _empty(axes, "nothing is decided yet")
        return
    edges = {edge for piece in schedule.pieces for edge in (piece.start, piece.stop - 1)}
    steps = sorted(edges | set(np.linspace(0, schedule.steps - 1, 800).astype(int).tolist()))
    rates = np.array([schedule(step) for step in steps])
    done = np.array(steps) <= record.kept_steps
    axes.plot(np.array(steps)[done], rates[done], color=BLUE, lw=1.8)
    axes.plot(np.array(steps)[~done], rates[~done], color=BLUE, lw=1.2, ls=":")
    peak = float(rates.max())
    if record.early is not None and (final := record.final_schedule) is not None:
        axes.plot([final(step) for step in range(final.steps)], color=ORANGE, lw=1.8, label="of the final weights")
        axes.legend(loc="lower center", frameon=False, fontsize=8)
        peak = max(peak, max(final(step) for step in range(final.steps)))
    axes.set_yscale("log")
    lowest = min((stage.rate for stage in record.stages if stage.rate), default=peak)  # a decay to zero may leave below
    bottom = min(max(float(rates[rates > 0].min(initial=peak)), peak * 1e-3), lowest / 2)
    axes.set_ylim(bottom * 0.8, peak * 1.6)
    _rate_axis(axes.yaxis)
    _boundaries(axes, record)
    said = ""
    for stage in record.stages:
        before, said = said, "" if stage.rate is None else number(stage.rate, 3)
        if stage.rate is not None and said != before and len(record.stages) <= 6:
            axes.annotate(
                said,
                (stage.start, stage.rate),
                (3, 5),
                textcoords="offset points",
                color=INK,
                fontsize=8,
            )
    _steps_axis(axes, record)


def _losses(axes: Axes, record: Record) -> None:
    axes.set(title="Training loss of the kept run and of the probes", xlabel="kept step", ylabel="loss")
    norm = _norm(record)
    trials = [(stage, trial) for stage in record.stages for trial in stage.trials if trial.curve is not None]
    for stage, trial in trials:
        _probe(axes, stage, trial, norm)
    points = [
        (part.start + offset, loss)
        for part in record.kept
        for offset, loss in zip(part.curve.offsets, part.curve.losses, strict=True)
    ]
    if points:
        axes.plot(*zip(*points, strict=True), color=INK, lw=1.0, label="kept run")
    limits = _loss_limits(record)
    axes.set_ylim(_with_room(limits, points, record.settings.steps) if trials else limits)
    _boundaries(axes, record)
    _steps_axis(axes, record)
    if not trials:
        return
    searched = max(record.stages, key=lambda stage: (len(stage.trials), -stage.index))
    inset = axes.inset_axes((INSET, INSET, 0.99 - INSET, 0.92 - INSET))
    inset.set_title(f"probes of stage {searched.index}", fontsize=8, fontweight="normal", pad=3)
    for trial in searched.trials:
        _probe(inset, searched, trial, norm, width=1.3)
    inset.set_ylim(_curve_limits([t.curve for t in searched.trials if t.curve is not None], limits))
    inset.set_facecolor("white")
    inset.tick_params(labelsize=7)
    inset.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    inset.yaxis.set_major_locator(MaxNLocator(4))
    bar = axes.figure.colorbar(ScalarMappable(norm, "viridis"), ax=axes, pad=0.01, aspect=30)
    bar.set_label("rate of the probe")
    bar.outline.set_visible(False)
    _rate_axis(bar.ax.yaxis)


def _with_room(limits: tuple[float, float], points: Sequence[tuple[float, float]], steps: int) -> tuple[float, float]:
    """Limits under which the kept run leaves the upper right corner to the inset."""
    low, high = limits
    below = [min(loss, high) for step, loss in points if step > (INSET - 0.08) * steps and math.isfinite(loss)]
    return low, max(high, low + (max(below, default=low) - low) / (INSET - 0.08))


def _forecasts(axes: Axes, record: Record) -> None:
    axes.set(title="Forecasts, and what came true", xlabel="probe (stage.number)", ylabel="loss")
    trials = [trial for stage in record.stages for trial in stage.trials]
    if not any(trial.forecast for trial in trials):
        _empty(axes, "no forecast yet")
        return
    at = range(len(trials))
    known = [(x, t, t.forecast) for x, t in zip(at, trials, strict=True) if t.forecast is not None]
    means = [forecast.mean for _, _, forecast in known]
    axes.errorbar(
        [x for x, _, _ in known],
        means,
        [forecast.std for _, _, forecast in known],
        fmt="o",
        color=BLUE,
        ms=5,
        capsize=2,
        lw=1.2,
        label="forecast ± sd",
    )
    measured = {x: t.objective for x, t in zip(at, trials, strict=True) if t.objective is not None}
    true = {x: loss for x, t in zip(at, trials, strict=True) if (loss := came_true(record, t)) is not None}
    axes.plot(*_xy(measured), "o", ms=9, mfc="none", mec=GREY, label="at the probe's end")
    if true:
        axes.plot(*_xy(true), "*", ms=12, color=ORANGE, mec=INK, mew=0.5, zorder=3, label="came true")
    ceiling = _ceiling(record)
    axes.set_ylim(_limits([min(loss, ceiling) for loss in (*means, *measured.values(), *true.values())]))
    _mark(axes, [x for x, t in zip(at, trials, strict=True) if _off(t, ceiling)])
    ends = np.cumsum([len(stage.trials) for stage in record.stages])
    for end in ends[:-1]:
        axes.axvline(end - 0.5, color=GREY, lw=0.8, ls="--", zorder=1)
    axes.set_xlim(-0.7, len(trials) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _name(trials[int(x)]) if 0 <= x < len(trials) else ""))
    _legend_below(axes)


def _surrogate(axes: Axes, record: Record) -> None:
    axes.set(title="Surrogate by stage (dashed: the rate chosen)", xlabel="learning rate", ylabel="forecast loss")
    found = pooled_observations(record) if record.settings.options.get("pool") else observations(record)
    stages = [s for s in record.stages if any(o.stage == s.index and math.isfinite(o.value) for o in found)]
    if not stages:
        _empty(axes, "no finished probe yet")
        return
    bounds = record.settings.space.bounds
    rates = np.geomspace(*bounds, 161)
    values: list[float] = []
    shown = [stages[i] for i in sorted(set(np.linspace(0, len(stages) - 1, len(STAGES)).round().astype(int).tolist()))]
    for stage, color in zip(shown, STAGES, strict=False):
        median, low, high = _sampler(record).posterior(found, bounds=bounds, stage=stage.index, rates=rates.tolist())
        axes.plot(rates, median, color=color, lw=1.6, label=f"stage {stage.index}")
        axes.fill_between(rates, low, high, color=color, alpha=0.16, lw=0)
        tried = [o for o in found if o.stage == stage.index and math.isfinite(o.value)]
        axes.errorbar(
            [o.rate for o in tried],
            [o.value for o in tried],
            [o.std for o in tried],
            fmt="o",
            color=color,
            ms=4.5,
            capsize=2,
            lw=1,
        )
        if stage.rate is not None:
            axes.axvline(stage.rate, color=color, lw=0.9, ls="--")
        values += [o.value for o in tried]
    ceiling = _ceiling(record)
    axes.set_ylim(_limits([min(value, ceiling) for value in values], 0.2))
    _mark(axes, [t.rate for s in shown for t in s.trials if _off(t, ceiling)])
    axes.set_xscale("log")
    axes.set_xlim(bounds)
    _rate_axis(axes.xaxis)
    _legend_below(axes, "" if len(shown) == len(stages) else f"{len(shown)} of {len(stages)} stages")


def _sampler(record: Record) -> GPSampler:
    """The study's own sampler, as far as the record tells."""
    options = record.settings.options.get("sampler")
    known = {"surrogate", "acquisition", "kappa"}
    return (
        GPSampler(**{key: options[key] for key in known & set(options)}) if isinstance(options, dict) else GPSampler()
    )


def _probe(axes: Axes, stage: Stage, trial: Trial, norm: LogNorm, width: float = 0.9) -> None:
    curve = trial.curve
    if curve is None or not len(curve):
        return
    won = stage.winner == trial.number
    steps = [stage.start + offset for offset in curve.offsets]
    color = ScalarMappable(norm, "viridis").to_rgba(np.array([trial.rate]))[0]
    axes.plot(steps, curve.losses, color=color, lw=width * (1.8 if won else 1.0), zorder=3 if won else 2)
    if trial.state is TrialState.DIVERGED:
        last = max((i for i, loss in enumerate(curve.losses) if math.isfinite(loss)), default=None)
        if last is not None:
            axes.plot(steps[last], curve.losses[last], "x", color=RED, ms=5, zorder=4)


def _xy(points: Mapping[int, float]) -> tuple[list[int], list[float]]:
    return list(points), list(points.values())


def _name(trial: Trial) -> str:
    return f"{trial.stage}.{trial.number}"


def _legend_below(axes: Axes, title: str = "") -> None:
    legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=5, title=title or None)
    legend.get_title().set_fontsize(8)


def _ceiling(record: Record) -> float:
    """Losses above this say only that a rate is bad: where the stages start, and a fifth of their progress more."""
    tops = [
        stage.start_loss + 0.2 * max(0.0, stage.start_loss - min(t.forecast.mean for t in stage.trials if t.forecast))
        for stage in record.stages
        if stage.start_loss is not None and any(t.forecast for t in stage.trials)
    ]
    return max(tops, default=math.inf)


def _off(trial: Trial, ceiling: float) -> bool:
    return trial.state is TrialState.DIVERGED or (trial.forecast is not None and trial.forecast.mean > ceiling)


def _mark(axes: Axes, xs: Sequence[float]) -> None:
    """Crosses at the top edge for probes that diverged, or ended above the picture."""
    if xs:
        top = axes.get_xaxis_transform()
        label = "diverged or off the scale"
        axes.plot(xs, [0.97] * len(xs), "x", color=RED, ms=6, mew=1.6, transform=top, ls="none", label=label)


def _boundaries(axes: Axes, record: Record) -> None:
    for stage in record.stages[1:]:
        axes.axvline(stage.start, color=GREY, lw=0.8, ls="--", zorder=1)


def _norm(record: Record) -> LogNorm:
    rates = [trial.rate for stage in record.stages for trial in stage.trials] or list(record.settings.space.bounds)
    low, high = min(rates), max(rates)
    return LogNorm(low, high) if low < high else LogNorm(low / 2, high * 2)


def _loss_limits(record: Record) -> tuple[float, float]:
    curves = [part.curve for part in record.kept]
    curves += [t.curve for stage in record.stages for t in stage.trials if t.curve is not None]
    return _curve_limits(curves, (0.0, 1.0))


def _curve_limits(curves: Sequence[Curve], otherwise: tuple[float, float]) -> tuple[float, float]:
    """From the lowest loss to a little above where curves start: what explodes leaves the picture."""
    finite = [[loss for loss in curve.losses if math.isfinite(loss)] for curve in curves]
    finite = [losses for losses in finite if losses]
    if not finite:
        return otherwise
    low, start = min(map(min, finite)), max(losses[0] for losses in finite)
    most = float(np.quantile(np.concatenate(finite), 0.95))
    return _limits([low, max(start, min(most, start + 0.3 * (start - low)))])


def _limits(values: Sequence[float], margin: float = 0.08) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = margin * (high - low) or 0.1 * abs(high) or 0.1
    return low - room, high + room


def _steps_axis(axes: Axes, record: Record) -> None:
    axes.set_xlim(0, record.settings.steps)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))


def _rate_axis(axis: Any) -> None:
    """Plain numbers at the decades, and at 2 and 5 of them on short axes."""
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 50 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axis.set_minor_formatter(NullFormatter())


def _empty(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=GREY)
