"""Progress of a run for people: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from autolrs.records import (
    Decided,
    Event,
    Finished,
    Instruction,
    Opened,
    Probe,
    Probed,
    Record,
    Reverted,
    RolledBack,
    Train,
    Trained,
    TrialState,
)
from autolrs.report import duration, number
from autolrs.study import Cost

if TYPE_CHECKING:
    from types import TracebackType


class ShowProgress:
    """A `protocols.Callback` that writes to `console`; a context manager, so that the live display ends.

    Args:
        live: None: whether the console is a terminal.
    """

    def __init__(self, console: Console, *, live: bool | None = None) -> None:
        self._console = console
        self._live = console.is_terminal if live is None else live
        self._began = time.monotonic()
        self._first: int | None = None  # steps that were already done when we began to look
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            _Steps(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not self._live,
        )
        self._kept = self._bars.add_task("kept", total=None, note="")
        self._now = self._bars.add_task("", total=None, note="", visible=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def on_event(self, record: Record, event: Event) -> None:
        if self._first is None:
            self._first = _done(record)
        line = describe(record, event)
        if line and not (self._live and isinstance(event, Trained | Opened)):
            self._console.print(line, style=_style(event), highlight=False, soft_wrap=True)
        self._update(record, 0)

    def on_progress(self, record: Record, instruction: Instruction, done: int, loss: float) -> None:
        if self._first is None:
            self._first = _done(record)
        if not self._live:
            return
        what, total, rate = running(record, instruction, done)
        note = f"loss {number(loss)}  rate {number(rate)}"
        self._bars.update(self._now, description=what, total=total, completed=done, note=note, visible=True)
        self._update(record, ahead(record, instruction, done), trains=isinstance(instruction, Train))

    def _update(self, record: Record, ahead: int, *, trains: bool = False) -> None:
        done = _done(record) + ahead - (self._first or 0)
        left = time_left(time.monotonic() - self._began, done, steps_left(record) - ahead)
        note = "  ".join(filter(None, (best(record), f"search {_search(record)}", left)))
        kept = record.kept_steps + (ahead if trains else 0)
        self._bars.update(self._kept, total=record.settings.steps, completed=kept, note=note)


class _Steps(ProgressColumn):
    """1,234/10,000"""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.completed:,.0f}/{task.total:,.0f}", "progress.download")


def describe(record: Record, event: Event) -> str:
    """One line about an event; "" for those that say nothing to people."""
    match event:
        case Opened(stage=stage, start=start):
            return f"stage {stage} begins at step {start:,}{_loss(event.start_loss)}"
        case Probed():
            trial = record.stages[event.stage].trials[event.number]
            became = "" if event.state is TrialState.COMPLETE else f", {event.state}: {event.reason}"
            return f"probe {event.stage}.{event.number} at rate {number(trial.rate)}{_loss(event.objective)}{became}"
        case Decided(decision=decision):
            adopted = f", {decision.adopt:,} steps of its probe kept" if decision.adopt else ""
            return f"stage {decision.stage}: rate {number(decision.rate)}{adopted} ({decision.reason})"
        case Trained(stop=stop):
            loss = event.curve.losses[-1] if len(event.curve) else None
            return f"kept {stop:,}/{record.settings.steps:,} steps{_loss(loss)}, search {_search(record)}"
        case RolledBack():
            return f"rolled back from step {event.at:,} to {event.to:,} ({event.reason}): rate x {event.factor:g}"
        case Reverted():
            return f"back to the checkpoint of step {event.to:,}: {event.reason}"
        case Finished():
            return f"finished{_loss(event.final_loss)}, search {_search(record)}"
    return ""


def running(record: Record, instruction: Instruction, done: int) -> tuple[str, int | None, float | None]:
    """What runs now: its name, its steps, and its rate after `done` of them."""
    match instruction:
        case Probe():
            return f"probe {instruction.stage}.{instruction.number}", instruction.length, instruction.rate
        case Train(start=start, stop=stop):
            schedule = record.schedule
            return f"stage {instruction.stage}", stop - start, schedule(start + done) if schedule else None
    return type(instruction).__name__.lower(), None, None


def ahead(record: Record, instruction: Instruction, done: int) -> int:
    """Updates of the running instruction that the record does not yet count."""
    match instruction:
        case Train(start=start):
            return max(0, start + done - record.kept_steps)
        case Probe(stage=stage, number=number):
            counted = record.stages[stage].trials[number].steps
            return max(0, done - counted)
    return 0


def best(record: Record) -> str:
    """The last stage's best probe so far; "" if there is none."""
    if record.stage is None:
        return ""
    trials = [(t.forecast.mean, t.rate) for t in record.stage.trials if t.forecast is not None]
    return f"best {number(min(trials)[0])} at {number(min(trials)[1])}" if trials else ""


def steps_left(record: Record) -> int:
    """Updates still to do at most: kept ones, and the search's if it may go on."""
    settings, stage = record.settings, record.stage
    searched = stage is not None and stage.stop == settings.steps
    search = 0 if searched else max(0, settings.budget - record.probe_steps)
    return settings.steps - record.kept_steps + search


def time_left(seconds: float, done: int, left: int) -> str:
    """How long `left` updates take if `done` took `seconds`; "" before anything is known."""
    return f"{duration(seconds / done * max(left, 0))} left" if done > 0 else ""


def _done(record: Record) -> int:
    return record.kept_steps - record.adopted_steps + record.probe_steps


def _search(record: Record) -> str:
    return f"{Cost.of(record).search_cost:.2f}"


def _loss(loss: float | None) -> str:
    return "" if loss is None else f", loss {number(loss)}"


def _style(event: Any) -> str:
    warning = isinstance(event, RolledBack | Reverted)
    return "yellow" if warning else "bold" if isinstance(event, Decided | Finished) else ""
