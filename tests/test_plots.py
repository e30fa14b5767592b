"""`autolrs plot`: a PNG of four panels that show the record's numbers, and an HTML page."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from example_record import SEARCHES, SETTINGS, STEPS, example_record

from autolrs.errors import SettingError
from autolrs.plots import figure, save
from autolrs.protocols import Observation
from autolrs.records import Record
from autolrs.samplers import GPSampler
from autolrs.study import Study

PNG = b"\x89PNG\r\n\x1a\n"


def study(record=None):
    return Study(record or example_record(), name="de<mo", storage="autolrs-runs", directory=Path())


@pytest.fixture(scope="module")
def panels():
    schedule, losses, forecasts, surrogate = figure(study()).axes[:4]
    return {"schedule": schedule, "losses": losses, "forecasts": forecasts, "surrogate": surrogate}


def test_the_schedule_is_drawn_as_it_is(panels):
    schedule = study().schedule
    steps, rates = panels["schedule"].lines[0].get_data()
    assert [schedule(int(step)) for step in steps] == list(rates)
    assert (steps[0], steps[-1]) == (0, STEPS - 1)
    assert panels["schedule"].get_yscale() == "log"


def test_probes_are_drawn_from_their_stages_start(panels):
    starts = sorted(line.get_xdata()[0] for line in panels["losses"].lines if len(line.get_xdata()) == 40)
    assert starts[-3:] == pytest.approx([1000, 1000, 1000])
    kept = max(panels["losses"].lines, key=lambda line: len(line.get_xdata()))
    assert len(kept.get_xdata()) == sum(len(part.curve) for part in example_record().kept)


def test_forecasts_and_truths_are_those_of_the_record(panels):
    record = example_record()
    stars = next(line for line in panels["forecasts"].lines if line.get_label() == "came true")
    assert list(stars.get_xdata()) == [3, 6]
    assert list(stars.get_ydata()) == [record.final_loss] * 2
    bars = panels["forecasts"].containers[0].lines[0]
    means = [trial.forecast.mean for stage in record.stages for trial in stage.trials if trial.forecast]
    assert list(bars.get_ydata()) == means
    crosses = next(line for line in panels["forecasts"].lines if line.get_label().startswith("diverged"))
    assert list(crosses.get_xdata()) == [4]


def test_the_surrogate_is_drawn_for_each_stage_with_its_tried_rates(panels):
    axes = panels["surrogate"]
    assert {"stage 0", "stage 1"} <= {line.get_label() for line in axes.lines}
    assert axes.get_xlim() == SETTINGS.space.bounds
    for container, (_, rates, _, _, _) in zip(axes.containers, SEARCHES, strict=True):
        assert list(container.lines[0].get_xdata()) == [rate for rate in rates if rate < 5e-2]
    mean = next(line for line in axes.lines if line.get_label() == "stage 0")
    assert np.isfinite(mean.get_ydata()).all()
    best = mean.get_xdata()[np.argmin(np.where(mean.get_xdata() < 0.01, mean.get_ydata(), np.inf))]
    assert 1e-3 < best < 1e-2


def test_the_surrogate_goes_through_what_is_known_well_in_units_of_the_loss():
    rates, values = [1e-3, 1e-2, 1e-1], [300.0, 100.0, 250.0]
    found = [Observation(r, v, 0.1, stage=0, start_loss=400.0) for r, v in zip(rates, values, strict=True)]
    median, low, high = GPSampler().posterior(found, bounds=(1e-4, 1.0), stage=0, rates=[*rates, 1e-4])
    assert all(a < b < c for a, b, c in zip(low, median, high, strict=True))
    assert median[1] == pytest.approx(100, abs=5)  # of a progress of 300: near the best all is finer
    assert all(a < value < b for a, value, b in zip(low, values, high, strict=False))
    assert high[1] - low[1] < 20 < high[0] - low[0] < high[3] - low[3]
    with pytest.raises(ValueError, match="stage 1 has no finished"):
        GPSampler().posterior(found, bounds=(1e-4, 1.0), stage=1, rates=rates)


def diverging(record):
    stage = record.stages[0]
    trials = [
        replace(t, forecast=None, curve=t.curve and replace(t.curve, losses=(math.nan,) * len(t.curve)))
        for t in stage.trials
    ]
    return replace(record, stages=(replace(stage, trials=tuple(trials)),), kept=(), pieces=())


@pytest.mark.parametrize("change", [lambda r: r, diverging, lambda r: replace(r, stages=r.stages[:1], pieces=())])
def test_unfinished_studies_can_be_plotted(change, tmp_path):
    save(study(change(example_record(finished=False))), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:8] == PNG


def test_the_page_holds_the_picture_and_the_tables(tmp_path):
    path = tmp_path / "study.html"
    save(study(), path)
    page = path.read_text()
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(picture[1])[:8] == PNG
    assert "came true" in page
    assert "de&lt;mo" in page
    assert "<demo" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_what_cannot_be_plotted_says_why(tmp_path):
    with pytest.raises(SettingError, match=r"must end in \.png or \.html, but got '.*a\.pdf'"):
        save(study(), tmp_path / "a.pdf")
    with pytest.raises(SettingError, match="nothing to plot yet"):
        save(study(Record(SETTINGS)), tmp_path / "a.png")


def test_no_global_state_is_touched():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure(study())
    assert dict(matplotlib.rcParams) == before
