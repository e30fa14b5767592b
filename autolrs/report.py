"""`autolrs show`: a study as tables, readable at 80 columns and plain when piped."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autolrs.records import Record, Settings, TrialState
from autolrs.schedules import Piece
from autolrs.space import SearchSpace
from autolrs.study import Cost, Study, probe_rows

if TYPE_CHECKING:
    from autolrs.strategies.common import PlannedStage

_STYLES: Final = {
    TrialState.COMPLETE: "green",
    TrialState.PRUNED: "yellow",
    TrialState.DIVERGED: "red",
    TrialState.RUNNING: "cyan",
}
_WIDE: Final = 110  # columns from which on a probe's reason has room beside it


def show(study: Study, console: Console) -> None:
    """Print everything about a study."""
    console.print(report(study, wide=console.width >= _WIDE))


def report(study: Study, *, wide: bool = False) -> RenderableType:
    """Header, stages, probes, schedule and cost as one renderable."""
    record = study.record
    parts: list[RenderableType] = [_header(study)]
    if record.stages:
        parts += [_titled("Stages", _stages(record)), _titled("Probes", _probes(record, wide))]
    if record.pieces:
        parts.append(_titled("Schedule", schedule_table(record.pieces, record.ratios)))
    if record.early is not None:
        parts.append(_titled("Schedule of the final weights", _final_schedule(record)))
    if record.roll_backs:
        parts.append(_titled("Roll-backs", Text("\n".join(record.roll_backs), style="yellow")))
    return Group(*parts, _titled("Cost", cost_table(study.cost)))


def summary(study: Study) -> RenderableType:
    """What a run that has just ended came to."""
    grid = _grid("", "")
    grid.add_row(Text("study", "dim"), Text(f"{study.name} in {study.storage}", "bold"))
    grid.add_row(Text("final loss", "dim"), Text(number(study.final_loss, 6), "bold"))
    if study.result is not None:
        grid.add_row(Text("result", "dim"), Text(str(study.result)))
    if study.early is not None:
        grid.add_row(Text("restored", "dim"), Text(_restored(study.record)))
    grid.add_row(Text("weights", "dim"), Text(str(study.checkpoint())))
    schedule = _titled("Schedule", _final_schedule(study.record))
    return Group(grid, schedule, _titled("Cost", cost_table(study.cost)))


def plan_table(settings: Settings, stages: Sequence[PlannedStage]) -> RenderableType:
    """What a run will do, and cost at most, before any of it is paid."""
    table = table_of("stage >", "from step >", "probes >", "steps each >", "probe steps >")
    for stage in stages:
        cells = (stage.stage, stage.start, stage.probes, stage.length, stage.probes * stage.length)
        table.add_row(*(f"{cell:,}" for cell in cells))
    total = sum(stage.probes * stage.length for stage in stages)
    cost = f"{total:,} probe steps at most (budget {settings.budget:,}) beside {settings.steps:,} kept steps"
    return Group(table, "", Text(cost), Text(f"search cost at most {total / settings.steps:.3f}", "bold"))


def spaces_table() -> RenderableType:
    """The shipped search spaces."""
    table = table_of("name", "for", "rates", "schedule", "warm-up >", "reference")
    for name in SearchSpace.names():
        space = SearchSpace.load(name)
        low, high = space.bounds
        table.add_row(
            *(name, space.optimizer, f"{number(low)} – {number(high)}", space.schedule, f"{space.warmup:.3g}"),
            Text(space.reference, "dim"),
        )
    return table


def schedule_table(pieces: tuple[Piece, ...], ratios: tuple[float, ...]) -> RenderableType:
    """A row for each piece; several parameter groups get a line with their multiples."""
    table = table_of("steps >", "shape", "from rate >", "to rate >")
    for piece in pieces:
        ends = (piece.rate(piece.start), piece.rate(piece.stop))
        table.add_row(f"{piece.start:,} – {piece.stop:,}", piece.shape, *(number(rate) for rate in ends))
    if len(ratios) < 2:
        return table
    groups = ", ".join(f"{group}: x{number(ratio)}" for group, ratio in enumerate(ratios))
    return Group(table, Text(f" parameter groups  {groups}", style="dim"))


def _final_schedule(record: Record) -> RenderableType:
    schedule = record.final_schedule
    assert schedule is not None
    return schedule_table(schedule.pieces, record.ratios)


def cost_table(cost: Cost) -> RenderableType:
    """What the run cost, and what the search added to it."""
    rows = [
        ("kept steps", f"{cost.kept_steps:,}", ""),
        ("probe steps", f"{cost.probe_steps:,}", f"{cost.adopted_steps:,} of them became kept steps"),
        ("discarded steps", f"{cost.discarded_steps:,}", "rolled back"),
        ("lost steps", f"{cost.lost_steps:,}", "to crashes"),
        ("validations", f"{cost.validation_calls:,}", ""),
        ("wall time", duration(cost.wall_seconds), ""),
        ("search cost", f"{cost.search_cost:.3f}", "(probe - adopted + discarded) / kept"),
    ]
    needless = {"discarded steps", "lost steps"}
    grid = _grid("", ">", "")
    for name, value, note in rows:
        if name in needless and value == "0":
            continue
        style = "bold" if name == "search cost" else ""
        grid.add_row(Text(name, style=style), Text(value, style=style), Text(note, style="dim"))
    return grid


def number(value: float | None, digits: int = 4) -> str:
    """A loss or rate for people; "–" if there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """1:02:03, 2:03 or 3.4 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _header(study: Study) -> RenderableType:
    record, settings = study.record, study.record.settings
    space, low, high = settings.space, *settings.space.bounds
    options = ", ".join(f"{key}={value}" for key, value in changed_options(settings).items())
    status = Text("finished", "green") if record.finished else Text(f"at step {record.kept_steps:,}", "yellow")
    exact = Text("yes: a plain loop with this schedule and seed ends the same", "green")
    if not study.exact:
        exact = Text(f"no: {study.exact_reason}", "yellow")
    grid = _grid("", "")
    for name, value in (
        ("study", Text(study.name, "bold")),
        ("status", status),
        ("final loss", Text(number(study.final_loss, 6), "bold")),
        ("steps", f"{settings.steps:,}, at most {settings.budget:,} of search"),
        ("space", f"{space.name}: {number(low)} to {number(high)}, {space.schedule}, warm-up {space.warmup:.3g}"),
        ("strategy", settings.strategy + (f" ({options})" if options else "")),
        ("curve model", settings.curve_model),
        ("seed", str(settings.seed)),
        *((("momentum", f"{record.momentum:g} instead of {record.own_momentum:g}"),) if record.momentum else ()),
        *((("lookahead", "every 5 updates, half-way back to slow weights"),) if settings.lookahead else ()),
        *(
            (("averaged weights", _averaged(record)),)
            if settings.average and record.finished and not record.early
            else ()
        ),
        *((("restored", _restored(record)),) if record.early else ()),
        ("exact", exact),
        ("stored in", study.storage),
    ):
        grid.add_row(Text(name, "dim"), value if isinstance(value, Text) else Text(value))
    return grid


def _restored(record: Record) -> str:
    """Which probe the final weights are of, and what the whole run has."""
    early = record.early
    assert early is not None
    return (
        f"the end of probe {early.stage}.{early.number}, {early.length:,} steps: the whole run ended higher, at "
        f"{number(record.plain_loss, 6)}"
    )


def _averaged(record: Record) -> str:
    """Whether the final weights are an average, and what it is worth."""
    if record.average is None:
        return "no better than the last step's"
    text = f"the weight of step s is s^{record.average:g}"
    return text if record.plain_loss is None else f"{text}; the last step's weights have {number(record.plain_loss, 6)}"


def changed_options(settings: Settings) -> dict[str, Any]:
    """The strategy's parameters that are not its defaults; the sampler's as "sampler.kappa" and so on.

    Those of a curve model that goes by a name are not among them: the name says them all.
    """
    from autolrs.curves import CURVE_MODELS
    from autolrs.strategies import STRATEGIES, strategy

    options, known = dict(settings.options), settings.strategy in STRATEGIES
    if settings.curve_model in CURVE_MODELS:
        options.pop("curves", None)
    return _changed(options, strategy(settings.strategy) if known else None)


def _changed(options: Mapping[str, Any], default: object, prefix: str = "") -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in options.items():
        usual = getattr(default, key, None)
        if isinstance(value, Mapping):
            changed |= _changed(value, usual, f"{prefix}{key}.")
        elif value != usual and (key, value) != ("kind", type(default).__name__):
            changed[prefix + key] = value
    return changed


def _stages(record: Record) -> Table:
    table = table_of("stage >", "steps >", "rate >", "probes >", "adopted >", "why")
    for stage in record.stages:
        stop = "…" if stage.stop is None else f"{stage.stop:,}"
        table.add_row(
            str(stage.index),
            f"{stage.start:,} – {stop}",
            number(stage.rate),
            str(len(stage.trials)),
            f"{stage.adopt:,}" if stage.adopt else "–",
            Text(stage.reason or "searching"),
        )
    return table


def _probes(record: Record, wide: bool) -> Table:
    rows = probe_rows(record)
    # A complete miniature's forecast is what it measured: no news.
    forecasts = any(row["forecast_mean"] not in (row["objective"], None) for row in rows)
    momenta = not all(math.isnan(row["momentum"]) for row in rows)
    names = [
        "probe >",
        "rate >",
        *(["momentum >"] if momenta else []),
        "steps >",
        "state",
        "loss >",
        *(["forecast >", "came true >"] if forecasts else []),
        "",
    ]
    table = table_of(*names, *(["why"] if wide else []))
    stage = None
    for row in rows:
        if stage not in (None, row["stage"]):
            table.add_section()
        stage = row["stage"]
        state, forecast = TrialState(row["state"]), number(row["forecast_mean"])
        if forecast != "–":
            forecast += f" ± {number(row['forecast_std'], 2)}"
        cells = [
            *(f"{row['stage']}.{row['number']}", number(row["rate"])),
            *([number(row["momentum"])] if momenta else []),
            f"{row['steps']:,}/{row['length']:,}",
            Text(state.value, _STYLES[state]),
            number(row["objective"]),
            *((forecast, number(row["truth"])) if forecasts else ()),
            "won" if row["won"] else "",
        ]
        table.add_row(*cells, *([Text(row["reason"], "dim")] if wide else []), style="bold" if row["won"] else "")
    return table


def table_of(*headings: str, wrapped: Collection[str] = ("why", "reference")) -> Table:
    """A table of these columns, of which those `wrapped` may be broken; a heading that ends in " >" is for numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="dim", show_edge=False)
    for heading in headings:
        right = heading.endswith(" >")
        table.add_column(
            heading.removesuffix(" >"),
            justify="right" if right else "left",
            no_wrap=heading not in wrapped,
        )
    return table


def _grid(*sides: str) -> Table:
    grid = Table.grid(padding=(0, 2))
    for side in sides:
        grid.add_column(justify="right" if side == ">" else "left")
    return grid


def _titled(title: str, content: RenderableType) -> RenderableType:
    return Group("", Text(title, "bold"), Padding(content, (0, 0, 0, 1)))
