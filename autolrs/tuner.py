"""`tune` and `attach`: set up a study, a director and a session, run the user's loop, and see it ended well."""

from __future__ import annotations

import inspect
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from autolrs.director import Director
from autolrs.distributed.cluster import RayExecutor, check_installed
from autolrs.distributed.crew import Crew
from autolrs.distributed.shipping import ship
from autolrs.engine import replay
from autolrs.errors import (
    DivergedError,
    SettingError,
    StudyLockedError,
    UnfinishedError,
    UnknownNameError,
    UntrackableError,
)
from autolrs.opening import Resume, account_for_crash, check_environment, environment, open_study
from autolrs.protocols import Callback, CurveModel, Strategy
from autolrs.records import Elapsed, Lost
from autolrs.session import Session
from autolrs.settings import arguments, bytes_of, digest, settings_of, strategy_from
from autolrs.signals import stopping
from autolrs.snapshot import seed_everything, track
from autolrs.space import SearchSpace
from autolrs.storage import StudyStore
from autolrs.study import Study

log = logging.getLogger("autolrs")


def tune(
    train: Callable[[Session], Any],
    *,
    steps: int,
    space: str | Path | SearchSpace = "default",
    strategy: str | Strategy = "horizon",
    search_budget: float | None = None,
    curve_model: str | CurveModel = "auto",
    executor: str | RayExecutor = "serial",
    workers: int = 1,
    resources_per_worker: Mapping[str, float] | None = None,
    deterministic: bool = True,
    storage: str | None = None,
    name: str | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int | None = None,
    replay_memory: int | str = "1GiB",
    max_seconds: float | None = None,
    average: bool = False,
    restore_best: bool = True,
    rescue: bool = True,
    lookahead: bool = False,
    resume: Resume = "auto",
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    options: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
    tuned: str | None = None,
    allow_pickle: bool = False,
    takeover: bool = False,
) -> Study:
    """Train with `train` for `steps` optimizer steps, and find the learning-rate schedule meanwhile.

    Args:
        train: an ordinary training loop that takes a `Session`; what it returns becomes `study.result`.
        steps: kept optimizer steps of the whole run.
        space: name of a shipped search space, path of a YAML file, or a `SearchSpace`.
        strategy: "horizon", "autolrs", or a `protocols.Strategy`.
        search_budget: probe steps at most, as a share of `steps`; None: the strategy's own (horizon 0.3,
            autolrs 1.0); 0: plain training on the base schedule at the optimizer's own rate.
        curve_model: "auto", "bayes", "exponential", "law", "pfn", or a `protocols.CurveModel`; forecasts the probes of
            "autolrs"; those of "horizon" are complete in themselves, and it is asked only if `stop` is "chance".
        executor: "serial"; "ray": probes run on workers, see docs/ray.md; or a `RayExecutor`.
        workers: how many probes run at once, with executor "ray".
        resources_per_worker: what Ray reserves for each worker; None: {"CPU": 1}.
        deterministic: with several workers, let a proposal depend on finished batches of probes alone, so that the same
            settings give the same run; False: on all that has ended by then.
        storage: None: a journal file in ./autolrs-runs/NAME; a folder; or any Optuna storage URL.
        name: of the study; None: the function's name and 8 hex digits of the settings that identify it.
        checkpoint_dir: where checkpoints go: a folder, or a URI of an object store (s3://bucket/runs, gs://...); None:
            beside the journal.
        checkpoint_every: kept steps between checkpoints; None: max(100, steps / 32).
        replay_memory: bytes of recorded batches at most, as a number or like "1GiB".
        max_seconds: stop, resumable, after this wall time.
        average: keep two averages of the weights as they train, and let the better one be the final weights if it
            validates better than the last step's; needs `session.validate`, and memory for the model twice.
        restore_best: let the final state be that at the end of a probe of "horizon", a complete run in small, if that
            validates better than the whole run, which then overfits; needs `session.validate`.
        rescue: roll a kept run back whose loss jumps most of the way back up and stays there, and go on at half the
            rate, twice at most; False: only one whose loss is not finite. For data that become harder on the way.
        lookahead: every 5 updates, move the weights half-way back to slow ones that follow them (`autolrs.lookahead`);
            for Adam and its kin. The schedule then does the same wherever it is replayed. Memory for the model once
            more, here and in snapshots.
        resume: "auto": go on with an unfinished study of that name, else start one (NAME-2, ... after a finished
            one); "must": it has to exist, unfinished; "never": always start a new one.
        seed: of Python's, NumPy's and PyTorch's generators, set before `train` is called, and of the search.
        options: parameters of the strategy, such as {"length": 0.03, "sampler.acquisition": "ei"}.
        args: reach `train` as `session.args`; if a study is resumed with others, it says so and is not `exact`.
        tuned: name, in `track`, of the optimizer to tune, where several are tracked.
        allow_pickle: store tracked objects that only pickle can store, and load them again.
        takeover: own the study even though another process does; that one stops at its next write.

    Returns:
        The finished `Study`: its schedule, cost, losses, trials and weights.

    Raises:
        SettingError: an argument breaks its rule.
        UnfinishedError: `train` returned before the run was done.
        StoppedError: Ctrl-C, SIGTERM or `max_seconds`; all is saved, and the same call goes on.
        DivergedError: the loss is not finite at any rate tried.
        Exception: whatever `train` or a callback raises, unchanged; the study is saved.
    """
    if not callable(train):
        raise SettingError(f"`train` must be a function that takes a session, but got {train!r}.")
    workplace = _executor(executor, workers, resources_per_worker, deterministic)
    shipped = None
    if workplace is not None:
        check_installed()
        shipped = ship(train)
    run = _Run.open(
        executor=workplace,
        base_name=_function_name(train),
        steps=steps,
        space=space,
        strategy=strategy,
        search_budget=search_budget,
        curve_model=curve_model,
        storage=storage,
        name=name,
        checkpoint_dir=checkpoint_dir,
        checkpoint_every=checkpoint_every,
        replay_memory=replay_memory,
        max_seconds=max_seconds,
        average=average,
        restore_best=restore_best,
        rescue=rescue,
        lookahead=lookahead,
        resume=resume,
        seed=seed,
        callbacks=callbacks,
        options=options,
        args=args,
        tuned=tuned,
        allow_pickle=allow_pickle,
        takeover=takeover,
    )
    with run:
        if isinstance(run.hands, Session):
            seed_everything(seed)
            run.finish(train(run.hands))
        else:
            assert shipped is not None
            run.finish(run.hands.train(shipped))
    return run.study


