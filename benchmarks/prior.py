"""Is the fitted network's prior like real curves? Quantiles of what both show, side by side.

python -m benchmarks.prior         the table in autolrs/curves/pfn/DATA_CARD.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autolrs.curves.pfn.prior import sample
from autolrs.records import POINTS
from benchmarks.windows import SHARES, Window, in_log, windows

Array = NDArray[np.float64]

LEVELS: Final = (0.1, 0.25, 0.5, 0.75, 0.9)
NAMES: Final = ("drop seen", "drop over the second half", "drop to come", "log of a bin's noise", "to come / recent")
DRAWS: Final = 60_000


def of_prior(share: float, *, seed: int = 0) -> dict[str, Array]:
    """Quantities of curves drawn from the prior of which about `share` is seen."""
    drawn = sample(np.random.default_rng([seed, 1]), DRAWS, POINTS, 2)
    end = drawn.times[:, -1] + 0.5 * (drawn.times[:, -1] - drawn.times[:, -2])
    near = (end > share / 1.25) & (end < share * 1.25)
    return quantities(drawn.losses[near], drawn.noise[near], drawn.truths[near, 0])


def of_windows(found: Sequence[Window]) -> dict[str, Array]:
    """The same of real windows with positive, finite losses, without blow-ups."""
    parts = [
        quantities(np.log([w.curve.losses]), np.array([w.curve.noise / w.last]), np.log([w.truth]))
        for w in in_log(found)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in NAMES}


def quantities(losses: Array, noise: Array, truth: Array) -> dict[str, Array]:
    """What is compared, from log losses of bins (n, b), noise of the last bin (n,) and the later log loss (n,)."""
    bins = losses.shape[1]
    last = np.log(np.exp(losses[:, -max(1, bins // 10) :]).mean(axis=1))
    recent = last - losses[:, bins // 2 - 1 : bins // 2 + 1].mean(axis=1)
    values = (
        last - losses[:, 0],
        recent,
        truth - last,
        np.log(np.maximum(noise, 1e-6)),
        (truth - last) / (np.abs(recent) + noise + 1e-4),
    )
    return dict(zip(NAMES, values, strict=True))


def table() -> str:
    """Markdown; real curves stand half for runs from initialisation, half for windows that start mid-training."""
    lines = [
        "| in log loss | seen | whose | " + " | ".join(f"{q:.0%}" for q in LEVELS) + " |",
        "|---|---|---|" + "---|" * len(LEVELS),
    ]
    fine = np.linspace(0.0, 1.0, 1001)
    for share in SHARES:
        prior = of_prior(share)
        kinds = [of_windows(windows(shares=(share,), kinds=part)) for part in (("run",), ("piece", "fork"))]
        for name in NAMES:
            real = np.concatenate([np.quantile(part[name], fine) for part in kinds])
            for whose, values in (("prior", prior[name]), ("real", real)):
                quantiles = " | ".join(f"{q:.3g}" for q in np.quantile(values, LEVELS))
                lines.append(f"| {name} | {share:.0%} | {whose} | {quantiles} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
