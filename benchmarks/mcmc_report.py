"""What `benchmarks.mcmc` stored -> a part of docs/curves.md. Run: python -m benchmarks.mcmc report"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autolrs.curves.pfn.model import SHA256
from benchmarks.csvrows import read
from benchmarks.curves import DOCUMENT, markdown
from benchmarks.mcmc_chains import CONVERGED
from benchmarks.rows import RESULTS
from benchmarks.siblings import put

Array = NDArray[np.float64]

OWN: Final = RESULTS / "mcmc_own.csv"
LCPFN: Final = RESULTS / "mcmc_lcpfn.csv"
HEADING: Final = "## The fitted network against Markov chain Monte Carlo"


def digest(sha256: str) -> str:
    """What rows name weights by."""
    return sha256[:12]


SHIPPED: Final = digest(SHA256)

_INTRODUCTION = """\
Written by `python -m benchmarks.mcmc report` from rows that `python -m benchmarks.mcmc own` and `lcpfn` stored; edit
nothing here by hand. Chains are emcee's: four ensembles, until R-hat < 1.01 for the forecast or too long. ±: standard
error of the mean; times are medians, a curve by itself, on one core."""

_OWN_NOTE = """\
Nats are what a network's log density is lower than the chains' by: *in expectation* over what the chains expect, and
*on the truth*. Draws have one shape of the prior and independent Gaussian noise of known size. The first network has
the shipped architecture and was fitted to nothing else; the shipped one reckons with all else in its prior, too.
Draws whose chains have not converged are left out: what is to be expected there is not known. Chains that all missed
a mode agree with each other, and are too sure: a single such draw can decide the mean on the truth."""

_LCPFN_NOTE = """\
*Log score*: mean negative log density of loss/last at the truth, clipped at 8; lower is better. The chains' prior is
LC-PFN's: three families, curves that rise within [0, 1]. All windows count, converged or not."""


@dataclass(frozen=True)
class Own:
    """One draw.

    Attributes:
        curve: its number.
        weights, shipped: of the network fitted to such draws, and of the shipped one: by `digest`.
        share: of the run that is seen.
        nats, nats_on_truth: what the fitted network loses to the chains, in expectation and on the truth.
        shipped_nats, shipped_nats_on_truth: the same of the shipped one.
        entropy: of what the chains expect.
        chains_s, network_s: seconds that the chains took, and the fitted network.
    """

    curve: int
    weights: str
    shipped: str
    share: float
    nats: float
    nats_on_truth: float
    shipped_nats: float
    shipped_nats_on_truth: float
    entropy: float
    rhat: float
    chains_s: float
    network_s: float


@dataclass(frozen=True)
class Real:
    """One real window. Errors are relative, scores those of `windows.log_scores`.

    Attributes:
        source, curve_id, kind, start, share: which window.
        shipped: the network's weights, by `digest`.
    """

    source: str
    curve_id: str
    kind: str
    start: int
    share: float
    shipped: str
    error_chains: float
    error_network: float
    score_chains: float
    score_network: float
    rhat: float
    chains_s: float
    network_s: float

    @property
    def window(self) -> tuple[str, str, str, int, float]:
        return self.source, self.curve_id, self.kind, self.start, self.share


def write() -> None:
    """Put this part of the report in its place."""
    put(DOCUMENT, HEADING, section())


def section() -> list[str]:
    """Markdown lines for docs/curves.md."""
    own, real = read(Own, OWN), read(Real, LCPFN)
    return [
        *_INTRODUCTION.splitlines(),
        "",
        "### Draws whose posterior can be sampled",
        "",
        *(_own([row for row in own if _networks(row) == _networks(own[-1])]) if own else _missing(OWN, "own")),
        "",
        "### LC-PFN's prior on real windows",
        "",
        *(_real([row for row in real if row.shipped == real[-1].shipped]) if real else _missing(LCPFN, "lcpfn")),
    ]


def _networks(row: Own) -> tuple[str, str]:
    """Rows of other weights than the last row's are former ones."""
    return row.weights, row.shipped


def _missing(path: Path, command: str) -> list[str]:
    return [f"There is no `benchmarks/results/{path.name}` yet: `python -m benchmarks.mcmc {command}` writes it."]


def _own(rows: Sequence[Own]) -> list[str]:
    known = [row for row in rows if row.rhat < CONVERGED]
    text = [f"{_counted(rows, 'curves')}. {_times(rows)}", "", *_OWN_NOTE.splitlines()]
    return [*text, "", *_lost(known)] if known else text


def _lost(rows: Sequence[Own]) -> list[str]:
    """A row a network."""
    head = [
        "network",
        *(f"{where}: {of}" for where in ("in expectation", "on the truth") for of in ("mean", *_QUANTILES)),
    ]
    table = [
        [name, *(cell for of in columns for cell in _cells(_column(rows, of)))]
        for name, columns in (
            ("fitted to such draws", ("nats", "nats_on_truth")),
            ("shipped", ("shipped_nats", "shipped_nats_on_truth")),
        )
    ]
    return markdown(head, table)


def _real(rows: Sequence[Real]) -> list[str]:
    chains, network = (_column(rows, f"score_{of}") for of in ("chains", "network"))
    table = [
        [name, f"{np.median(_column(rows, f'error_{of}')):.3f}", f"{_column(rows, f'score_{of}').mean():.2f}"]
        for name, of in (("chains", "chains"), ("network", "network"))
    ]
    return [
        f"{_counted(rows, 'windows')}. {_times(rows)}",
        "",
        *_LCPFN_NOTE.splitlines(),
        "",
        *markdown(["forecast by", "median relative error", "log score"], table),
        "",
        f"The network's log score less the chains' is {mean(network - chains, '+.2f')} (paired); the network has the",
        f"better one on {(network < chains).sum()} of the {len(rows)} windows.",
    ]


_QUANTILES = {"median": 0.5, "90 %": 0.9}


def _cells(values: Array) -> list[str]:
    return [mean(values, ".3f"), *(f"{np.quantile(values, q):.3f}" for q in _QUANTILES.values())]


def mean(values: Array, form: str) -> str:
    """A mean with its standard error, which a single value has none of."""
    if len(values) == 1:
        return format(values[0], form)
    error = values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():{form}} ± {error:{form.removeprefix('+')}}"


def _column(rows: Sequence[Own] | Sequence[Real], name: str) -> Array:
    return np.array([getattr(row, name) for row in rows])


def _counted(rows: Sequence[Own] | Sequence[Real], what: str) -> str:
    return f"{len(rows)} {what}, {(_column(rows, 'rhat') < CONVERGED).mean():.0%} converged"


def _times(rows: Sequence[Own] | Sequence[Real]) -> str:
    chains, network = (float(np.median(_column(rows, f"{of}_s"))) for of in ("chains", "network"))
    return f"Chains take {chains:.2g} s, the network {1e3 * network:.2g} ms: {chains / network:,.0f} times faster."