class attach:
    """The same session for a loop you own; all of `tune`'s settings but executor and workers.

    >>> with autolrs.attach(model=model, optimizer=optimizer, steps=1000, space="sgd") as session:  # doctest: +SKIP
    ...     for x, y in session.batches(loader):
    ...         ...
    ...         session.report(loss)
    ... session.study.schedule

    Objects to track are given by name (`model=`, `optimizer=`, `scaler=`, ...). Nothing is seeded. Run the script
    again to resume.
    """

    def __init__(self, *, steps: int, name: str | None = None, **settings: Any) -> None:
        known = inspect.signature(tune).parameters.keys() - {"train", "steps", "name"} - _WORKPLACE
        self._tracked = {key: settings.pop(key) for key in list(settings) if key not in known}
        _check_trackable(self._tracked, known)
        defaults = {key: inspect.signature(tune).parameters[key].default for key in known}
        self._run = _Run.open(base_name="attach", steps=steps, name=name, executor=None, **(defaults | settings))
        assert isinstance(self._run.hands, Session)
        self.session = self._run.hands

    def __enter__(self) -> Session:
        self._run.__enter__()
        try:
            self.session.track(**self._tracked)
        except BaseException as error:
            self._run.__exit__(type(error), error, None)
            raise
        return self.session

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if kind is None:
                self._run.finish(None)
        except BaseException as failure:
            self._run.__exit__(type(failure), failure, None)
            raise
        self._run.__exit__(kind, error, trace)
        if kind is None:
            self.session.study = self._run.study


def _check_trackable(objects: Mapping[str, Any], settings: Collection[str]) -> None:
    """A misspelt setting is more likely than an object of that name: say so before a study is made."""
    for name, value in objects.items():
        try:
            track(name, value)
        except UntrackableError as error:
            near = get_close_matches(name, settings, n=1)
            hint = f"did you mean the setting {near[0]!r}? " if near else ""
            raise UntrackableError(f"`attach` has no setting {name!r}: {hint}As an object to track: {error}") from error


