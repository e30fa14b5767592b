"""Workers, nodes and drivers that die, hang or freeze, really: the run ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from loops import Scripted
from ray.cluster_utils import Cluster
from ray_loops import HORIZON, local_ray, run_on_ray, story
from tuned_loops import build, loop, run, update, wait_for

from autolrs import Session, Study, load_study
from autolrs.distributed import crew, members
from autolrs.distributed.cluster import RayExecutor
from autolrs.errors import StoppedError
from autolrs.records import Issued, RolledBack
from autolrs.storage import StudyStore

PATIENCE = 4.0
"""Seconds without a step before a worker counts as hung."""


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, _ray: None) -> Any:
    """The run that nobody disturbs."""
    return story(with_faults(tmp_path_factory.mktemp("whole")))


def with_faults(storage: Path, *faults: Callable[[Session], None], deaths: int = 3, **settings: Any) -> Study:
    """A run on two workers whose loop commits `faults`."""

    def each(session: Session, loss: torch.Tensor) -> None:
        for fault in faults:
            fault(session)

    executor = RayExecutor(2, {"CPU": 1}, patience=PATIENCE, deaths=deaths)
    return run_on_ray(storage, loop(each=each), **HORIZON | {"executor": executor, "workers": 1} | settings)


def once(marker: Path, what: Callable[[], object], where: Callable[[Session], bool]) -> Callable[[Session], None]:
    """Do `what` at the first step that is `where`, whichever worker comes there first."""

    def fault(session: Session) -> None:
        if where(session) and not marker.exists():
            marker.touch()
            what()

    return fault


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(1000)


def in_probe(session: Session) -> bool:
    return session.is_probe and session.step == 5


def in_kept_run(session: Session) -> bool:
    return not session.is_probe and session.step == 120


def lost(storage: Path) -> int:
    """Probes that were issued twice."""
    with StudyStore.open("run", storage=storage, readonly=True) as store:
        issued = [(event.stage, event.number) for event in store.events() if isinstance(event, Issued)]
    return len(issued) - len(set(issued))


def test_workers_killed_in_a_probe_and_in_the_kept_run(tmp_path: Path, whole: Any) -> None:
    faults = [once(tmp_path / "a", kill, in_probe), once(tmp_path / "b", kill, in_kept_run)]
    study = with_faults(tmp_path, *faults)
    assert (tmp_path / "a").exists()
    assert (tmp_path / "b").exists()
    assert story(study) == whole
    assert lost(tmp_path) == 1


@pytest.mark.slow
def test_a_worker_killed_and_another_hung_in_one_stage(tmp_path: Path, whole: Any) -> None:
    faults = [
        once(tmp_path / "a", kill, in_probe),
        once(tmp_path / "b", hang, lambda session: session.is_probe and session.step == 6),
    ]
    assert story(with_faults(tmp_path, *faults)) == whole
    assert (tmp_path / "b").exists()
    assert lost(tmp_path) == 2


@pytest.mark.slow
def test_deaths_again_and_again_end_in_a_stop_from_which_the_run_goes_on(tmp_path: Path, whole: Any) -> None:
    def always(session: Session) -> None:
        if in_kept_run(session):
            kill()

    with pytest.raises(StoppedError, match=r"2 workers died in the kept run from step 100, the last because .*all is"):
        with_faults(tmp_path, always, deaths=2)
    study = with_faults(tmp_path)
    assert story(study) == whole
    assert load_study("run", str(tmp_path)).finished


@pytest.mark.slow
def test_a_hung_worker_in_the_kept_run(tmp_path: Path, whole: Any) -> None:
    assert story(with_faults(tmp_path, once(tmp_path / "a", hang, in_kept_run))) == whole


@pytest.mark.slow
def test_the_lead_dies_before_anything_is_saved(tmp_path: Path, whole: Any) -> None:
    """While it makes its model, and again before it opens the first stage."""
    inner = loop()

    def train(session: Session) -> Any:
        for name in "ab":
            if not (marker := tmp_path / name).exists():
                marker.touch()
                kill()
        return inner(session)

    executor = RayExecutor(2, {"CPU": 1}, patience=PATIENCE, deaths=5)
    assert story(run_on_ray(tmp_path, train, **HORIZON | {"executor": executor})) == whole


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize("where", ["probe", "kept run"])
def test_a_loss_that_is_not_finite_is_treated_as_in_the_serial_run(where: str, tmp_path: Path) -> None:
    """A probe diverges; the kept run is rolled back."""

    def diverging() -> Any:
        seen = []

        def each(session: Session, loss: torch.Tensor) -> None:
            if in_probe(session) if where == "probe" else in_kept_run(session):
                if not seen:
                    loss.data.fill_(torch.nan)
                seen.append(session.step)

        return loop(each=each)

    study = run_on_ray(tmp_path / "ray", diverging(), **HORIZON)
    assert story(study) == story(run(tmp_path / "serial", diverging(), **HORIZON))
    with StudyStore.open("run", storage=tmp_path / "ray", readonly=True) as store:
        assert any(isinstance(event, RolledBack) for event in store.events()) == (where == "kept run")


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_a_run_that_breaks_twice_goes_further_back_as_the_serial_run_does(tmp_path: Path) -> None:
    settings = {"search_budget": 0, "steps": 400, "checkpoint_every": 40}

    def breaking() -> Any:
        seen = []

        def each(session: Session, loss: torch.Tensor) -> None:
            seen.append(session.step)
            loss.data.fill_(0.9 if len(seen) > 225 and seen.count(230) < 3 else 0.05 + 2.0 ** (-session.step / 10))

        return loop(each=each)

    study = run_on_ray(tmp_path / "ray", breaking(), **settings)
    assert story(study) == story(run(tmp_path / "serial", breaking(), **settings))
    with StudyStore.open("run", storage=tmp_path / "ray", readonly=True) as store:
        backs = [(event.at, event.to) for event in store.events() if isinstance(event, RolledBack)]
    assert backs == [(240, 200), (240, 160)]


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_a_worker_that_always_dies_as_it_takes_the_best_probes_state_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "BACK_OFF", 0.1)

    class Bomb:
        def __init__(self, session: Session) -> None:
            self.session, self.steps = session, 0

        def state_dict(self) -> dict[str, int]:
            return {"steps": self.steps}

        def load_state_dict(self, state: dict[str, int]) -> None:
            if self.session.step == 60 and state["steps"] < 20:  # a probe's state, at the run's end
                os._exit(1)
            self.steps = state["steps"]

    def train(session: Session) -> None:
        model, optimizer, loader = build()
        bomb = Bomb(session)
        session.track(model=model, optimizer=optimizer, bomb=bomb)
        session.validate(lambda: float(bomb.steps))  # the whole run ends higher than any probe
        for batch in session.batches(loader):
            bomb.steps += 1
            session.report(update(model, optimizer, batch))

    executor = RayExecutor(1, {"CPU": 1}, deaths=3)
    strategy = Scripted(rates=(0.003,), length=15, whole=True)
    with pytest.raises(StoppedError, match="3 workers died at the end of the run"):
        run_on_ray(tmp_path, train, executor=executor, strategy=strategy, steps=60)


# Nodes


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without room for workers, and three nodes with room for one each, apart from the test's Ray."""
    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        cluster.add_node(num_cpus=1)
    ray.init(cluster.address, logging_level="ERROR")
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def at_work_elsewhere(marker: Path, what: Callable[[], object]) -> Any:
    """Start `what` here, in the driver, when a worker says that it is in a probe."""

    def wait() -> None:
        wait_for(marker.exists, seconds=60)
        what()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def says_where_it_is(marker: Path) -> Callable[[Session], None]:
    """Writes the node of the first worker that is in a probe; then it is in no hurry."""

    def fault(session: Session) -> None:
        if session.is_probe and session.step == 5:
            if not marker.exists():
                marker.write_text(ray.get_runtime_context().get_node_id())
            time.sleep(2)

    return fault


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ray's, for a raylet that is gone
@pytest.mark.parametrize("how", ["removed", "frozen"])
def test_a_node_is_lost(how: str, tmp_path: Path, cluster: Cluster) -> None:
    """In a probe; another node has room. A frozen one answers nothing, but Ray does not notice for a minute."""
    marker = tmp_path / "marker"

    def lose() -> None:
        node = next(node for node in cluster.worker_nodes if node.node_id == marker.read_text())
        if how == "removed":
            cluster.remove_node(node, allow_graceful=False)
        else:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for process in [raylet, *raylet.children(recursive=True)]:
                process.suspend()

    expected = story(with_faults(tmp_path / "whole"))
    thread = at_work_elsewhere(marker, lose)
    study = with_faults(tmp_path / "faulty", says_where_it_is(marker))
    thread.join()
    assert story(study) == expected
    assert lost(tmp_path / "faulty") == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_never_came_is_asked_for_again_when_a_node_is_gone(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All nodes are taken, so the worker waits; one of them goes, and only later does another become free.

    Mostly Ray goes on waiting; sometimes it says that the worker died, for it had chosen that very node.
    """
    monkeypatch.setattr(members, "STRANDED", 3.0)

    @ray.remote(num_cpus=1)
    class Holder:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    def asked_again() -> bool:
        return any(f"worker 0 {what}" in caplog.text for what in ("did not come", "is lost as they began"))

    expected = story(run_on_ray(tmp_path / "whole", **HORIZON))
    holders = [Holder.remote() for _ in range(3)]
    taken = ray.get([holder.node.remote() for holder in holders])
    hired = threading.Event()
    monkeypatch.setattr(crew, "hire", lambda *asked: (members.hire(*asked), hired.set())[0])

    def act() -> None:
        try:
            assert hired.wait(60)
            time.sleep(5)
            told = asked_again()
            cluster.remove_node(next(n for n in cluster.worker_nodes if n.node_id == taken[0]), allow_graceful=False)
            wait_for(asked_again, seconds=60)
            before.append(told)
        finally:
            ray.kill(holders[1])  # so that what fails does not hang

    before: list[bool] = []
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    study = run_on_ray(tmp_path / "late", **HORIZON)
    thread.join()
    assert before == [False], "as long as all nodes are there, it waits its turn"
    assert story(study) == expected


@pytest.mark.usefixtures("_ray")
def test_the_lead_never_came_and_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other worker waits for it, for it is the first; and not for the one that was given up."""
    monkeypatch.setattr(members, "STRANDED", 10.0)  # by then the other one is there
    hired: list[int] = []

    def hire(number: int, executor: RayExecutor, *more: Any) -> members.Member:
        nowhere = {} if hired else {"a resource of a node that is gone": 1}
        hired.append(number)
        member = members.hire(number, replace(executor, resources={"CPU": 1, **nowhere}), *more)
        return replace(member, nodes=member.nodes | {"a node that is gone"}) if nowhere else member

    expected = story(run_on_ray(tmp_path / "whole", workers=2, **HORIZON))
    monkeypatch.setattr(crew, "hire", hire)
    assert story(run_on_ray(tmp_path / "late", workers=2, **HORIZON)) == expected
    assert hired == [0, 1, 0]


# Memory


@pytest.mark.slow
def test_a_worker_that_takes_all_memory_is_killed_by_ray_and_replaced(tmp_path: Path) -> None:
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + 3e9) / memory.total
    marker = tmp_path / "marker"

    def greedy(session: Session) -> None:
        if in_probe(session) and not marker.exists():
            marker.touch()
            hoard = [torch.ones(10**8) for _ in range(12)]  # 4.8 GB
            time.sleep(30)
            del hoard

    if ray.is_initialized():
        ray.shutdown()
    settings = {"memory_usage_threshold": limit, "memory_monitor_refresh_ms": 100}
    with local_ray(_system_config=settings):
        expected = story(with_faults(tmp_path / "whole"))
        assert story(with_faults(tmp_path / "greedy", greedy)) == expected
    assert lost(tmp_path / "greedy") >= 1  # Ray kills others, too


