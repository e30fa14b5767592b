"""Choosing among sibling curves: which rate to go on with.

Groups are windows of real curves that start from the same state at different rates (`benchmarks.windows`): whole runs
and first tenths of runs from one initialisation, and forks of one trunk. Stretches from mid-training are left out: they
start at the same step of different runs. Curves that blow up later stay in their group; one whose loss is not finite in
what is seen cannot be chosen.

Regret is (truth of the chosen rate - best truth) / |best truth|. Rank correlations are Spearman's, over the group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autolrs.curves import curve_model
from autolrs.curves.exponential import PublishedExponential
from autolrs.curves.pooled import pooled
from autolrs.protocols import CurveModel
from benchmarks import stopping
from benchmarks.windows import SHARES, Window, siblings, windows

Array = NDArray[np.float64]

HEADING: Final = "## Probes: choosing and stopping"
STOPPING: Final = "### Stopping probes early"
MODELS: Final = ("exponential", "bayes", "pfn", "auto")
DOZENS: Final = 8
"""How many dozens of rates are drawn from each group of more than twelve."""

_CLIP = 2.0  # of a regret in means
_BY_HEART = 1e-3  # best loss over the first one, below which a group's relative regret is about nothing


_NOTE = """\
*Not by heart*: without the groups whose best rate ends below a thousandth of the first loss (runs of Fashion-MNIST):
1e-5 and 2e-5 of it are a regret of 100 % there, and of nothing that matters. *Twelve rates*: of each group of more
than twelve, eight dozens drawn at random; a choice among 36 rates hangs on the luck of one, and a stage has fewer.
*The neighbours' ends*: how well one chooses who knows the true end of every rate but the one in question, and expects
the mean of the two beside it. What remains is luck, or a curve's own.

Few groups make the means. At 40 % four of the 48 make .114 of .121: three that are learned by heart, and a plateau of
Fashion-MNIST's autoencoder that one of twenty rates leaves, after what is seen. At 10 % there is a weakness, too: high
rates on SVHN, which will be held up by their own noise, are expected to fall as fast as low ones (two groups, .037).

How gains are pooled was chosen on these groups, with the weights that `auto` had then (.163 / .112 / .121; on dozens
.160 / .076 / .050). With its settings (shared law or none, amplitudes, reaches, how sure the single forecasts are taken
to be: 36 in all) chosen on the other sources, for each source in turn, `auto` pooled has
mean regrets of .21 / .11 / .12, medians of .02 / .00 / .00 and biases of -.04 / +.06 / +.02; chosen on dozens of the
other sources, .21 / .12 / .13. Means over so few groups are uncertain: without law and with narrow amplitudes they are
.24 / .13 / .13; the paired differences to the row above have standard errors of .06 / .02 / .01. On the dozens the best
of the 36 has a mean of .092 over the three shares, and the shipped settings of .100. Tried and of no
use: posterior expected loss, or more or less caution, in place of the log mean; the last loss at another rate's equal
distance as a witness of its own; the law at half belief, or with noise that grows in proportion to the rate or to what
the law says; longer last values, or geometric means in them.

Nor is any of these, measured with the weights of today. They differ from the row above by less than twice the paired
standard error, or are worse: gains times .6, .8 or .9; a law whose gains count only where they exceed how badly it fits
a probe's end (-.007 / -.009 / +.001, standard errors .006 / .006 / .001; on dozens .182 / .073 / .044); reaches up to 2
or 4 decades, or nearly a slope over the log rate (one reach of 4: .264 / .113 / .128); least deviations of .02, .1 or
.2; expected loss. Chosen among 48 such settings on the other sources, for each source in turn, they have .161 / .113 /
.123: differences of -.007 / +.003 / +.003, standard errors .006 / .010 / .003.

