"""Windows of real training curves: the first share of a run is seen, the mean loss of its last 5 % is to be forecast.

The curves are parquet files, a row a logged step; `curves_folder` says where they are looked for. What a window holds
is said in `Window`; `score` turns forecasts of windows into the table by which curve models are judged.

Kinds of windows
    run     from initialisation to the end of the run
    piece   a stretch of a run whose schedule goes on as it was: its first tenth, or a quarter from mid-training
    fork    from mid-training, where the rate starts to change or jumps, to the end of the run
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autolrs.curves.points import bin_index, late_count, noise_of
from autolrs.forecasts import Forecasts
from autolrs.protocols import CurveModel
from autolrs.records import POINTS, Curve

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

SHARES: Final = (0.1, 0.2, 0.4)
KINDS: Final = ("run", "piece", "fork")
DEFAULT_FOLDER: Final = Path(__file__).resolve().parents[2] / "shared" / "curves"
VARIABLE: Final = "AUTOLRS_CURVES"

_TRUTH = 0.05  # share of the window, at its end, whose mean is the truth
_LAST = 0.1  # share of what is seen, at its end, whose mean is the last loss
_BLOWN = 5.0  # a truth this many times above the run's first loss is a blow-up
_ABSURD = 10.0  # so many times the largest loss seen, or a loss of no positive one below 0, is an absurd forecast
_FEWEST = 3  # points seen of a window
_FEWEST_OF_PIECE = 80  # points of a piece: at 10 % there are 8 to see
_SETTLED = 0.1  # share of the run for which the rate must have been constant before a fork
_PIECES = ((0.0, 0.1), (0.25, 0.5), (0.5, 0.75))  # of the run's length
_CLIP = 8.0  # of a log score


@dataclass(frozen=True, eq=False, slots=True)
class Window:
    """One forecasting task.

    Attributes:
        source: what is left out as one when models are tuned; each DeepOBS problem is a source of its own.
        group: runs of one group and `start` began from the same state.
        rate: rate at the window's start; NaN if unknown.
        share: share of the window that is seen.
        curve: at most 50 bin means of what is seen, with their noise; offsets count from the window's start.
        at: middle of the window's last 5 %.   [offset]
        truth: mean loss there.
        last: mean loss of the last 10 % of what is seen.
        blow_up: the truth is not finite or far above the run's first loss; then only failures are counted.
        kind: see the module.
        start: step of the run at which the window starts.
        length: steps of the window.
        steps, losses, rates: every point seen; steps count from the window's start.   (n,)
    """

    source: str
    group: str
    curve_id: str
    rate: float
    share: float
    curve: Curve
    at: float
    truth: float
    last: float
    blow_up: bool
    kind: str
    start: int
    length: int
    steps: Array
    losses: Array
    rates: Array

    @property
    def raw(self) -> Curve:
        """Every point seen, of unknown noise."""
        return Curve(*(tuple(map(float, x)) for x in (self.steps, self.losses, self.rates)), start=self.start)


class Run(NamedTuple):
    source: str
    group: str
    curve_id: str
    planned: int  # last step; a run that diverged was not logged so far
    steps: Array
    losses: Array
    rates: Array


def curves_folder() -> Path:
    """Where the parquet files are: the environment variable AUTOLRS_CURVES, else ../shared/curves.

    Raises:
        FileNotFoundError: there is no `meta.parquet`; the message says what to do.
    """
    folder = Path(os.environ.get(VARIABLE) or DEFAULT_FOLDER)
    if not (folder / "meta.parquet").is_file():
        raise FileNotFoundError(
            f"no real training curves in {folder}: `meta.parquet` and one parquet file a source must be there. "
            f"Name their folder by --curves or the environment variable {VARIABLE}."
        )
    return folder


def windows(
    sources: Sequence[str] | None = None,
    shares: Sequence[float] = SHARES,
    *,
    kinds: Sequence[str] = KINDS,
    folder: Path | None = None,
) -> list[Window]:
    """Windows of the curves in `folder` (None: `curves_folder()`).

    Args:
        sources: None: all; "deepobs" stands for all of its problems, "deepobs/mnist_vae" for one.
        shares: how much of a window is seen.
        kinds: see the module.

    Raises:
        FileNotFoundError: no curves, see `curves_folder`.
        ValueError: an unknown source or kind.
    """
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"unknown kind {sorted(unknown)}; known: {', '.join(KINDS)}")
    runs = read_runs(folder or curves_folder())
    known = {run.source for run in runs}
    wanted = known if sources is None else {s for s in known if s in sources or s.partition("/")[0] in sources}
    if sources is not None and (
        unknown := {s for s in sources if not any((w + "/").startswith(s + "/") for w in wanted)}
    ):
        raise ValueError(f"unknown source {sorted(unknown)}; known: {', '.join(sorted(known))}")
    spans = [span for run in runs if run.source in wanted for span in _spans(run)] + list(_unforked(runs, wanted))
    made = (_window(*span, share) for span in spans if span[1] in kinds for share in shares)
    return [window for window in made if window is not None]


def in_log(found: Sequence[Window]) -> list[Window]:
    """Those that make sense in log loss: positive, finite losses, eight points at least, no blow-up."""
    return [
        w
        for w in found
        if not w.blow_up and w.truth > 0 and len(w.curve) >= 8 and w.curve.finite and min(w.curve.losses) > 0
    ]


def siblings(found: Sequence[Window]) -> list[list[Window]]:
    """Groups of windows of one share with the same start and different constant rates, at least three, ascending.

    Pieces from mid-training are left out: runs of different rates have come to different states by then.
    """
    groups: dict[tuple[object, ...], list[Window]] = defaultdict(list)
    for window in found:
        if window.kind == "piece" and window.start > 0:
            continue
        if np.isfinite(window.rate) and not _changes(window.rates).any():
            key = (window.source, window.group, window.kind, window.start, window.length, window.share)
            groups[key].append(window)
    distinct = [list({w.rate: w for w in sorted(group, key=lambda w: w.rate)}.values()) for group in groups.values()]
    return [group for group in distinct if len(group) >= 3]


def balanced(found: Sequence[Window], most: int) -> list[Window]:
    """At most `most` windows of each source, kind and share, evenly spaced: no source drowns the others."""
    groups: dict[tuple[str, str, float], list[Window]] = defaultdict(list)
    for window in found:
        groups[window.source, window.kind, window.share].append(window)
    kept = (np.unique(np.linspace(0, len(group) - 1, min(most, len(group))).astype(int)) for group in groups.values())
    return [group[i] for group, indices in zip(groups.values(), kept, strict=True) for i in indices]


@cache
def read_runs(folder: Path) -> list[Run]:
    import pandas as pd

    meta = pd.read_parquet(folder / "meta.parquet").set_index(["source", "curve_id"])
    runs = []
    for source in meta.index.get_level_values("source").unique():
        table = pd.read_parquet(folder / f"{source}.parquet")
        for curve_id, rows in table.groupby("curve_id", observed=True):
            about = meta.loc[(source, curve_id)]
            by_training = rows.train_loss.notna().any()
            if by_training:  # not the rows that hold a validation loss alone
                rows = rows[rows.train_loss.notna() | rows.val_loss.isna()]
            losses = rows.train_loss if by_training else rows.val_loss
            steps = rows.step.to_numpy(np.float64)
            planned = max([int(steps[-1])] + [int(n) for n in [about.get("steps_full", np.nan)] if np.isfinite(n)])
            group = str(about["group"])
            if np.isfinite(seed := about.get("seed", np.nan)):
                group += f"/s{int(seed)}"  # another seed is another initialisation
            name = f"{source}/{about['model']}" if source == "deepobs" else str(source)
            arrays = (x.to_numpy(np.float64) for x in (losses, rows.lr))
            runs.append(Run(name, group, str(curve_id), planned, steps, *arrays))
    return runs


_Span = tuple[Run, str, float, float]  # kind, first and last step


def _spans(run: Run) -> Iterator[_Span]:
    first, end = run.steps[0], float(run.planned)
    yield run, "run", first, end
    for a, b in _PIECES:
        low, high = first + a * (end - first), first + b * (end - first)
        inside = (run.steps >= low) & (run.steps <= high)
        if inside.sum() >= _FEWEST_OF_PIECE and not _changes(run.rates[inside]).any():
            yield run, "piece", low, high
    if (start := _fork(run)) is not None:
        yield run, "fork", start, end


def _unforked(runs: Sequence[Run], wanted: set[str]) -> Iterator[_Span]:
    """The stretches of runs that kept their rate where others, the same until there, changed theirs."""
    forks = [(run, start) for run in runs if run.source in wanted and (start := _fork(run)) is not None]
    lengths = {(run.source, run.group, start, float(run.planned)): run for run, start in forks}
    for (source, group, start, end), forked in lengths.items():
        for run in runs:
            if (run.source, run.group) == (source, group) and run.planned >= end and _fork(run) is None:
                seen, theirs = run.losses[run.steps <= start], forked.losses[forked.steps <= start]
                if np.array_equal(seen, theirs) and not _changes(run.rates).any():
                    yield run, "fork", start, end


def _fork(run: Run) -> float | None:
    """The last step of the first stretch of a constant rate that ends before the run does and is not a warm-up's."""
    edges = np.concatenate([[0], np.flatnonzero(_changes(run.rates)) + 1])
    for a, b in pairwise(edges):
        if run.steps[b - 1] - run.steps[a] >= _SETTLED * (run.planned - run.steps[0]):
            return float(run.steps[b - 1])
    return None


