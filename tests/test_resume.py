"""Runs that are cut short, by real kills of real processes and by full disks: what is run again ends the same."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from loops import Scripted
from torch import Tensor
from tuned_loops import (
    Counter,
    Hook,
    finish,
    journal_size,
    loop,
    outcome,
    run,
    spawn,
    stepping,
    wait_for,
)

import autolrs
from autolrs import Session, load_study
from autolrs.checkpoints import CheckpointStore
from autolrs.errors import StudyLockedError
from autolrs.records import Elapsed, Event, Issued, Reverted, Trained
from autolrs.storage import StudyStore

LONGER = {"steps": 300, "checkpoint_every": 30}
STRATEGIES: dict[str, dict[str, Any]] = {
    "horizon": {"strategy": "horizon", "search_budget": 0.4},
    "horizon adopting": {"strategy": "horizon", "search_budget": 0.4, "options": {"adopt": True}},
    "autolrs": {"strategy": "autolrs", "search_budget": 0.4, "options": {"tau": 20, "probe": 0.5, "k": 2}},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """What a run with given settings ends with if nobody disturbs it; computed once."""
    known: dict[str, dict[str, Any]] = {}

    def of(settings: dict[str, Any], **loop_settings: Any) -> dict[str, Any]:
        key = repr((settings, loop_settings))
        if key not in known:
            folder = tmp_path_factory.mktemp("whole")
            known[key] = finish(folder, settings, **loop_settings) | {"size": journal_size(folder)}
        return known[key]

    return of


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Weights, random numbers left, and schedule, bit for bit."""
    return (found["result"], found["schedule"]) == (expected["result"], expected["schedule"])


def check_trials(storage: Path, *, failed: int | None = None) -> autolrs.Study:
    """Optuna's trials tell the same story as the record: one that ended for each probe, FAIL for the crashed."""
    study = load_study("run", str(storage))
    trials = study.optuna_study.trials
    states = [trial.state.name for trial in trials]
    assert set(states) <= {"COMPLETE", "PRUNED", "FAIL"}
    ended = [trial.params["rate"] for trial in trials if trial.state != optuna.trial.TrialState.FAIL]
    assert sorted(ended) == sorted(trial.rate for stage in study.stages for trial in stage.trials)
    assert all(trial.user_attrs["reason"] == "crashed" for trial in trials if trial.state.name == "FAIL")
    if failed is not None:
        assert states.count("FAIL") == failed
    return study


def steps_paid(study: autolrs.Study) -> int:
    cost = study.cost
    return cost.kept_steps - cost.adopted_steps + cost.probe_steps + cost.discarded_steps + cost.lost_steps


# kill -9


def kill_at_random(storage: Path, settings: dict[str, Any], kills: int, size: int, **loop_settings: Any) -> int:
    """Kill a run at random moments, each time it is run again; how many kills came before its end."""
    rng = random.SystemRandom()
    for hits, moment in enumerate(sorted(rng.uniform(0, 0.85) for _ in range(kills))):
        least = max(moment * size, journal_size(storage) + 1)  # it has come so far, and done something itself
        process = spawn(storage, settings, **loop_settings)
        wait_for(lambda p=process, least=least: journal_size(storage) >= least or not p.is_alive())  # type: ignore[misc]
        process.join(rng.uniform(0, 0.03))
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            return hits
    return kills


@pytest.mark.parametrize(
    ("strategy", "own_generator", "kills"),
    [
        ("horizon", True, 3),
        pytest.param("autolrs", False, 3),
        *(pytest.param(s, own, 12, marks=pytest.mark.slow) for s in STRATEGIES for own in (True, False)),
    ],
)
def test_killed_at_random_moments(
    tmp_path: Path, whole: Callable[..., dict[str, Any]], strategy: str, own_generator: bool, kills: int
) -> None:
    settings = LONGER | STRATEGIES[strategy]
    expected = whole(settings, own_generator=own_generator)
    hits = kill_at_random(tmp_path, settings, kills, expected["size"], own_generator=own_generator)
    assert hits >= 2 * kills / 3
    found = finish(tmp_path, settings, own_generator=own_generator)
    assert same(found, expected)
    check_trials(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_and_resumed_in_interpreters_that_share_nothing(
    tmp_path: Path, whole: Callable[..., dict[str, Any]], strategy: str
) -> None:
    """The processes of the other tests are forks of one: they hash alike."""
    settings = LONGER | STRATEGIES[strategy]
    script = (
        "import sys; from pathlib import Path; import test_resume, tuned_loops\n"
        "hooks = [lambda: test_resume.die_at_update(int(sys.argv[2]))]\n"
        f"tuned_loops._work(Path(sys.argv[1]), {settings!r}, hooks, {{}})"
    )
    for seed, (update, code) in enumerate([(30, -signal.SIGKILL), (150, -signal.SIGKILL), (10**6, 0)]):
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTHONHASHSEED": str(seed + 1)}
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path), str(update)], env=environment, check=False)
        assert done.returncode == code
    assert same(outcome(tmp_path), whole(settings))
    check_trials(tmp_path)


