"""The report on curve models: what it holds, and that left out means left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from curve_files import write_curves

from autolrs.curves.auto import Auto
from autolrs.curves.bayes import Bayes
from autolrs.curves.pfn.model import PFN
from autolrs.protocols import CurveModel
from autolrs.records import Curve
from benchmarks import curve_models, curves, laws, left_out, mcmc_report, siblings, unseen
from benchmarks.windows import VARIABLE, score, windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("curves")
    write_curves(path)
    return path


def test_the_report_has_every_model_share_and_source(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(folder))
    for name in ("DOCUMENT", "PICTURE", "ROWS"):
        monkeypatch.setattr(curves, name, tmp_path / name.lower())
    monkeypatch.setattr(curves, "PICTURE", tmp_path / "curves.png")
    monkeypatch.setattr(siblings, "section", lambda: ["what siblings say"])
    monkeypatch.setattr(laws, "section", lambda: ["what laws say"], raising=False)
    monkeypatch.setattr(unseen, "section", lambda names: [f"what {names[0]} does on other curves"])
    monkeypatch.setattr(curve_models, "section", lambda: ["what whole runs say"])
    monkeypatch.setattr(mcmc_report, "section", lambda: ["what chains say"])
    curves.write(3, ("bayes", "exponential", "law"))
    text = (tmp_path / "document").read_text()
    assert {"what siblings say", "what laws say", "## By kind of window"} <= set(text.splitlines())
    assert f"\n{unseen.HEADING}\n\nwhat bayes does on other curves\n\n" in text
    assert f"\n{curve_models.HEADING}\n\nwhat whole runs say\n\n" in text
    assert text.endswith(f"\n{mcmc_report.HEADING}\n\nwhat chains say\n")
    whole = text.partition("## All windows")[2].partition("##")[0]
    for model in ("last value", "published", "bayes", "exponential", "bayes, left out", "auto, left out"):
        assert whole.count(f"| {model} | ") == 3
    assert text.count("| bayes, left out | auto, left out |") == 2  # the tables by source
    assert "| law |" not in text
    assert "nan" not in text
    rows = pd.read_csv(tmp_path / "rows")
    assert set(rows.model) == {"last value", "published", "bayes", "exponential"}
    assert set(rows.kind) == {"any", "run", "piece", "fork"}
    assert set(rows.source) == {"deepobs/m", "trunk", "all"}
    assert set(rows.share) == {0.1, 0.2, 0.4}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("left", [left_out.bayes, left_out.auto])
def test_a_source_has_no_say_in_what_it_is_judged_by(folder, left):
    found = [w for w in windows(folder=folder, shares=(0.2,)) if not w.blow_up]
    own = np.array([w.source == "trunk" for w in found])
    other = [replace(w, truth=5 * w.truth) if mine else w for w, mine in zip(found, own, strict=True)]
    one, two = left(found), left(other)
    np.testing.assert_array_equal(one.table[own], two.table[own])
    assert not np.array_equal(one.table[~own], two.table[~own])


def test_left_out_forecasts_are_those_of_one_of_the_settings(folder):
    found = [w for w in windows(["trunk", "deepobs"], folder=folder, shares=(0.4,)) if not w.blow_up]
    chosen = left_out.bayes(found)
    candidates = [Bayes(misfit=m, reach=r) for m in (0.15, 0.3, 0.6) for r in (1.0, 2.0, 4.0)]
    medians = [model.extrapolate([w.curve for w in found], [w.at for w in found]).median for model in candidates]
    assert (np.abs(np.array(medians) / chosen.median - 1).min(axis=0) < 1e-9).all()
    assert chosen.log is not None
    assert chosen.log.all()
    assert np.isfinite(score(chosen, found).log_score).all()


def test_averages_left_out_are_those_that_auto_itself_makes(folder):
    found = windows(folder=folder, shares=(0.4,))
    chosen = left_out.auto(found)
    candidates = [
        Auto((Bayes(), PFN(widening=widening)), (1 - prior, prior)).extrapolate(
            [w.curve for w in found], [w.at for w in found]
        )
        for widening in left_out.WIDENINGS
        for prior in left_out.PRIORS
    ]
    for source in {w.source for w in found}:
        rows = [w.source == source for w in found]
        assert any(
            np.array_equal(each.table[rows], chosen.table[rows]) and np.array_equal(each.mean[rows], chosen.mean[rows])
            for each in candidates
        ), source


def test_the_last_value_is_forecast_wider_the_farther_and_the_faster():
    model = curves.Last()
    assert isinstance(model, CurveModel)
    flat, steep = (tuple(1 + slope * (1 - i / 19) for i in range(20)) for slope in (0.01, 1.0))
    made = [Curve(tuple(map(float, range(20))), losses, (0.1,) * 20) for losses in (flat, steep, steep)]
    found = model.extrapolate(made, [100, 100, 1000])
    np.testing.assert_allclose(found.mean, [np.mean(x[-2:]) for x in (flat, steep, steep)])
    assert (np.diff(found.std) > 0).all()
    nothing = model.extrapolate([Curve((), (), ()), Curve((0.0,), (2.0,), (0.1,))], [5, 5])
    assert np.isnan(nothing.mean[0])
    assert nothing.mean[1] == pytest.approx(2)