def _changes(rates: Array) -> NDArray[np.bool_]:
    return np.abs(np.diff(rates)) > 1e-6 * np.abs(rates[:-1])


def _window(run: Run, kind: str, first: float, end: float, share: float) -> Window | None:
    """None: too little is seen."""
    length = end - first
    after = run.steps > first if kind == "fork" else run.steps >= first
    seen = after & (run.steps <= first + share * length)
    steps, losses, rates = (x[seen] for x in (run.steps, run.losses, run.rates))
    finite = np.isfinite(losses)
    if finite.sum() < _FEWEST:
        return None
    # A run's own count of steps starts at 0, even where its log does not.
    start = 0.0 if kind == "run" or first == run.steps[0] else first
    final = (run.steps > end - _TRUTH * length) & (run.steps <= end)
    truth = float(run.losses[final].mean()) if final.any() else np.nan
    initial = run.losses[np.isfinite(run.losses)][0]
    tail = losses[-max(1, round(_LAST * len(losses))) :]
    tail = tail[np.isfinite(tail)] if np.isfinite(tail).any() else losses[finite][-1:]
    return Window(
        source=run.source,
        group=run.group,
        curve_id=run.curve_id,
        rate=float(rates[0]),
        share=share,
        curve=bins(steps - start, losses, rates, start=int(start)),
        at=float((run.steps[final].mean() if final.any() else end - 0.5 * _TRUTH * length) - start),
        truth=truth,
        last=float(tail.mean()),
        blow_up=bool(not np.isfinite(truth) or truth - initial > (_BLOWN - 1) * abs(initial)),
        kind=kind,
        start=int(start),
        length=int(length),
        steps=steps - start,
        losses=losses,
        rates=rates,
    )