def beat_always() -> None:
    """Have the run say where it is at every read of the losses, not once a second."""
    import autolrs.director
    import autolrs.storage

    autolrs.director.BEAT_SECONDS = 0.0  # type: ignore[misc]
    autolrs.storage.PROGRESS_SECONDS = 0.0  # type: ignore[misc]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_update(number: int) -> None:
    """Kill this process when it has done so many updates."""
    step = torch.optim.Adam.step

    def deadly(self: Any, *args: Any, **kwargs: Any) -> Any:
        if Counter.steps == number:
            die()
        return step(self, *args, **kwargs)

    torch.optim.Adam.step = deadly  # type: ignore[method-assign]


def die_around_write(number: int, after: bool, kind: str) -> None:
    """Kill this process before or after its event, checkpoint, or final checkpoint, of that number is written."""
    writes = {
        "event": (StudyStore, "append"),
        "checkpoint": (CheckpointStore, "save"),
        "final": (CheckpointStore, "tag"),
    }
    owner, name = writes[kind]
    write, count = getattr(owner, name), 0

    def deadly(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == number and not after:
            die()
        done = write(self, *args, **kwargs)
        if count == number:
            die()
        return done

    setattr(owner, name, deadly)


def killed(storage: Path, settings: dict[str, Any], *hooks: Hook) -> None:
    process = spawn(storage, settings, *hooks)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_what_kills_throw_away_is_counted(tmp_path: Path, whole: Callable[..., dict[str, Any]]) -> None:
    """As of the last read of the losses: after 16 updates, 24 (where the plateau ends), 32 and 40 of a probe."""
    search = Scripted(rates=(3e-3, 1e-2), length=40, keep=24)
    settings = {"steps": 200, "checkpoint_every": 50, "strategy": search}
    deaths = (35, 30, 62)  # in the first probe, in it again, in the second
    lost = []
    for death in deaths:
        killed(tmp_path, settings, beat_always, partial(die_at_update, death))
        lost.append(load_study("run", str(tmp_path)).cost.lost_steps)  # of those before
    found = finish(tmp_path, settings, beat_always)
    study = check_trials(tmp_path, failed=3)
    assert lost == [0, 32, 32 + 24]
    assert study.cost.lost_steps == 32 + 24 + 16  # 40 of the 62 are the first probe's, which ended
    assert found["steps"] + sum(deaths) - steps_paid(study) == (35 - 32) + (30 - 24) + (62 - 40 - 16)
    assert same(found, whole(settings))


def test_what_a_kill_of_the_kept_run_throws_away_is_counted(tmp_path: Path) -> None:
    settings = {"steps": 200, "search_budget": 0, "checkpoint_every": 50}
    killed(tmp_path, settings, beat_always, partial(die_at_update, 90))  # from 50 on
    killed(tmp_path, settings, beat_always, partial(die_at_update, 20))  # with no event of its own
    killed(tmp_path, settings, partial(die_at_update, 10))  # with no heartbeat either
    found = finish(tmp_path, settings, beat_always)
    study = check_trials(tmp_path, failed=0)
    assert study.cost.lost_steps == 30 + 14  # reads at 80 and 64
    assert found["steps"] == 150
    sessions = [event.seconds for event in events_of(tmp_path) if isinstance(event, Elapsed)]
    assert len(sessions) == 3  # whose end, or last heartbeat, is known
    assert sum(sessions) == pytest.approx(study.cost.wall_seconds)


def moments(events: int, checkpoints: int) -> list[tuple[int, bool, str]]:
    return [
        (number, after, kind)
        for kind, count in (("event", events), ("checkpoint", checkpoints), ("final", 1))
        for number in range(1, count + 1)
        for after in (False, True)
    ]


def kill_around(
    folder: Path, moment: tuple[int, bool, str], settings: dict[str, Any], expected: dict[str, Any], **more: Any
) -> None:
    process = spawn(folder, settings, partial(die_around_write, *moment), **more)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, moment
    assert same(finish(folder, settings, **more), expected), moment
    study = check_trials(folder)
    assert study.record.finished


def test_killed_between_a_checkpoint_and_its_record_and_at_other_writes(
    tmp_path: Path, whole: Callable[..., dict[str, Any]]
) -> None:
    expected = whole({})
    named = [(2, True, "checkpoint"), (1, True, "final")]  # the adopted stretch's, the final one
    rng = random.SystemRandom()
    for index, moment in enumerate([*named, rng.choice(moments(14, 0))]):
        kill_around(tmp_path / str(index), moment, {}, expected)


@pytest.mark.slow
def test_killed_around_every_single_write(tmp_path: Path, whole: Callable[..., dict[str, Any]]) -> None:
    expected = whole({})
    finish(tmp_path, {})
    with StudyStore.open("run", storage=tmp_path, readonly=True) as store:
        events = len(store.events())
    for index, moment in enumerate(moments(events, 6)):
        kill_around(tmp_path / str(index), moment, {}, expected)


def explode_once(session: Session, loss: Tensor) -> None:
    if session.step >= 40 and session.lr > 1.5e-3:
        loss.data.fill_(float("inf"))


def test_killed_amid_a_roll_back(tmp_path: Path, whole: Callable[..., dict[str, Any]]) -> None:
    settings = {"steps": 60, "search_budget": 0, "space": autolrs.SearchSpace("c", (1e-4, 1), schedule="constant")}
    expected = whole(settings, each=explode_once)
    # The checkpoints are those of the steps 0, 16, 32, then 32 again, now with the batches after it passed over.
    kill_around(tmp_path / "a", (4, True, "checkpoint"), settings, expected, each=explode_once)
    study = load_study("run", str(tmp_path / "a"))
    assert len(study.record.roll_backs) == 1
    assert study.cost.discarded_steps == 16
    kill_around(tmp_path / "b", (4, False, "checkpoint"), settings, expected, each=explode_once)


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_told_to_stop_saves_says_so_and_ends(
    tmp_path: Path, whole: Callable[..., dict[str, Any]], number: signal.Signals
) -> None:
    settings = LONGER | STRATEGIES["horizon"]
    with stepping(tmp_path, settings, slowly) as process:
        os.kill(process.pid or 0, number)
        process.join(60)
        assert process.exitcode == 0
    said = outcome(tmp_path)
    assert said["error"] == "StoppedError"
    assert f"({number.name})" in said["message"]
    assert "the same command or script goes on from there" in said["message"]
    assert same(finish(tmp_path, settings), whole(settings))
    study = check_trials(tmp_path)
    assert study.cost.lost_steps <= said["steps"]


# Two processes


def slowly() -> None:
    """Make each update take a while."""
    import time

    step = torch.optim.Adam.step

    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.02)
        return step(self, *args, **kwargs)

    torch.optim.Adam.step = slow  # type: ignore[method-assign]