Of the probes that were once more than three times above where probes begin (250 of about 1,270, in six of the nine
sources), none is the best of its group at any share: so none is expected to fall on. Otherwise, with the
weights of then, the mean regrets are .163 / .154 / .137 and the biases -.02 / +.12 / +.07, by runs of the quadratic
alone (Adam at a rate of 40)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What came of choosing one rate of one group. `bias`: chosen over best rate [decades]."""

    source: str
    regret: float
    bias: float
    correlation: float


def groups(sources: Sequence[str] | None = None, shares: Sequence[float] = SHARES) -> list[list[Window]]:
    """Windows with the same start and different rates, of which one at least ends finite."""
    return grouped(windows(sources, shares, kinds=("run", "piece", "fork")))


def grouped(found: Sequence[Window]) -> list[list[Window]]:
    """The same of these windows."""
    same_start = siblings([w for w in found if w.kind != "piece" or w.start == 0])
    return [group for group in same_start if any(np.isfinite(w.truth) for w in group)]


def dozens(groups: Sequence[Sequence[Window]]) -> list[list[Window]]:
    """`DOZENS` random choices of twelve rates of each group of more, where one of them ends finite."""
    drawn = []
    for number, group in enumerate(groups):
        for draw in range(DOZENS if len(group) > 12 else 0):
            order = np.random.default_rng([number, draw]).permutation(len(group))
            drawn.append([group[i] for i in sorted(order[:12])])
    return [group for group in drawn if any(np.isfinite(w.truth) for w in group)]


def levels(group: Sequence[Window], model: CurveModel | None, *, pool: bool) -> Array:
    """What each window's end is expected to be; inf where the loss is not finite in what is seen.

    None: the last value.
    """
    healthy = [i for i, w in enumerate(group) if np.isfinite(w.losses).all()]
    expected = np.full(len(group), np.inf)
    if model is None:
        expected[healthy] = [group[i].last for i in healthy]
    elif healthy:
        curves = [group[i].curve for i in healthy]
        forecasts = model.extrapolate(curves, [group[i].at for i in healthy])
        expected[healthy] = (
            pooled(curves, [group[i].rate for i in healthy], forecasts).median if pool else forecasts.mean
        )
    return np.where(np.isnan(expected), np.inf, expected)


def neighbours(group: Sequence[Window]) -> Array:
    """As `levels`, what the ends of the next lower and the next higher rate let expect: the mean of both, or the one.

    How far this is from the best says how much of a regret is luck: no forecast is told so much.
    """
    truth = [w.truth if np.isfinite(w.truth) else np.inf for w in group]
    return np.array([np.mean(truth[max(i - 1, 0) : i] + truth[i + 1 : i + 2]) for i in range(len(group))])


def choice(group: Sequence[Window], expected: Array) -> Choice:
    """Choose the lowest expected level."""
    from scipy.stats import spearmanr

    truth = np.array([w.truth if np.isfinite(w.truth) else np.inf for w in group])
    chosen, best = int(expected.argmin()), int(truth.argmin())
    ranks = [np.minimum(x, np.finfo(np.float64).max) for x in (expected, truth)]
    varied = all(np.ptp(x) > 0 for x in ranks)
    return Choice(
        source=group[0].source,
        regret=float((truth[chosen] - truth[best]) / abs(truth[best])),
        bias=float(np.log10(group[chosen].rate / group[best].rate)),
        correlation=float(spearmanr(*ranks).statistic) if varied else np.nan,
    )


def summary(choices: Sequence[Choice]) -> str:
    """Mean clipped at 2 and median regret, share above 100 %, mean bias, mean rank correlation: cells of a table."""
    regret, bias, correlation = (np.array([getattr(c, n) for c in choices]) for n in ("regret", "bias", "correlation"))
    return (
        f"{np.minimum(regret, _CLIP).mean():.3f} | {np.median(regret):.3f} | {(regret > 1).mean():.0%} | "
        f"{bias.mean():+.2f} | {np.nanmean(correlation):.2f}"
    )


def interval(choices: Sequence[Choice]) -> str:
    """What 90 % of the mean regrets of as many groups, drawn from these with replacement, lie in."""
    regret = np.minimum([c.regret for c in choices], _CLIP)
    means = regret[np.random.default_rng(0).integers(0, len(regret), (4000, len(regret)))].mean(axis=1)
    return "{:.3f} to {:.3f}".format(*np.quantile(means, (0.05, 0.95)))


def by_heart(group: Sequence[Window]) -> bool:
    """Whether the best rate learns its data by heart: 1e-5 and 2e-5 of the first loss are then told apart."""
    first = np.median([w.losses[np.isfinite(w.losses)][0] for w in group])
    return bool(np.nanmin([w.truth for w in group]) < _BY_HEART * first)


def choosing() -> Iterator[str]:
    """The table of choices, a row a way of reading the probes, and the pooled default's by source."""
    found = {share: groups(shares=(share,)) for share in SHARES}
    models: dict[str, CurveModel] = {"published exponential": PublishedExponential()}
    models |= {name: curve_model(name) for name in MODELS}
    yield "| read by | " + " | ".join(f"{share:.0%}: regret, mean | median | > 100 % | bias | rank" for share in SHARES)
    yield "|---|" + "---|" * 5 * len(SHARES)

    Groups = dict[float, list[list[Window]]]

    def choices(model: CurveModel | None, *, pool: bool, among: Groups = found) -> list[list[Choice]]:
        return [[choice(g, levels(g, model, pool=pool)) for g in among[share]] for share in SHARES]

    def row(name: str, model: CurveModel | None, *, pool: bool, among: Groups = found) -> str:
        return f"| {name} | " + " | ".join(map(summary, choices(model, pool=pool, among=among))) + " |"

    yield row("last value", None, pool=False)
    for name, model in models.items():
        yield row(name, model, pool=False)
        yield row(f"{name}, pooled", model, pool=True)
    usual = {share: [g for g in found[share] if not by_heart(g)] for share in SHARES}
    twelve = {share: dozens(found[share]) for share in SHARES}
    for name, among in {"not by heart": usual, "twelve rates": twelve}.items():
        yield row(f"last value, {name}", None, pool=False, among=among)
        yield row(f"auto, pooled, {name}", models["auto"], pool=True, among=among)
    for name, among in {"": found, ", not by heart": usual}.items():
        told = [summary([choice(g, neighbours(g)) for g in among[share]]) for share in SHARES]
        yield f"| *the neighbours' ends*{name} | " + " | ".join(told) + " |"
    yield ""
    yield (
        "Over groups drawn anew, 90 % of the means of `auto`, pooled, lie in "
        + " / ".join(map(interval, choices(models["auto"], pool=True)))
        + "; not by heart in "
        + " / ".join(map(interval, choices(models["auto"], pool=True, among=usual)))
        + "."
    )
    yield ""
    yield from _NOTE.splitlines()
    yield ""
    yield "`auto`, pooled, by source (the last value in brackets), mean regret:"
    yield ""
    yield "| source | groups | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |"
    yield "|---|---|" + "---|" * len(SHARES)
    for source in sorted({g[0].source for g in found[SHARES[0]]}):
        cells = []
        for share in SHARES:
            of_source = [g for g in found[share] if g[0].source == source]
            ours, last = (
                np.mean([min(choice(g, levels(g, model, pool=True)).regret, _CLIP) for g in of_source])
                for model in (models["auto"], None)
            )
            cells.append(f"{ours:.3f} ({last:.3f})")
        yield f"| {source} | {len(of_source)} | " + " | ".join(cells) + " |"