def bins(steps: Array, losses: Array, rates: Array, *, start: int = 0, points: int = POINTS) -> Curve:
    """`Curve.reduce` for points at any steps: at most `points` bins of equal width in steps.

    What is not finite is left out, and so are bins that hold nothing else.
    """
    finite = np.isfinite(losses)
    steps, losses, rates = steps[finite], losses[finite], rates[finite]
    index = bin_index(steps, points)
    count = np.bincount(index)
    means = (np.bincount(index, weights=x) / count for x in (steps, losses, rates))
    noise = noise_of(losses) / float(np.sqrt(late_count(count)))
    return Curve(*(tuple(map(float, x)) for x in means), noise=noise, start=start)


class Timed(NamedTuple):
    forecasts: Forecasts
    milliseconds: Array  # of each curve by itself


def forecast(model: CurveModel, found: Sequence[Window], *, raw: bool = False) -> Timed:
    """Forecasts of all windows, and what each takes by itself.

    Args:
        raw: show the model every point that is seen instead of at most 50 bin means.
    """
    curves = [window.raw if raw else window.curve for window in found]
    at = [window.at for window in found]
    milliseconds = np.empty(len(found))
    for i, (curve, offset) in enumerate(zip(curves, at, strict=True)):
        begin = time.thread_time()
        model.extrapolate([curve], [offset])
        milliseconds[i] = 1e3 * (time.thread_time() - begin)
    return Timed(model.extrapolate(curves, at), milliseconds)


