"""The driver's loop: workers get instructions, their reports become the record, and those that die are replaced.

One worker, the lead, holds the kept run; all of them run probes while a stage is searched. A worker that does not
hold the kept state from which its instruction starts is handed it, as the bytes of the last checkpoint. What a worker
says is stored here as soon as the others have their orders, and before anybody is heard again. So any of them may die
at any moment, and so may the driver: what it heard within its last turn, of some milliseconds, is done anew.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any, Final

from autolrs.codec import Encoded, encode
from autolrs.director import Director, stopped
from autolrs.distributed.cluster import RayExecutor, connected
from autolrs.distributed.members import Member, hire
from autolrs.distributed.messages import Ended, Order, Report, Setup, Want
from autolrs.distributed.shipping import Shipped, pack, unpack_error
from autolrs.distributed.states import KeptState, key_of, share
from autolrs.errors import IdentityError, StoppedError
from autolrs.records import Event, Instruction, Issued, Lost, Open, Probe, Probed, RolledBack, Started, Train, Wait
from autolrs.samplers import warm_up
from autolrs.snapshot import Tree, rng_preserved
from autolrs.storage import StudyStore

log = logging.getLogger("autolrs")

BEAT: Final = 1.0
"""Seconds between two looks at how the workers are."""
BACK_OFF: Final = 0.5
"""Seconds before a dead worker is replaced; twice as many after each further death, `MAX_BACK_OFF` at most. A
replacement asked for at once may land on a node that is dying."""
MAX_BACK_OFF: Final = 30.0
FAREWELL: Final = 5.0
"""Seconds that workers get to leave in good order."""


class Crew:
    """The workers of one run; to `tuner`, what a session is in a serial one."""

    def __init__(
        self,
        director: Director,
        store: StudyStore,
        executor: RayExecutor,
        *,
        args: Mapping[str, Any] | None,
        tuned: str | None,
        replay_memory: int,
        strategy: Any,
        allow_pickle: bool,
    ) -> None:
        self._director = director
        self._store = store
        self._executor = executor
        self._settings = {"args": dict(args or {}), "tuned": tuned, "replay_memory": replay_memory}
        self._strategy = strategy
        self._allow_pickle = allow_pickle
        self._setup: Callable[[], bytes] = bytes
        self._members: list[Member] = []
        self._lead: Member | None = None
        self._state: KeptState | None = None
        self._deaths: Counter[object] = Counter()
        self._vacancies: list[tuple[float, int]] = []  # when to hire whom
        self._halted = ""
        self._exit = ExitStack()

    # What the tuner calls

    def train(self, shipped: Shipped) -> Any:
        """Run the train function on all workers to the end of the run; what it returned where the final state is.

        Raises:
            SettingError: the cluster lacks what is asked for, or the settings cannot be sent to the workers.
            StoppedError: asked to stop, or workers died again and again; all is saved.
            Exception: what the function or a callback raised, unchanged.
        """
        self._setup = self._packer(shipped)
        self._exit.enter_context(connected(self._executor))
        self._exit.enter_context(rng_preserved())  # once for all: the user's loop does not run here
        self._director.guard = nullcontext
        record = self._director.record
        if record.kept_steps or record.stages:
            data = self._from_disk()
            self._state = KeptState.put(key_of(self._director.record), data)
            self._state.check_size()
            del data
        now = time.monotonic()
        self._vacancies = [(now, number) for number in range(self._executor.workers)]
        self._hire()
        with _one_thread():
            warm_up()  # while the workers begin
        reports: list[tuple[Member, Report]] = []
        while True:
            with self._store.lagging():  # the workers are at work when what they told is stored
                for member, report in reports:
                    ended = self._hear(member, report)
                    if ended is not None and ended.result is not None:
                        from ray import cloudpickle

                        return cloudpickle.loads(ended.result)
                self._stop_if_asked()
                self._hire()
                self._dispatch()
            reports = self._reports()

    def halt(self, reason: str) -> None:
        """Stop soon, everything saved. Safe to call from a signal handler."""
        self._halted = self._halted or reason

    def unsaved_steps(self) -> int:
        """Steps that an exception now throws away."""
        return sum(member.done for member in self._members if member.task is not None)

    def close(self) -> None:
        """Send all workers away."""
        import ray

        try:
            with suppress(Exception):
                waiting = [member for member in self._members if member.idle or member.leaving]
                for member in waiting:
                    member.dismiss()
                if waiting:
                    ray.wait([member.talk for member in waiting], num_returns=len(waiting), timeout=FAREWELL)
        finally:  # whoever is tired of waiting interrupts it
            for member in self._members:
                member.kill()
            self._members, self._state = [], None
            self._exit.close()

    def _from_disk(self) -> bytearray:
        """The last checkpoint, as bytes; if it is damaged, the record goes back to the one before."""
        return encode(self._director.load(), allow_pickle=self._allow_pickle)

    # Workers come and go

    def _packer(self, shipped: Shipped) -> Callable[[], bytes]:
        """Makes the setup of a worker that begins now."""
        import torch

        fixed = {
            "train": shipped,
            "settings": self._director.record.settings,
            "strategy": self._strategy,
            "batch": self._executor.batch,
            "allow_pickle": self._allow_pickle,
            "threads": self._executor.threads,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
            **self._settings,
        }

        def setup() -> bytes:
            return pack(Setup(events=self._store.events(), **fixed), "what the workers need to know")

        log.info("each worker is sent %.1f KB of code and settings", len(setup()) / 1e3)
        return setup

    def _hire(self) -> None:
        now = time.monotonic()
        for due, number in [vacancy for vacancy in self._vacancies if vacancy[0] <= now]:
            self._vacancies.remove((due, number))
            self._members.append(hire(number, self._executor, self._setup(), len(self._store.events())))
            self._members.sort(key=lambda member: member.number)

    def _lose(self, member: Member, why: str) -> None:
        """A worker is gone, or must go: what it did since its last report is lost, and another takes its place.

        Raises:
            StoppedError: too many died at the same instruction.
        """
        self._remove(member)
        if member.leaving:
            return
        task, what = member.task, _named(member.task)
        if task is not None and member.done:
            self._director.tell(Lost(member.done))
        self._deaths[what] += 1
        count = self._deaths[what]
        record = self._director.record
        if count >= self._executor.deaths:
            raise StoppedError(
                f"{count} workers died {what}, the last because {why}. Stopped at step {record.kept_steps} of "
                f"{record.settings.steps}; all is saved: see to the cause, then the same command or script goes on."
            )
        wait = min(MAX_BACK_OFF, BACK_OFF * 2 ** (sum(self._deaths.values()) - 1))
        log.warning("worker %d is lost %s (%s): another takes its place in %.1f s", member.number, what, why, wait)
        self._vacancies.append((time.monotonic() + wait, member.number))

    def _ask_again(self, member: Member) -> None:
        """Ask Ray anew for a worker that never came to be; none has died."""
        log.warning(
            "worker %d did not come, and a node that it may have waited for is gone: asked again", member.number
        )
        self._remove(member)
        self._vacancies.append((time.monotonic(), member.number))

    def _remove(self, member: Member) -> None:
        self._members.remove(member)
        member.kill()
        if self._lead is member:
            self._lead = None  # nobody is to wait for it

    # Reports

    def _reports(self) -> list[tuple[Member, Report]]:
        """Wait until a worker says something, for a beat at most; look at how all of them are."""
        import ray

        found = []
        waited = {ref: member for member in self._members for ref in member.awaited()}
        if not waited:
            time.sleep(0.05)
            return []
        timeout = min([BEAT, *(due - time.monotonic() for due, _ in self._vacancies)])
        ready, _ = ray.wait(list(waited), num_returns=1, timeout=max(timeout, 0.0), fetch_local=False)
        for ref in ready:
            member = waited[ref]
            try:
                if ref is member.talk:
                    found.append((member, member.heard()))
                else:
                    self._progress(member)
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError) as e:
                self._lose(member, str(e).partition("\n")[0].rstrip("."))
        for member in list(self._members):
            member.feel()
            if member.stranded():
                self._ask_again(member)
                continue
            begun = member.idle or member.task is not None
            limit = self._executor.patience if begun else self._executor.startup
            if (silent := member.silent()) > limit:
                what = "a step" if begun else "its first batch"
                self._lose(member, f"{silent:.0f} s went by without {what}, and {limit:g} are allowed")
        return found

    def _progress(self, member: Member) -> None:
        member.felt()
        if isinstance(member.task, Probe | Train) and member.done:
            why = self._director.progress(member.task, member.done, member.loss, running=self.unsaved_steps())
            if why:
                self.halt(why)

    def _hear(self, member: Member, report: Report) -> Ended | None:
        """Store what a worker did: the checkpoint first, then what it led to."""
        if report.want not in (Want.state, Want.before, Want.probe):  # else it is in the middle of its task
            self._deaths.pop(_named(member.task), None)
        data, member.brought = member.brought, None
        if data is not None or report.final:
            self._store.flush()  # checkpoints that others' events still name may go now
        if report.step is not None:
            self._director.save(report.step, Encoded(memoryview(data)))
        if report.probe is not None:
            self._director.save_probe(*report.probe, Encoded(memoryview(data)))
        if report.final:
            self._director.keep_final()
        for event in report.events:
            self._happened(member, event)
        if report.step is not None:
            first = self._state is None
            self._state = KeptState(key_of(self._director.record), member.blob, data)
            if first:
                self._state.check_size()
        member.blob = None  # a probe's state is on disk by now
        if not (report.ended or isinstance(member.task, Probe)):
            member.at = key_of(self._director.record) if member.task is not None else member.at
        if report.want is Want.order:
            member.rest()
        elif report.want is Want.state:
            self._answer(member, hand_over=True)
        elif report.want is Want.before:
            self._answer(member, state=self._put(self._director.load(before=True)))
        elif report.want is Want.probe:
            self._answer(member, state=self._put(self._director.load_probe(report.loss)))
        elif report.ended is None:
            self._answer(member)
        return self._over(member, report.ended) if report.ended else None

    def _happened(self, member: Member, event: Event) -> None:
        """Store an event of a worker's."""
        record = self._director.record
        if isinstance(event, Started) and (first := record.started) is not None:
            if event != first:
                raise IdentityError(
                    f"worker {member.number} began with {event}, another with {first}: `train` must set up the same "
                    "model and optimizer wherever it runs."
                )
            return
        if isinstance(event, Probed) and isinstance(member.task, Probe) and 0 < member.task.keep <= event.steps:
            member.held.add(event.number)
        self._director.tell(event)
        if isinstance(event, RolledBack):
            self._store.flush()
            self._director.forget_later()

    def _over(self, member: Member, ended: Ended) -> Ended:
        self._remove(member)
        if ended.error is not None:
            error = unpack_error(ended.error)
            if self._halted and isinstance(error, StoppedError):
                raise stopped(self._director.record, self._halted)
            raise error
        return ended

    # Orders

    def _dispatch(self) -> None:
        """Give work to those who wait for it."""
        while (idle := [member for member in self._members if member.idle]) and not self._halted:
            tasks = [member.task for member in self._members if member.task is not None]
            in_flight = {task.number for task in tasks if isinstance(task, Probe)}
            if len(in_flight) < len(tasks):  # the kept run is under way
                self._give_back(idle)
                return
            with _one_thread():
                instruction = self._director.next(in_flight=in_flight, batch=self._executor.batch)
            if isinstance(instruction, Wait):
                return
            member = self._who(instruction, idle)
            if member is None:
                return
            if isinstance(instruction, Probe):
                self._director.tell(Issued.of(instruction))
                member.held &= {instruction.incumbent}
            else:
                self._lead, member.held = member, set()
            member.task = instruction
            self._answer(member, hand_over=self._state is not None and member.at != key_of(self._director.record))

    def _give_back(self, idle: list[Member]) -> None:
        """If no later stage can need them, let those go who wait: others on the cluster may want their resources."""
        record = self._director.record
        if record.stage is None or record.stage.stop != record.settings.steps:
            return
        for member in idle:
            member.dismiss()
        log.info("the search is over: %d workers are given back, one trains on", len(idle))

    def _who(self, instruction: Instruction, idle: list[Member]) -> Member | None:
        """Who carries it out; None: somebody who is not there yet."""
        key = key_of(self._director.record)
        first = min(idle, key=lambda member: (member.at != key, member.number))
        if isinstance(instruction, Probe):
            return first
        if isinstance(instruction, Train) and any(instruction.adopt in member.held for member in idle):
            return next(member for member in idle if instruction.adopt in member.held)
        if self._lead is None and key == (0, 0):
            self._lead = self._members[0]  # of those who begin at once the first, whoever is ready first
        lead = self._lead or first
        return lead if lead.idle else None

    def _put(self, tree: Tree | None) -> Any:
        """A reference to a state in the object store, for one worker."""
        return None if tree is None else share(encode(tree, allow_pickle=self._allow_pickle))

    def _answer(self, member: Member, *, hand_over: bool = False, state: Any = None) -> None:
        """Send a worker its task and what has happened; with `hand_over`, the kept state to start from."""
        events = self._store.events()
        if hand_over:
            assert self._state is not None
            assert self._state.key == key_of(self._director.record)
            member.at, state = self._state.key, self._state.ref
        member.send(Order(member.task, events[member.seen :]), state)
        member.seen = len(events)

    def _stop_if_asked(self) -> None:
        """On the first call after `halt`: have the lead save; then leave as soon as it has."""
        if not self._halted:
            return
        training = [member for member in self._members if isinstance(member.task, Train)]
        if not training:
            raise stopped(self._director.record, self._halted)
        for member in training:
            member.halt(self._halted)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Decide on one core: the matrices are small, and where workers keep the others busy, several threads wait for
    each other ten times longer than they work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _named(task: Instruction | None) -> str:
    """An instruction, for people and for counting the dead."""
    match task:
        case Probe():
            return f"in probe {task.stage}.{task.number}"
        case Train():
            return f"in the kept run from step {task.start}"
        case Open():
            return f"at the start of stage {task.stage}"
    return "as they began or waited" if task is None else "at the end of the run"
