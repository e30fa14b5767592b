"""The public reader over a tuning run: what was trained, what it cost, where its weights are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from autolrs.errors import CheckpointError, SettingError
from autolrs.records import Record, Stage, Trial
from autolrs.schedules import Schedule

if TYPE_CHECKING:
    import optuna
    import pandas
    from torch import nn

FINAL: Final = "final"
"""Tag of the checkpoint with the trained weights."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run has cost so far, in optimizer updates unless said otherwise.

    Attributes:
        kept_steps: updates of the kept run.
        probe_steps: updates of probes, adopted ones included.
        adopted_steps: probe updates that became kept ones.
        discarded_steps: kept updates thrown away by a roll-back.
        lost_steps: updates that crashes threw away.
        validation_calls: calls of the validation function.
        wall_seconds: wall time of all sessions.   [s]
    """

    kept_steps: int
    probe_steps: int
    adopted_steps: int
    discarded_steps: int
    lost_steps: int
    validation_calls: int
    wall_seconds: float

    @classmethod
    def of(cls, record: Record) -> Cost:
        return cls(**{name: getattr(record, name) for name in cls.__dataclass_fields__})

    @property
    def search_cost(self) -> float:
        """Extra updates over kept ones: (probe - adopted + discarded) / kept; 0 before the first kept one."""
        extra = self.probe_steps - self.adopted_steps + self.discarded_steps
        return extra / self.kept_steps if self.kept_steps else 0.0


class Study:
    """A tuning run and its record; made by `autolrs.tune`, `Session.study` and `autolrs.load_study`.

    Attributes:
        name: what `load_study` and the command line call it.
        storage: URL or path of the storage, without a password.
        directory: folder or URI of its checkpoints.
        record: everything that was decided and measured (`autolrs.records.Record`).
        result: what the train function returned; its repr if that was not JSON and the study was loaded.
        environment: versions, device and thread count that bit-for-bit replays depend on.
    """

    def __init__(
        self,
        record: Record,
        *,
        name: str,
        storage: str,
        directory: Path | str,
        result: object = None,
        environment: Mapping[str, Any] | None = None,
        url: str | None = None,
    ) -> None:
        self.record = record
        self.name = name
        self.storage = storage
        self.directory = directory
        self.result = result
        self.environment = dict(environment or {})
        self._url = url or storage  # with the password, if there is one

    def __repr__(self) -> str:
        record = self.record
        loss = "" if record.final_loss is None else f", final_loss={record.final_loss:.6g}"
        done = f"{record.kept_steps}/{record.settings.steps}"
        return f"Study({self.name!r}, steps={done}{loss}, search_cost={self.cost.search_cost:.3g})"

    @property
    def steps(self) -> int:
        """Planned kept updates."""
        return self.record.settings.steps

    @property
    def schedule(self) -> Schedule:
        """Rates that led to the weights there are, and planned as far as decided. If the final weights are a probe's
        (`early`), that is all it has.

        Raises:
            SettingError: nothing is decided yet.
        """
        schedule = self.record.final_schedule
        if schedule is None:
            raise SettingError(f"study {self.name!r} has no schedule yet: its first search is not over.")
        return schedule

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.record.stages

    @property
    def cost(self) -> Cost:
        return Cost.of(self.record)

    @property
    def finished(self) -> bool:
        return self.record.finished

    @property
    def final_loss(self) -> float | None:
        """Objective of the final weights; None before the end."""
        return self.record.final_loss

    @property
    def average(self) -> float | None:
        """Power of the average (see `autolrs.averages`) that the final weights are; None: they are none."""
        return self.record.average

    @property
    def early(self) -> Trial | None:
        """The probe at whose end the final weights were, as the whole run ended higher; None: they are the run's."""
        early = self.record.early
        return None if early is None else self.stages[early.stage].trials[early.number]

    @property
    def exact(self) -> bool:
        """Whether a plain loop with this schedule and seed gives the same weights, bit for bit."""
        return not self.exact_reason

    @property
    def exact_reason(self) -> str:
        """Why `exact` is false; "" if it is true."""
        if not self.record.finished:
            return "the run is not finished"
        early = self.early
        if self.record.roll_backs and not (early and self.stages[early.stage].start == 0):
            return f"the kept run was rolled back: {'; '.join(self.record.roll_backs)}"
        if self.record.moved:
            return f"it was resumed under other conditions: {'; '.join(self.record.moved)}"
        if self.record.average is not None:
            return f"the final weights are an average, the weight of step s as s^{self.record.average:g}"
        if self.environment.get("device") == "cuda" and not self.environment.get("deterministic"):
            return "CUDA without torch.use_deterministic_algorithms(True)"
        return ""

    def trials_dataframe(self) -> pandas.DataFrame:
        """A row for each probe; columns are those of `probe_rows`."""
        import pandas

        return pandas.DataFrame(probe_rows(self.record), columns=list(PROBE_COLUMNS))

    def checkpoint(self, key: int | str = FINAL) -> Path | str:
        """Path, or URI, of a checkpoint: "final", or a kept step.

        Raises:
            CheckpointError: there is none; the message lists those that exist.
        """
        from autolrs.checkpoints import CheckpointStore

        return CheckpointStore(self.directory, readonly=True).path(key)

    def load_into(self, model: nn.Module, *, allow_pickle: bool = False) -> None:
        """Copy the trained weights and buffers into `model`, in place.

        Raises:
            CheckpointError: no final checkpoint, or its modules do not have the tensors of `model`.
        """
        from autolrs.checkpoints import CheckpointStore

        store = CheckpointStore(self.directory, allow_pickle=allow_pickle, readonly=True)
        objects = store.load(FINAL)["objects"]
        modules = {name: value["tensors"] for name, value in objects.items() if value["kind"] == "module"}
        copy_tensors(modules, model, str(store.path(FINAL)))

    @property
    def optuna_study(self) -> optuna.Study:
        """The same study as Optuna sees it: a trial for each probe. For reading.

        Raises:
            StudyNotFoundError: the storage no longer has it.
            SettingError: the storage needs its password: use `load_study(name, storage).optuna_study`.
        """
        from autolrs.storage import StudyStore

        return StudyStore.open(self.name, storage=self._url, readonly=True).optuna_study