def errors(forecasts: Forecasts, found: Sequence[Window]) -> Array:
    """Relative errors of the forecast means; a failure counts as infinite.   (n,)"""
    truth = np.array([window.truth for window in found])
    error = np.abs(forecasts.mean - truth) / np.maximum(np.abs(truth), np.finfo(np.float64).tiny)
    return np.where(np.isfinite(forecasts.mean), error, np.inf)


def log_scores(forecasts: Forecasts, found: Sequence[Window]) -> Array:
    """Negative log density of y/last at truth/last, clipped at 8 on both sides; lower is better.   (n,)"""
    truth, last = (np.array([getattr(window, name) for window in found]) for name in ("truth", "last"))
    with np.errstate(divide="ignore"):
        score = -(forecasts.log_prob(truth) + np.log(np.abs(last)))
    return np.clip(np.where(np.isnan(score), _CLIP, score), -_CLIP, _CLIP)


def failed(forecasts: Forecasts, found: Sequence[Window]) -> NDArray[np.bool_]:
    """No finite forecast, or an absurd one: above 10 times what was seen, or not positive where all losses are."""
    seen = [window.losses[np.isfinite(window.losses)] for window in found]
    most, least = (np.array([f(x) for x in seen]) for f in (lambda x: np.abs(x).max(), np.min))
    absurd = (np.abs(forecasts.mean) > _ABSURD * most) | ((least > 0) & (forecasts.mean <= 0))
    return np.asarray(~np.isfinite(forecasts.mean) | ~np.isfinite(forecasts.std) | absurd)


def score(forecasts: Forecasts, found: Sequence[Window], milliseconds: Array | None = None) -> pd.DataFrame:
    """Every metric by source ("all": over all windows) and share.

    Columns: windows (without blow-ups; only `failures` counts those too), median and p90 of the relative error,
    failures (share of failed or absurd forecasts), log_score (mean), coverage of the central 50/80/90/95 % interval,
    and, where `milliseconds` are given, their median and 99th percentile.
    """
    import pandas as pd

    level = forecasts.cdf([window.truth for window in found])
    table = pd.DataFrame(
        {
            "source": [window.source for window in found],
            "share": [window.share for window in found],
            "usual": [not window.blow_up for window in found],
            "error": errors(forecasts, found),
            "failed": failed(forecasts, found),
            "log_score": log_scores(forecasts, found),
            "level": level,
            "ms": np.nan if milliseconds is None else milliseconds,
        }
    )
    parts = [*table.groupby(["source", "share"]), *((("all", share), rows) for share, rows in table.groupby("share"))]
    return pd.DataFrame(
        [_summary(rows) for _, rows in parts],
        index=pd.MultiIndex.from_tuples([key for key, _ in parts], names=["source", "share"]),
    )


def _summary(rows: pd.DataFrame) -> dict[str, float]:
    usual = rows[rows.usual]
    covered = {
        f"cover{percent}": float((np.abs(usual.level - 0.5) <= percent / 200).mean()) for percent in (50, 80, 90, 95)
    }
    return {
        "windows": len(usual),
        "median": float(usual.error.quantile(0.5, interpolation="higher")),
        "p90": float(usual.error.quantile(0.9, interpolation="higher")),
        "failures": float(rows.failed.mean()),
        "log_score": float(usual.log_score.mean()),
        **covered,
        "ms": float(rows.ms.median()),
        "ms99": float(rows.ms.quantile(0.99)),
    }