def test_the_second_process_on_a_study_is_refused_or_takes_it_over(
    tmp_path: Path, whole: Callable[..., dict[str, Any]]
) -> None:
    settings = LONGER | STRATEGIES["horizon"]
    with stepping(tmp_path, settings, slowly) as first:
        with pytest.raises(StudyLockedError, match=rf"process {first.pid} on .*takeover=True"):
            run(tmp_path, **settings)
        assert first.is_alive()
        study = run(tmp_path, takeover=True, **settings)
        first.join(60)
    said = outcome(tmp_path)
    assert said["error"] == "StudyLockedError"
    assert f"taken over by process {os.getpid()}" in said["message"]
    assert same({"result": study.result, "schedule": study.schedule.to_json()}, whole(settings))
    check_trials(tmp_path)


# Disks


class Disk:
    """Makes every fsync fail from the n-th on, as a full disk does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 10**9
        self.synced = 0
        fsync = os.fsync

        def limited(descriptor: int) -> None:
            self.synced += 1
            self.room -= 1
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", limited)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    yield Disk(monkeypatch)
    monkeypatch.undo()


def test_a_full_disk_is_said_and_the_last_good_state_goes_on(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it fills: in the journal, in a checkpoint, in the list of checkpoints."""
    expected = run(tmp_path / "whole")
    total, last = disk.synced, 0
    starts = list(range(6, total, total // 6))
    for index, room in enumerate(starts):
        disk.room = room
        with pytest.raises(OSError, match="No space left on device") as info:
            run(tmp_path / str(index))
        assert isinstance(info.value, autolrs.AutoLRSError)
        assert "run the same command again" in str(info.value)
        disk.room = 10**9
        before = load_study("run", str(tmp_path / str(index)))
        assert before.cost.kept_steps >= last
        last = before.cost.kept_steps
        if last:
            store = CheckpointStore(before.directory, readonly=True)
            assert store.latest(last)[0] == last
        study = run(tmp_path / str(index))
        assert study.result == expected.result
        assert study.schedule == expected.schedule
    assert last > 0


def events_of(storage: Path) -> tuple[Event, ...]:
    with StudyStore.open("run", storage=storage, readonly=True) as store:
        return store.events()


def stop_at(update: int) -> Callable[[Session, Tensor], None]:
    def each(session: Session, loss: Tensor) -> None:
        if Counter.steps == update:
            raise ZeroDivisionError

    return each


def test_a_truncated_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, loop(each=stop_at(75)))
    study = load_study("run", str(tmp_path))
    assert study.cost.kept_steps == 48
    path = study.checkpoint(48)
    path.write_bytes(path.read_bytes()[:-100])
    resumed = run(tmp_path)
    assert f"{path} is damaged" in caplog.text
    assert "Going on from step 32" in caplog.text
    assert any(isinstance(event, Reverted) and event.to == 32 for event in events_of(tmp_path))
    assert resumed.result == expected.result
    assert resumed.schedule == expected.schedule
    assert resumed.exact
    assert resumed.cost.lost_steps == study.cost.lost_steps + 16


def test_a_finished_run_whose_last_checkpoint_is_damaged_before_it_returned(tmp_path: Path) -> None:
    def train(session: Session) -> Any:
        result = loop(each=lambda session, loss: done.append(session.done))(session)
        if broken:
            raise ZeroDivisionError
        return result

    broken, done = True, []
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, train)
    broken, done = False, []
    study = load_study("run", str(tmp_path))
    path = study.checkpoint(60)
    path.write_bytes(b"")
    assert run(tmp_path, train).result == run(tmp_path / "whole").result
    assert done == [False] * 12  # from step 48 on
    assert load_study("run", str(tmp_path)).finished