@dataclass
class _Run:
    """One process's work on a study, from lock to release."""

    store: StudyStore
    director: Director
    hands: Session | Crew
    began: float = 0.0
    result: Any = None

    @classmethod
    def open(
        cls,
        *,
        base_name: str,
        executor: RayExecutor | None,
        steps: int,
        space: str | Path | SearchSpace,
        strategy: str | Strategy,
        search_budget: float | None,
        curve_model: str | CurveModel,
        storage: str | None,
        name: str | None,
        checkpoint_dir: str | Path | None,
        checkpoint_every: int | None,
        replay_memory: int | str,
        max_seconds: float | None,
        average: bool,
        restore_best: bool,
        rescue: bool,
        lookahead: bool,
        resume: Resume,
        seed: int,
        callbacks: Sequence[Callback],
        options: Mapping[str, Any] | None,
        args: Mapping[str, Any] | None,
        tuned: str | None,
        allow_pickle: bool,
        takeover: bool,
    ) -> Self:
        """Check every setting before anything is written, then open the study."""
        strategy = strategy_from(strategy, options, curve_model)
        settings = settings_of(
            steps=steps,
            space=space if isinstance(space, SearchSpace) else SearchSpace.load(space),
            strategy=strategy,
            search_budget=search_budget,
            curve_model=curve_model if isinstance(curve_model, str) else type(curve_model).__name__,
            checkpoint_every=checkpoint_every,
            seed=seed,
            average=average,
            restore_best=restore_best,
            rescue=rescue,
            lookahead=lookahead,
        )
        for callback in callbacks:
            if isinstance(callback, type) or not isinstance(callback, Callback):
                raise SettingError(f"a callback must have `on_event` and `on_progress`, but got {callback!r}.")
        memory = bytes_of(replay_memory)
        if max_seconds is not None and not (isinstance(max_seconds, int | float) and max_seconds > 0):
            raise SettingError(f"`max_seconds > 0` must hold, but got ({max_seconds=}).")
        around = environment() if executor is None else executor.environment(environment())
        around["args"] = arguments(args)
        store, record = open_study(
            name or f"{base_name}-{digest(settings)}",
            settings,
            resume,
            around,
            storage=storage,
            checkpoint_dir=checkpoint_dir,
            allow_pickle=allow_pickle,
            takeover=takeover,
        )
        try:
            deadline = time.monotonic() + max_seconds if max_seconds is not None else 0.0
            director = Director(
                record, strategy, store, callbacks=callbacks, deadline=deadline, events=len(store.events())
            )
            account_for_crash(store, director)
            check_environment(store.extra, around, director)
            hands: Session | Crew
            if executor is None:
                hands = Session(director, args=args, tuned=tuned, replay_memory=memory)
            else:
                hands = Crew(
                    director,
                    store,
                    executor,
                    strategy=strategy,
                    args=args,
                    tuned=tuned,
                    replay_memory=memory,
                    allow_pickle=allow_pickle,
                )
        except BaseException:
            store.close()
            raise
        return cls(store, director, hands)

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        self._signals = stopping(self.hands)
        self._signals.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._signals.__exit__(None, None, None)
        if error is not None:
            # Not the director's record: it is ahead where the store failed.
            record = replay(self.director.record.settings, self.store.events())
            self.director.mute()  # whose error may it be? One is enough
            hopeless = isinstance(error, DivergedError | SettingError | UntrackableError)
            error.add_note(
                f"study {self.store.name!r} in {self.store.location} has {record.kept_steps} of "
                f"{record.settings.steps} steps saved{'.' if hopeless else ': run the same again to go on.'}"
            )
        try:
            if kind is not None and (lost := self.hands.unsaved_steps()):
                self.director.tell(Lost(lost))
            self.director.tell(Elapsed(time.monotonic() - self.began))
        except Exception as failure:
            if kind is None:
                raise
            if not isinstance(failure, StudyLockedError):  # else it was taken over, and is no longer ours to write
                log.warning("what this error cost is not in the record of study %r: %s", self.store.name, failure)
        finally:
            self.hands.close()
            self.store.close()

    def finish(self, result: Any) -> None:
        """The loop is over: see that the run is, too."""
        record = self.director.record
        if not record.finished:
            raise UnfinishedError(
                f"the loop ended after {record.kept_steps} of {record.settings.steps} steps: let "
                "`session.batches` end by itself (no `break` or `return` inside), and in an epoch loop of your own "
                "go on `while not session.done`. It is saved up to its last checkpoint; run it again to go on."
            )
        self.result = result
        self.store.save_result(result)

    @property
    def study(self) -> Study:
        return Study(
            self.director.record,
            name=self.store.name,
            storage=self.store.location,
            directory=self.store.checkpoints.directory,
            result=self.result,
            environment=self.store.extra,
        )


_WORKPLACE = frozenset({"executor", "workers", "resources_per_worker", "deterministic"})
"""Settings of `tune` that `attach` does not have."""


def _executor(
    given: str | RayExecutor, workers: int, resources: Mapping[str, float] | None, deterministic: bool
) -> RayExecutor | None:
    """Where the loop runs; None: here."""
    if isinstance(given, RayExecutor):
        if workers != 1 or resources is not None:
            raise SettingError(f"`workers` and `resources_per_worker` go with executor='ray'; give {given} its own.")
        return given
    if given not in ("serial", "ray"):
        raise UnknownNameError.of("executor", given, ("serial", "ray"))
    if given == "ray":
        return RayExecutor(workers, {"CPU": 1.0} if resources is None else dict(resources), deterministic)
    if workers != 1 or resources is not None:
        raise SettingError(
            f"executor='serial' runs in this process, but got {workers=}, resources_per_worker={resources}: use "
            "executor='ray'."
        )
    return None


def _function_name(train: Callable[..., Any]) -> str:
    name = getattr(train, "__name__", type(train).__name__)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "train"
