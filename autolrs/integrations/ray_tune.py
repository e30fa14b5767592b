"""autolrs and Ray Tune: a searcher for Tune's own trials, and what a trial needs to run autolrs inside it.

A Tune trial that calls `autolrs.tune(..., executor="ray")` needs room for its workers beside itself, which `bundles`
makes; without workers of their own, trials need nothing. What Tune varies (batch size, weight decay) reaches the loop
as `session.args`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ray.tune import PlacementGroupFactory
from ray.tune.search import Searcher

from autolrs.errors import SettingError
from autolrs.protocols import Observation, Sampler
from autolrs.samplers import GPSampler


def bundles(workers: int, resources: Mapping[str, float] | None = None) -> PlacementGroupFactory:
    """Room for a trial and its `workers`, for `ray.tune.with_resources(trial, bundles(4, {"CPU": 1, "GPU": 1}))`."""
    own = {"CPU": 1.0} if resources is None else dict(resources)
    return PlacementGroupFactory([{"CPU": 1.0}, *(dict(own) for _ in range(workers))])


class RateSearcher(Searcher):  # type: ignore[misc]  # Ray demands a subclass
    """Proposes one positive hyperparameter, as a rule the learning rate, with autolrs's sampler.

    Trials that are still running count as pending (kriging believer), so that several may run at once; those that
    failed, or ended in a metric that is not finite, count as diverged. Everything else in `config` is passed on.

    Args:
        name: key of the hyperparameter in the trial's config.
        bounds: lowest and highest value.
        metric, mode: as everywhere in Tune; "min" or "max".
        config: other, fixed values of the trial's config.
    """

    def __init__(
        self,
        name: str = "lr",
        bounds: tuple[float, float] = (1e-5, 1.0),
        *,
        metric: str | None = None,
        mode: str | None = None,
        config: Mapping[str, Any] | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
    ) -> None:
        if not (0 < bounds[0] < bounds[1] < math.inf):
            raise SettingError(f"`0 < low < high < inf` must hold for `bounds`, but got {bounds}.")
        super().__init__(metric=metric, mode=mode)
        self._metric: str | None = metric
        self._mode: str | None = mode
        self._name = name
        self._bounds = bounds
        self._config = dict(config or {})
        self._sampler = GPSampler() if sampler is None else sampler
        self._seed = seed
        self._rates: dict[str, float] = {}
        self._losses: dict[str, float] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """What the Tuner was given; Tune asks that a searcher with a space of its own refuses another."""
        if config:
            return False
        self._metric, self._mode = metric or self._metric, mode or self._mode
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:
        rate = self._sampler.propose(
            self._observations(), bounds=self._bounds, stage=0, number=len(self._rates), seed=self._seed
        )
        self._rates[trial_id] = rate
        return {**self._config, self._name: rate}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        value = math.nan if error or not result else float(result.get(str(self._metric), math.nan))
        self._losses[trial_id] = -value if self._mode == "max" else value

    def save(self, checkpoint_path: str) -> None:
        import json
        from pathlib import Path

        Path(checkpoint_path).write_text(json.dumps({"rates": self._rates, "losses": self._losses}), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        import json
        from pathlib import Path

        data = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        self._rates, self._losses = data["rates"], data["losses"]

    def _observations(self) -> list[Observation]:
        """All trials so far, as outcomes of one stage without a known start."""
        return [
            Observation(
                rate=rate,
                value=self._losses.get(trial, math.nan),
                std=math.nan if trial not in self._losses else 0.0,
                stage=0,
                start_loss=math.nan,
                pending=trial not in self._losses,
            )
            for trial, rate in self._rates.items()
        ]