PROBE_COLUMNS: Final = (
    *("stage", "number", "rate", "momentum", "length", "steps", "state", "objective", "first_loss"),
    *("forecast_step", "forecast_mean", "forecast_std", "truth", "won", "reason"),
)


def probe_rows(record: Record) -> list[dict[str, Any]]:
    """A dict with `PROBE_COLUMNS` for each probe, in order; losses that are unknown are NaN, and so is the momentum
    where it is the optimizer's own.

    `forecast_step` is the kept step that the forecast is about; `truth` is the kept run's loss there.
    """
    return [_row(record, stage, trial) for stage in record.stages for trial in stage.trials]


def _row(record: Record, stage: Stage, trial: Trial) -> dict[str, Any]:
    forecast, truth = trial.forecast, came_true(record, trial)
    values = (trial.objective, trial.first_loss, *((forecast.mean, forecast.std) if forecast else (None, None)), truth)
    objective, first, mean, std, truth = (math.nan if value is None else value for value in values)
    return {
        "stage": trial.stage,
        "number": trial.number,
        "rate": trial.rate,
        "momentum": math.nan if trial.momentum is None else trial.momentum,
        "length": trial.length,
        "steps": trial.steps,
        "state": trial.state.value,
        "objective": objective,
        "first_loss": first,
        "forecast_step": stage.start + forecast.at if forecast else math.nan,
        "forecast_mean": mean,
        "forecast_std": std,
        "truth": truth,
        "won": stage.winner == trial.number,
        "reason": trial.reason,
    }


def came_true(record: Record, trial: Trial) -> float | None:
    """The loss that the kept run had where a winning trial's forecast looks; None if it did not win or is not there.

    At the end of the run that is the final loss, at a later stage's start that stage's; elsewhere the kept
    training loss, if there is no validation.
    """
    stage = record.stages[trial.stage]
    if stage.winner != trial.number or trial.forecast is None or trial.forecast.mean == trial.objective:
        return None  # a complete miniature is measured, not forecast: nothing in the run is like it
    step = stage.start + trial.forecast.at
    if step >= record.settings.steps - 1:
        return record.final_loss if record.early is None else record.plain_loss
    for later in record.stages[trial.stage + 1 :]:
        if abs(later.start - step) <= 1:
            return later.start_loss
    return None if record.validates else _kept_loss(record, step)


def _kept_loss(record: Record, step: float) -> float | None:
    """Mean training loss of the bin of the kept run nearest to `step`; None if the run is not there yet."""
    if step > record.kept_steps:
        return None
    bins = [
        (abs(part.start + offset - step), loss)
        for part in record.kept
        for offset, loss in zip(part.curve.offsets, part.curve.losses, strict=True)
    ]
    return min(bins, default=(0.0, None))[1]


def copy_tensors(modules: Mapping[str, Mapping[str, Any]], model: nn.Module, source: str) -> None:
    """Copy into `model` the tensors of the one saved module that has exactly the model's names and shapes.

    Raises:
        CheckpointError: none of `modules` (name -> tensor name -> tensor) matches; the message has the differences.
    """
    import torch

    own = _plain_names({**dict(model.named_parameters()), **dict(model.named_buffers())})
    differences = []
    for name, tensors in modules.items():
        saved = _plain_names(tensors)
        if not (difference := _difference(saved, own)):
            with torch.no_grad():
                for key, tensor in own.items():
                    tensor.copy_(saved[key])
            return
        differences.append(f"{name!r}: {difference}")
    raise CheckpointError(
        f"no module in {source} fits this {type(model).__name__}. "
        + ("; ".join(differences) if differences else "No module was tracked.")
    )


def _plain_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Without the prefix that `torch.compile` adds: a compiled model has the weights of a plain one."""
    return {key.replace("_orig_mod.", ""): tensor for key, tensor in tensors.items()}


def _difference(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    shapes = [
        f"{key} is {tuple(saved[key].shape)} in the checkpoint, {tuple(own[key].shape)} in the model"
        for key in own
        if key in saved and saved[key].shape != own[key].shape
    ]
    parts = (("not in the checkpoint", missing), ("not in the model", extra), ("other shape", shapes))
    return ", ".join(f"{what}: {', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}" for what, keys in parts if keys)


def load_study(name: str, storage: str | None = None) -> Study:
    """The study called `name`, for reading; it may still be running elsewhere.

    Args:
        storage: what was given to `tune`; None: the journal file under `./autolrs-runs/NAME`.

    Raises:
        StudyNotFoundError: there is none; the message lists those that exist.
    """
    from autolrs.engine import replay
    from autolrs.storage import StudyStore

    with StudyStore.open(name, storage=storage, readonly=True) as store:
        settings, result = store.settings, store.result or {}
        assert settings is not None, "`open` finds only studies that have settings"
        return Study(
            replay(settings, store.events()),
            name=name,
            storage=store.location,
            directory=store.checkpoints.directory,
            result=result.get("value", result.get("repr")),
            environment=store.extra,
            url=storage,
        )
