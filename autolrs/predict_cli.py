"""`autolrs predict`: what a study's final training loss would have been under other schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autolrs.predictions import FINAL, INTERVAL, Predictions, predict, schedule_of
from autolrs.records import Record
from autolrs.report import number, table_of


def report(record: Record, schedules: Sequence[str]) -> RenderableType:
    """Forecasts for the schedule used and for `schedules`, and what the data say of the laws' parameters.

    Raises:
        SettingError: one of `schedules` is neither BASE:RATE nor a file.
        UnsupportedError: the data do not identify what a forecast needs.
    """
    found = predict(record, {text: schedule_of(text, record) for text in schedules})
    about = Text(
        f"final training loss: the mean over the last {FINAL:.0%} of the steps, of one run with one seed", style="dim"
    )
    refused = [Text(f"{name}: nothing is said, for {reason}", "yellow") for name, reason in found.refused.items()]
    return Group(_forecasts(found), *refused, about, "", _parameters(found))


def _forecasts(found: Predictions) -> Table:
    low, high = INTERVAL
    table = table_of(
        "schedule", "steps >", "final loss >", f"{high - low:.0%} interval >", "measured >", wrapped=("schedule",)
    )
    for row in found.rows:
        interval = f"{number(row.low)} – {number(row.high)}"
        table.add_row(row.name, f"{row.schedule.steps:,}", number(row.mean), interval, number(row.measured))
    return table


def _parameters(found: Predictions) -> Table:
    table = table_of("parameter", "value >", "± >", "identified", wrapped=("identified",))
    for one in found.parameters:
        deviation = f"× {number(math.exp(one.std), 3)}" if one.log else number(one.std, 2)
        verdict = Text("yes", "green") if one.identified else Text(f"no: {one.reason}", "yellow")
        table.add_row(one.name, number(one.value), deviation, verdict)
    return table
