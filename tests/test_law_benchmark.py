"""The benchmark of the loss laws, on made-up runs of the names that it reads; on real ones if there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autolrs.schedules import Schedule
from benchmarks import laws, windows
from benchmarks.laws import MODELS, PUBLISHED, SIZES, at_ends, runs, section, stages, unseen
from tests.law_runs import losses_of

PEAK, STEPS = 3e-4, 9600
BASES = {"cosine": "cosine", "constant": "constant", "wsd": "wsd", "wsdld": "wsd", "wsdcon": "linear"}
NAMES = (*PUBLISHED, "cosine_72000", "wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("curves"), np.random.default_rng(0)
    steps, table = np.arange(2176, STEPS, 64), []
    for name in NAMES:
        schedule = Schedule.build(BASES[name.partition("_")[0]], rate=PEAK, steps=STEPS, warmup=laws.WARM_UP)
        losses, rates = losses_of(schedule, peak=PEAK, decay=0.998)[steps], [schedule(int(step)) for step in steps]
        for size in SIZES:
            noisy = losses + 0.002 * rng.standard_normal(len(steps))
            rows = {"curve_id": f"{size}/{name}", "step": steps, "lr": rates, "train_loss": np.nan, "val_loss": noisy}
            table.append(pd.DataFrame(rows))
    pd.concat(table).to_parquet(path / "multipowerlaw.parquet")
    (path / "meta.parquet").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(windows.VARIABLE, str(path))
        patch.setattr(laws, "SOURCES", {"multipowerlaw": 4})
        runs.cache_clear()
        yield path
        runs.cache_clear()


def test_runs_that_follow_a_law_are_foretold(folder):
    table = unseen(MODELS["both"], PUBLISHED, "25M")
    assert set(table.run) == set(NAMES) - set(PUBLISHED)
    assert table.error.mean() < 0.006


def test_stages_are_pieces_and_forks_of_runs(folder):
    found = list(stages("multipowerlaw"))
    assert {stage.kind for stage in found} == {"piece", "fork"}
    for stage in found:
        assert stage.probe.start == int(stage.probe.start)
        assert max(stage.history.offsets) <= stage.probe.start
        assert stage.at > max(stage.probe.offsets)
        seen = stage.run.steps[stage.run.steps > stage.probe.start][: len(stage.probe)] - stage.probe.start
        assert [stage.schedule(int(s)) for s in seen] == pytest.approx(list(stage.probe.rates), rel=1e-6)


def test_the_laws_beat_the_last_loss(folder):
    table = at_ends(MODELS["both"], "multipowerlaw")
    used = table[table.refused == ""]
    assert len(used) > 0.5 * len(table)
    ours, last = ((used[column] / used.truth - 1).abs().mean() for column in ("forecast", "last"))
    assert ours < 0.5 * last


def test_the_section_is_three_tables(folder, monkeypatch):
    monkeypatch.setattr(laws, "MODELS", {"both": MODELS["both"]})
    lines = section()
    assert lines[0] == "## Loss laws"
    assert sum(line.startswith("| both |") for line in lines) == len(laws.TRAINED)
    assert sum(line.startswith("| multipowerlaw |") for line in lines) == 2 * 2
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert len(widths) == 3


@pytest.mark.skipif(not (windows.DEFAULT_FOLDER / "meta.parquet").is_file(), reason="real curves are not here")
def test_on_real_runs(monkeypatch):
    monkeypatch.setenv(windows.VARIABLE, str(Path(windows.DEFAULT_FOLDER)))
    runs.cache_clear()
    assert unseen(MODELS["both"], PUBLISHED, "100M").error.mean() < 0.0014
    runs.cache_clear()
