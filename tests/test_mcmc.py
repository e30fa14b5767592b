"""The fitted network against Markov chains: chains that are right, rows that a rerun goes on with, and the report."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from curve_files import write_curves

from autolrs.curves.pfn.model import SHIPPED as WEIGHTS
from autolrs.forecasts import Forecasts
from benchmarks import mcmc, mcmc_lcpfn, mcmc_report
from benchmarks.csvrows import append, read
from benchmarks.mcmc_chains import ENSEMBLES, Sampled, rhat, run_chains
from benchmarks.mcmc_report import SHIPPED, Own, Real
from benchmarks.windows import VARIABLE

OWN = Own(0, "fitted", "shipped", 0.1, 0.1, 0.2, 0.3, 0.4, -2.0, 1.001, 8.0, 0.002)
REAL = Real("s", "c", "run", 0, 0.1, "shipped", 0.2, 0.1, -0.5, -1.0, 1.001, 12.0, 0.001)


@pytest.fixture
def files(tmp_path, monkeypatch):
    for name in ("OWN", "LCPFN"):
        monkeypatch.setattr(mcmc_report, name, tmp_path / f"mcmc_{name.lower()}.csv")
    return mcmc_report


def text_of(heading):
    text = "\n".join(mcmc_report.section())
    return text.partition(f"### {heading}\n")[2].partition("###")[0]


def test_chains_sample_the_density_that_they_are_given():
    start = np.random.default_rng(0).normal(0.0, 3.0, (ENSEMBLES, 16, 2))
    found = run_chains(lambda v: -0.5 * (((v - [2.0, 5.0]) / [1.0, 0.1]) ** 2).sum(axis=1), start, lambda v: v[:, 0])
    assert found.rhat < 1.01
    np.testing.assert_allclose(found.samples.mean(axis=0), [2.0, 5.0], atol=0.1)
    np.testing.assert_allclose(found.samples.std(axis=0), [1.0, 0.1], rtol=0.1)


def test_chains_that_differ_have_not_converged():
    same = np.random.default_rng(0).standard_normal((4, 1000))
    assert rhat(same) < 1.01
    assert rhat(same + np.arange(4)[:, None]) > 1.5


def test_the_prior_of_the_chains_is_the_one_that_is_drawn_from():
    """Means of a function under draws, and under other draws weighted by the density."""
    rng = np.random.default_rng(0)
    draws = mcmc.draw_parameters(rng, 200_000)
    wide = np.column_stack([rng.normal(-2, 4, 200_000), rng.uniform(-6, 2, 200_000), rng.random(200_000)])
    wide = np.column_stack([wide, rng.standard_normal(200_000)])
    weights = np.exp(mcmc.log_prior(wide) + 0.5 * ((wide[:, 0] + 2) / 4) ** 2 + 0.5 * wide[:, 3] ** 2)
    weighted = (weights[:, None] * wide).sum(axis=0) / weights.sum()
    np.testing.assert_allclose(weighted, draws.mean(axis=0), atol=0.03)


def test_draws_are_judged_once_and_again_when_the_weights_change(tmp_path, monkeypatch):
    asked = []

    def posterior(curve, seed):
        asked.append(seed)
        return Sampled(mcmc.draw_parameters(np.random.default_rng(seed), 700), 1.0, 2.0)

    monkeypatch.setattr(mcmc, "posterior", posterior)
    path = tmp_path / "own.csv"
    mcmc.own(1, WEIGHTS, path)
    mcmc.own(2, WEIGHTS, path)
    mcmc.own(2, WEIGHTS, path)
    assert asked == [0, 1000]
    rows = read(Own, path)
    assert [(row.curve, row.weights, row.shipped, row.chains_s) for row in rows] == [
        (number, SHIPPED, SHIPPED, 2.0) for number in (0, 1)
    ]
    assert all(row.nats == row.shipped_nats and math.isfinite(row.nats) and row.network_s > 0 for row in rows)
    path.unlink()
    for row in rows:
        append(replace(row, weights="former"), path)
    mcmc.own(1, WEIGHTS, path)
    assert asked == [0, 1000, 0]


def test_a_network_that_says_what_the_chains_say_loses_nothing(monkeypatch):
    """The chains' own answer, put into quantiles, in the network's place."""
    curve = mcmc.draw(np.random.default_rng([0, 3]), 0.4)
    sampled = Sampled(np.tile([[math.log(0.5), -1.0, 0.2, 0.0]], (700, 1)), 1.0, 2.0)
    mean = mcmc.predict(sampled.samples, curve.t, curve.y, mcmc.AT)[1][0]
    spread = math.hypot(curve.blur, curve.sigma / math.sqrt(len(curve.t)))
    monkeypatch.setattr(mcmc, "posterior", lambda curve, seed: sampled)
    monkeypatch.setattr(mcmc, "draw", lambda rng, share: curve)

    class Told:
        def __init__(self, off):
            self.off = off

        def extrapolate(self, curves, at):
            return Forecasts.student_t(at, [mean + self.off * spread], [spread], math.inf, log=True)

    row = mcmc.judged(3, Told(0.0), Told(1.0), ("", ""))
    assert row.nats == pytest.approx(0.0, abs=0.01)
    assert row.shipped_nats == pytest.approx(0.5, abs=0.15)  # half a squared deviation


def test_windows_are_compared_once(tmp_path, monkeypatch):
    write_curves(tmp_path)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    asked = []

    def posterior(x, y, end, seed):
        asked.append(seed)
        rng = np.random.default_rng(seed)
        samples = np.concatenate([rng.uniform(*mcmc_lcpfn._UNIFORM.T, (50, 9)), rng.normal(size=(50, 4))], axis=1)
        return Sampled(samples, 1.0, 2.0)

    monkeypatch.setattr(mcmc_lcpfn, "lcpfn_posterior", posterior)
    path = tmp_path / "rows.csv"
    mcmc_lcpfn.lcpfn(1, path)
    mcmc_lcpfn.lcpfn(3, path)
    mcmc_lcpfn.lcpfn(3, path)
    assert asked == [0, 1000, 2000]
    rows = read(Real, path)
    assert len({row.window for row in rows}) == 3
    assert {row.source for row in rows[:2]} == {"deepobs/m", "trunk"}
    assert all(abs(row.score_network) <= 8 and row.error_network < 1 for row in rows)


def test_a_fit_is_as_long_as_it_is_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(mcmc, "train", lambda config, out, *, resume, draw: told.append((config, out, resume, draw)))
    mcmc.fit(tmp_path, steps=40, batch=7, warmup=3)
    (tmp_path / mcmc.CHECKPOINT).touch()
    mcmc.fit(tmp_path, steps=40, batch=7, warmup=3)
    config, out, _, draw = told[0]
    assert (config.steps, config.batch, config.warmup, out, draw) == (40, 7, 3, tmp_path, mcmc.draw_batch)
    assert [resume for _, _, resume, _ in told] == [False, True]


def test_the_report_says_what_is_missing(files):
    assert "no `benchmarks/results/mcmc_own.csv` yet" in text_of("Draws whose posterior can be sampled")
    assert "no `benchmarks/results/mcmc_lcpfn.csv` yet" in text_of("LC-PFN's prior on real windows")


def test_the_report_is_put_into_the_document(files, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DOCUMENT", tmp_path / "curves.md")
    files.DOCUMENT.write_text(f"# A\n\n{files.HEADING}\n\nold\n\n## B\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["mcmc", "report"])
    mcmc.main()
    text = files.DOCUMENT.read_text("utf-8")
    assert text.startswith(f"# A\n\n{files.HEADING}\n\nWritten by")
    assert text.endswith("writes it.\n\n## B\n")


def test_the_report_is_of_the_rows_of_the_last_weights(files):
    append(replace(OWN, weights="former", nats=9.0), files.OWN)
    append(OWN, files.OWN)
    append(replace(OWN, curve=1, nats=0.3, chains_s=10.0), files.OWN)
    append(replace(OWN, curve=2, nats=7.0, rhat=1.02, chains_s=9.0), files.OWN)
    text = text_of("Draws whose posterior can be sampled")
    assert "\n3 curves, 67% converged. Chains take 9 s, the network 2 ms: 4,500 times faster.\n" in text
    fitted = "0.200 ± 0.100 | 0.200 | 0.280 | 0.200 ± 0.000 | 0.200 | 0.200"
    assert f"\n| fitted to such draws | {fitted} |\n" in text
    assert "\n| shipped | 0.300 ± 0.000 | 0.300 | 0.300 | 0.400 ± 0.000 | 0.400 | 0.400 |\n" in text


def test_where_no_chains_converged_there_is_no_table(files):
    append(replace(OWN, rhat=1.02), files.OWN)
    assert "| shipped |" not in text_of("Draws whose posterior can be sampled")


def test_the_report_counts_the_windows_on_which_the_network_is_better(files):
    append(REAL, files.LCPFN)
    append(replace(REAL, curve_id="d", score_network=0.5, error_network=0.3), files.LCPFN)
    text = " ".join(text_of("LC-PFN's prior on real windows").split())
    assert "2 windows, 100% converged. Chains take 12 s, the network 1 ms: 12,000 times faster." in text
    assert "| chains | 0.200 | -0.50 | | network | 0.200 | -0.25 |" in text
    assert "less the chains' is +0.25 ± 0.75 (paired)" in text
    assert "better one on 1 of the 2 windows" in text


def test_a_single_curve_has_no_standard_error():
    assert mcmc_report.mean(np.array([0.5]), "+.2f") == "+0.50"
    assert mcmc_report.mean(np.array([0.0, 1.0]), "+.2f") == "+0.50 ± 0.50"
