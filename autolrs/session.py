"""The session: what a training loop talks to.

The loop asks `batches` for items and calls `report` once per optimizer step. `report` only remembers a
detached loss. All else happens inside `batches`, because only there is the loop's body complete: the rate of the
next step, reading the losses, snapshots, rewinds, validation, and the end of the run. The session decides
nothing: a `Director` turns events into instructions, and `Runner` carries them out.

Between two reads of the losses (every 16 reports, and where a probe or a stretch ends) a step costs a list
append, a counter and one assignment to each parameter group.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from autolrs.averages import Averages
from autolrs.batches import Feed, PassEnded, position_of
from autolrs.director import Directing
from autolrs.errors import SessionError, SettingError, UnsupportedError, UntrackableError
from autolrs.lookahead import Lookahead
from autolrs.rates import Rates, rates_of
from autolrs.runner import Runner
from autolrs.snapshot import GENERATORS, Tracked, Tree, track, uncovered

if TYPE_CHECKING:
    from autolrs.study import Study

log = logging.getLogger("autolrs")

Item = TypeVar("Item")


SILENCE: Final = 1000
"""Items without a report that no gradient accumulation explains."""


class Session:
    """Connects a training loop to its tuning; made by `autolrs.tune` and `autolrs.attach`.

    Attributes:
        args: values given on the command line (`--arg key=value`) or to `tune(args=...)`.
        state: a dict for the loop's own locals; it is rewound and saved with everything else.
        study: the finished study, after the end of an `attach` block.
    """

    study: Study

    def __init__(
        self,
        director: Directing,
        *,
        args: Mapping[str, Any] | None = None,
        tuned: str | None = None,
        replay_memory: int = 1 << 30,
    ) -> None:
        self.args: Mapping[str, Any] = MappingProxyType(dict(args or {}))
        self.state: MutableMapping[str, Any] = {}
        self._director = director
        self._tuned = tuned
        self._replay_memory = replay_memory
        self._tracked: dict[str, Tracked] = {"session.state": track("state", self.state)}
        self._optimizers: dict[str, tuple[Optimizer, list[float]]] = {}  # with the rates of their groups at `track`
        self._validate: Callable[[], Any] | None = None
        self._runner: Runner | None = None
        self._feed: Feed | None = None
        self._iterating = False
        self._pending: list[Tensor] = []
        self._saved: Tree | None = None  # checkpoint to start from, when the study is resumed
        self._lookahead: Lookahead | None = None
        self._halt = ""
        self._silent = 0  # items since the last report
        self._warned = False
        if director.record.kept_steps or director.record.stages:
            self._saved = director.load()
            self._tracked["session.state"].restore(self._saved["objects"]["session.state"])

    # What the loop calls

    def track(self, **objects: object) -> None:
        """Name everything that a rewind must restore: `track(model=model, optimizer=optimizer, scaler=scaler)`.

        Modules, optimizers, tensors, generators (torch, NumPy, Python), dicts, and objects with `state_dict()`
        and `load_state_dict()`. May be called several times, before the first batch.

        Raises:
            UntrackableError: an object cannot be restored, or is an LR scheduler.
            SessionError: called after the first batch.
        """
        if self._runner is not None:
            raise SessionError("`track` must be called before the first batch.")
        for name, value in objects.items():
            if name in self._tracked:
                raise SettingError(f"`track` got {name!r} twice.")
            self._tracked[name] = track(name, value)
            if isinstance(value, Optimizer):
                self._optimizers[name] = value, rates_of(value)

    def validate(self, function: Callable[[], Any]) -> None:
        """Call `function()` for the validation loss: without gradients, and leaving generators and training
        flags as they were. Without it the training loss is the objective. Lower is better; any finite real."""
        if self._runner is not None:
            raise SessionError("`validate` must be called before the first batch.")
        self._validate = function

    def report(self, loss: Tensor | float) -> None:
        """Record the training loss of one optimizer step; never waits for the device.

        Raises:
            SessionError: before `track`, or outside `batches`.
        """
        if not self._iterating:
            raise SessionError(
                "`report` was called outside `batches`: call it once per optimizer step, in the body of "
                "`for batch in session.batches(loader)`"
                + ("." if self._optimizers else ", after `session.track(model=model, optimizer=optimizer)`.")
            )
        try:
            # What has no gradient may be an accumulator that the loop goes on writing.
            self._pending.append(loss.detach() if loss.requires_grad else loss.clone())  # type: ignore[union-attr]
        except AttributeError:
            try:
                self._pending.append(torch.tensor(float(loss), dtype=torch.float64))
            except (TypeError, ValueError):
                raise SessionError(f"`report` takes a number or a tensor of one, but got {loss!r}.") from None

    def batches(self, loader: Iterable[Item], *, epochs: int | None = None) -> Iterator[Item]:
        """Yield the loader's items until the run is done, setting the rate before each.

        Goes over the loader again and again; with `epochs=1`, inside an epoch loop of your own, one pass. A probe is
        then no longer than what is left of the pass, and of very short passes there is no search. Items that make up
        one step are counted in `session.state`, which a rewind restores, and not by `enumerate`.

        Raises:
            SessionError: no tracked optimizer, or two `report`s for one item.
            SettingError: `epochs` is less than 1.
            LoaderError: the loader yields nothing, or cannot be replayed.
            RateOverriddenError: something else changed the learning rate.
            DivergedError: no rate trains.
            StoppedError: asked to stop; all is saved.
        """
        if epochs is not None and epochs < 1:
            raise SettingError(f"`epochs >= 1` must hold, but got ({epochs=}).")
        if self._iterating:
            raise SessionError("`batches` is already being iterated: leave one loop before the next.")
        runner = self._start(loader, epochs)
        self._iterating = True
        try:
            while True:
                if self._lookahead is not None and self._pending:  # the loop was left after an update
                    self._lookahead.after(runner.step + len(self._pending))
                try:
                    if not runner.turn():
                        return
                    yield from self._window(runner)
                except PassEnded:
                    if not runner.cut():
                        return
        finally:
            self._iterating = False
            runner.rates.release()

    def _window(self, runner: Runner) -> Iterator[Any]:
        """Items until the losses are read next. The inner loop is all that most steps cost."""
        feed, pending, window, move = runner.feed, self._pending, runner.window, runner.rates.move
        done, size, exhausted = len(pending), len(window), False
        silent = self._silent  # goes on from pass to pass
        ahead, before = self._lookahead, runner.step
        runner.rates.apply(window[done])
        while done < size:
            if self._halt and not silent:  # never between the micro-batches of one step
                runner.stop(self._halt)
            live = None if exhausted else feed.live()
            items, taken = (feed.draw(),) if live is None else live, 0
            exhausted = live is not None  # if the loop below runs out
            for item in items:
                taken += 1
                yield item
                if len(pending) == done:  # a micro-batch
                    self._silent = silent = silent + 1
                    if silent == SILENCE:
                        raise SessionError(
                            f"no `report` in {SILENCE} items: call `session.report(loss)` once per optimizer step."
                        )
                    continue
                done, silent, self._silent = done + 1, 0, 0
                if len(pending) != done:
                    raise SessionError(
                        "`report` was called twice for one item: call it once per optimizer step, at its end."
                    )
                if ahead is not None:
                    ahead.after(before + done)
                if done == size or self._halt:
                    exhausted = False
                    break
                move(window[done])
            if live is not None:
                feed.skip(taken)

    # What the loop may read

    @property
    def step(self) -> int:
        """Number of the next optimizer update, from 0; in a probe, the update that it stands for."""
        runner = self._runner
        return self._director.record.kept_steps if runner is None else runner.step + len(self._pending)

    @property
    def epoch(self) -> int:
        """Number of the current item's pass over the loader, from 0; outside `batches`, of the next pass."""
        if self._feed is not None:
            return self._feed.epoch if self._iterating else self._feed.next_epoch
        return 0 if self._saved is None else int(self._saved["feed"]["epoch"])

    @property
    def lr(self) -> float:
        """The reference learning rate now in force."""
        if self._runner is None:
            raise SessionError("`session.lr` is known from the first batch on.")
        return self._runner.rates.current

    @property
    def done(self) -> bool:
        """Whether all planned steps are done."""
        return self._director.record.finished

    @property
    def is_probe(self) -> bool:
        """Whether the current item belongs to a probe, which will be rewound: silence loggers."""
        return self._runner is not None and self._runner.is_probe

    @property
    def params(self) -> Mapping[str, Any]:
        """Fixed hyperparameters that the search space names."""
        return MappingProxyType(dict(self._director.record.settings.space.params))

    # What the tuner calls

    def halt(self, reason: str) -> None:
        """Stop at the next item, everything saved. Safe to call from a signal handler."""
        self._halt = reason

    def unsaved_steps(self) -> int:
        """Steps that an exception now throws away."""
        return 0 if self._runner is None else self._runner.unsaved + len(self._pending)

    def close(self) -> None:
        """Leave the optimizer as an ordinary one."""
        if self._runner is not None:
            self._runner.rates.close()

    def _start(self, loader: Iterable[Any], epochs: int | None) -> Runner:
        """Make the runner at the first call; give it a feed at each."""
        _refuse_distributed()
        optimizer, own = self._tuned_optimizer()
        if self._runner is not None and self._runner.searching:
            raise SessionError(
                "the loop over `batches` was left in the middle of a search, whose probes need it to go on: let it end "
                "by itself, without `break`; for shorter passes give a shorter loader."
            )
        if self._runner is not None and self._runner.rates.touched and not self._warned:
            self._warned = True
            log.warning(
                "between two passes something else set the learning rate, to no effect, for the session sets it: "
                "remove the line that does, such as `scheduler.step()`."
            )
        generators = [tracked for tracked in self._tracked.values() if isinstance(tracked, GENERATORS)]
        feed = Feed(loader, epoch=self.epoch, epochs=epochs, memory=self._replay_memory, generators=generators)
        if self._runner is None:
            if count := uncovered(self._tracked.values()):
                raise UntrackableError(
                    f"the optimizer trains {count} tensors that nothing tracked holds, so that no probe could be "
                    "undone: track the model, too, `session.track(model=model, optimizer=optimizer)`."
                )
            averages = self._averages()
            tracked = {**self._tracked, **({} if averages is None else {"session.averages": averages})}
            if self._director.record.settings.lookahead:
                self._lookahead = tracked["session.lookahead"] = Lookahead(optimizer)
            self._runner = Runner(
                self._director, tracked, Rates(optimizer, own), feed, self._validate, self._pending, averages
            )
            if self._saved is not None:
                feed.seek(position_of(self._saved["feed"]))
                self._runner.resume(self._saved)
                self._saved = None
        self._feed = self._runner.feed = feed
        return self._runner

    def _averages(self) -> Averages | None:
        """Averages of the tracked modules, if they are wanted."""
        if not self._director.record.settings.average:
            return None
        if self._validate is None:
            raise SettingError(
                "`average=True` needs `session.validate(...)`: an average of the weights is kept only where its "
                "validation loss is lower."
            )
        modules = {name: module for name, each in self._tracked.items() if (module := getattr(each, "module", None))}
        return Averages(modules)

    def _tuned_optimizer(self) -> tuple[Optimizer, list[float]]:
        """The optimizer whose rate is set, and the rates of its groups at `track`."""
        names = sorted(self._optimizers)
        if not names:
            raise SessionError(
                "`batches` needs a tracked optimizer: call `session.track(model=model, optimizer=optimizer)` first."
            )
        if self._tuned is None and len(names) > 1:
            raise SettingError(f"{len(names)} optimizers are tracked: say which is tuned, `tuned=` one of {names}.")
        name = names[0] if self._tuned is None else self._tuned
        if name not in self._optimizers:
            raise SettingError(f"tuned={name!r} is not a tracked optimizer; tracked: {names}.")
        return self._optimizers[name]


def _refuse_distributed() -> None:
    with suppress(AttributeError):
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            size = torch.distributed.get_world_size()
            if size > 1:
                raise UnsupportedError(
                    f"torch.distributed runs with {size} processes, which autolrs does not support yet: tune on one "
                    "process and replay the exported schedule on all of them."
                )