def test_no_good_checkpoint_is_an_error_that_names_them(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, loop(each=stop_at(75)))
    folder = load_study("run", str(tmp_path)).directory
    for path in folder.glob("step-*"):
        path.write_bytes(b"nothing")
    with pytest.raises(OSError, match=r"no checkpoint at or before step 48 .*-00000048.* is damaged.*-00000032"):
        run(tmp_path)


def test_a_truncated_journal_line_is_named_and_what_is_before_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(tmp_path / "whole")
    for index, gone in enumerate((1, 20, 10**6)):  # bytes of the last line
        folder = tmp_path / str(index)
        with pytest.raises(ZeroDivisionError):
            run(folder, loop(each=stop_at(75)))
        path = folder / "run" / "study.journal"
        lines = path.read_bytes().splitlines(keepends=True)
        assert len(lines[-1]) > 20
        path.write_bytes(b"".join(lines)[: -min(gone, len(lines[-1]) - 5)])
        study = run(folder)
        assert "is incomplete: its writer was killed" in caplog.text
        assert str(path) in caplog.text
        caplog.clear()
        assert study.result == expected.result
        assert study.schedule == expected.schedule


# The rest of resuming


def test_a_probe_lost_in_a_crash_is_issued_again_under_its_number_and_rate(tmp_path: Path) -> None:
    for update in (5, 15, 25, 35):
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, loop(each=stop_at(update)))
    run(tmp_path)
    issued = [(e.stage, e.number, e.rate) for e in events_of(tmp_path) if isinstance(e, Issued)]
    assert len(issued) > len(set(issued)) == 3
    check_trials(tmp_path, failed=len(issued) - 3)


def test_what_the_user_tracks_must_be_the_same(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, loop(each=stop_at(75)))

    def more(session: Session) -> Any:
        session.track(extra=torch.zeros(1))
        return loop()(session)

    with pytest.raises(ValueError, match=r"the checkpoint holds .* but tracked are .*'extra'"):
        run(tmp_path, more)
    with pytest.raises(ValueError, match="another use of `validate`: True, now False"):
        run(tmp_path, loop(validate=False))
    assert run(tmp_path).result == run(tmp_path / "whole").result


def test_kept_steps_are_checkpointed_as_asked(tmp_path: Path) -> None:
    run(tmp_path, checkpoint_every=7)
    stops = [event.stop for event in events_of(tmp_path) if isinstance(event, Trained)]
    adopted = stops[0]
    assert stops == sorted({adopted, *range(7, 60, 7), 60} - set(range(adopted)))
