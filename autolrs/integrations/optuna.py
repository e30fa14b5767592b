"""An Optuna pruner that extrapolates learning curves.

    study = optuna.create_study(direction="minimize", pruner=CurvePruner())

Nothing else changes: objectives call `trial.report(value, step)` and `trial.should_prune()` as ever.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import TrialState

from autolrs.curves import curve_model
from autolrs.curves.stopping import chance
from autolrs.errors import SettingError
from autolrs.records import Curve

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from autolrs.protocols import CurveModel

RIVALS: Final = 8
"""A trial is compared with so many finished trials, the best ones."""


class CurvePruner(BasePruner):
    """Prunes a trial when it will probably not beat the best finished trial.

    A trial's reported values are a curve. It is extrapolated to the step at which finished trials ended, and the
    trial is pruned once the probability that its last value beats the best last value so far is below `level`.
    The curve model supplies a distribution, so a noisy or still unclear curve is left alone; what the best finished
    trials gained after the same step is taken into account too (see `autolrs.curves.stopping`).

    Works for both directions and for values of any scale or sign; positive values to be minimized, such as losses,
    are extrapolated best. Reports may start and lie anywhere: the extrapolation needs eight, and with fewer only what
    the finished trials did decides, cautiously. Values that are not finite are ignored, but a trial whose latest value
    is not finite is pruned, as diverged, and a finished one that ended so is no rival. Nothing is pruned before a trial
    has finished. The pruner keeps no state, so studies may be resumed or run in parallel.

    Args:
        level: smallest probability of beating the best trial that is worth going on for.
        model: a curve model or its name, see `autolrs.curves`.
        steps: the step at which a trial ends; None: the last one reported by any finished trial.
        startup_trials: trials that must have finished before any is pruned.
        warmup_steps: trials are not pruned before this step.

    Raises:
        SettingError: `level` is not in (0, 1), or a count is negative.
        UnknownNameError: there is no curve model of that name.
    """

    def __init__(
        self,
        level: float = 0.1,
        *,
        model: str | CurveModel = "auto",
        steps: int | None = None,
        startup_trials: int = 1,
        warmup_steps: int = 0,
    ) -> None:
        if not (0 < level < 1 and startup_trials >= 0 and warmup_steps >= 0 and (steps is None or steps >= 0)):
            raise SettingError(
                "`0 < level < 1`, `steps >= 0`, `startup_trials >= 0` and `warmup_steps >= 0` must hold, but got "
                f"({level=}, {steps=}, {startup_trials=}, {warmup_steps=})."
            )
        self._level, self._steps = level, steps
        self._startup_trials, self._warmup_steps = startup_trials, warmup_steps
        self._model = curve_model(model) if isinstance(model, str) else model

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether `trial` should stop now."""
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        ends = [other.last_step for other in finished if other.last_step is not None]
        step = trial.last_step
        if step is None or not ends or len(finished) < self._startup_trials or step < self._warmup_steps:
            return False
        horizon = max(ends) if self._steps is None else self._steps
        if step >= horizon:
            return False
        if not _ends_finite(trial):
            return True

        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        # One that ended early by itself says nothing of the horizon, and one that diverged did not get there.
        whole = [other for other in finished if other.last_step is not None and other.last_step >= 0.9 * horizon]
        curves = [_curve(other, sign) for other in whole if _ends_finite(other)]
        if not curves:
            return False
        rivals = sorted(curves, key=lambda curve: curve.losses[-1])[:RIVALS]
        curve = _curve(trial, sign)
        forecast = self._model.extrapolate([curve], [float(horizon)])
        return chance(curve, forecast, rivals[0].losses[-1], rivals) < self._level


def _ends_finite(trial: FrozenTrial) -> bool:
    return trial.last_step is not None and math.isfinite(trial.intermediate_values[trial.last_step])


def _curve(trial: FrozenTrial, sign: float) -> Curve:
    """A trial's finite values, to be minimized; the offset of the first report is its own step."""
    points = sorted((step, sign * value) for step, value in trial.intermediate_values.items() if math.isfinite(value))
    steps, losses = (tuple(float(point[i]) for point in points) for i in range(2))
    return Curve(steps, losses, (math.nan,) * len(points))