# The driver

DRIVER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from ray_loops import HORIZON, run_on_ray
from tuned_loops import loop
from autolrs.storage import StudyStore

def slow(session, loss):
    time.sleep(float(os.environ["PACE"]))

flush, flushes = StudyStore.flush, int(os.environ.get("FLUSHES", 10**9))

def flush_or_die(store):
    global flushes
    flushes -= store._stored < len(store._events)
    if flushes < 0:
        os.kill(os.getpid(), 9)
    flush(store)

StudyStore.flush = flush_or_die

study = run_on_ray(Path({storage!r}), loop(each=slow), workers=2, **HORIZON)
Path({storage!r}, "result").write_text(repr(study.result))
"""


def name_of(process: psutil.Process) -> str:
    """ "" if it is gone: after the search workers are sent away, and the test looks on while they go."""
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["a probe", "the kept run"])
def test_a_driver_is_killed_and_run_again(moment: str, tmp_path: Path, whole: Any) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(tests=str(Path(__file__).parent), storage=str(tmp_path)))
    environment = os.environ | {"PACE": "0.1"}  # slow: the kept run must not end meanwhile
    event = "Probed" if moment == "a probe" else "Trained"

    def has_come_far() -> bool:
        if not StudyStore.exists("run", str(tmp_path)):
            return False
        with StudyStore.open("run", storage=tmp_path, readonly=True) as store:
            return any(type(each).__name__ == event for each in store.events())

    with subprocess.Popen([sys.executable, str(script)], env=environment) as process:
        wait_for(has_come_far, seconds=180)
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if name_of(child).startswith("ray::Worker")]
        process.kill()
    assert not (tmp_path / "result").exists()
    subprocess.run([sys.executable, str(script)], env=environment | {"PACE": "0"}, check=True, timeout=300)
    study = load_study("run", str(tmp_path))
    assert story(study)[:3] == whole[:3]
    assert (tmp_path / "result").read_text() == repr(whole[3])
    assert workers
    assert psutil.wait_procs(workers, timeout=60)[1] == [], "the first driver's workers went with it"


@pytest.mark.slow
@pytest.mark.parametrize("flushes", [2, 5])
def test_a_driver_is_killed_when_its_orders_are_out_and_nothing_is_stored(
    flushes: int, tmp_path: Path, whole: Any
) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(tests=str(Path(__file__).parent), storage=str(tmp_path)))
    environment = os.environ | {"PACE": "0"}
    killed = subprocess.run([sys.executable, str(script)], env=environment | {"FLUSHES": str(flushes)}, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    with StudyStore.open("run", storage=tmp_path, readonly=True) as store:
        before = store.events()
    subprocess.run([sys.executable, str(script)], env=environment, check=True, timeout=300)
    study = load_study("run", str(tmp_path))
    assert story(study)[:3] == whole[:3]
    assert (tmp_path / "result").read_text() == repr(whole[3])
    with StudyStore.open("run", storage=tmp_path, readonly=True) as store:
        assert store.events()[: len(before)] == before