def write(document: Path, *, only_stopping: bool = False) -> None:
    """Measure this part of the report again, or only that on stopping, and put it in its place."""
    heading, lines = (STOPPING, stopped()) if only_stopping else (HEADING, section())
    document.write_text(replaced(document.read_text("utf-8"), heading, lines), encoding="utf-8")


def replaced(text: str, heading: str, lines: Sequence[str]) -> str:
    """Markdown whose section `heading` (with its #) holds `lines` instead, up to the next one of its level or above.

    Raises:
        ValueError: there is no such section.
    """
    before, found, after = f"\n{text}".partition(f"\n{heading}\n")
    if not found:
        raise ValueError(f"no section {heading!r}.")
    level = len(heading) - len(heading.lstrip("#"))
    following = re.search(rf"^#{{1,{level}}} ", after, flags=re.MULTILINE)
    rest = ["", after[following.start() :]] if following else [""]
    return "\n".join([before, heading, "", *lines, *rest]).removeprefix("\n")


def put(document: Path, heading: str, lines: Sequence[str]) -> None:
    """Put a section in its place in a document, or at the end of one that has no such section yet."""
    text = document.read_text("utf-8")
    if f"\n{heading}\n" not in f"\n{text}":
        text = f"{text.rstrip()}\n\n{heading}\n"
    document.write_text(replaced(text, heading, lines), encoding="utf-8")


def section() -> list[str]:
    """Markdown lines for docs/curves.md: choosing a rate, then stopping probes early."""
    return [
        "### Choosing the rate",
        "",
        *choosing(),
        "",
        STOPPING,
        "",
        *stopped(),
    ]


def stopped() -> list[str]:
    """The part of it on stopping."""
    return [*stopping.table(groups(shares=(1.0,))), "", *stopping.NOTE.splitlines()]
