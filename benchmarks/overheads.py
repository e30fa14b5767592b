"""What a probe costs beyond its steps: ours, and trials of Ray Tune that do the same -> docs/workers.md."""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import nn

import autolrs
from autolrs.codec import decode, encode
from autolrs.protocols import Strategy
from autolrs.records import Decide, Forecast, Open, Probe, Probed, Record, Wait
from autolrs.schedules import base_pieces
from autolrs.snapshot import track
from autolrs.strategies.common import lost_in_crash
from benchmarks.clocks import CPUS, Clock, ray_with_room


@dataclass(frozen=True)
class Many:
    """As many probes of one step as are asked for, and nothing to decide."""

    count: int
    name = "many"
    search_budget = 100.0

    def decide(self, record: Record, in_flight: Any = frozenset()) -> Any:
        stage, steps = record.stage, record.settings.steps
        if stage is None or stage.decided:
            return Open(len(record.stages), record.kept_steps, evaluate=False)
        lost = lost_in_crash(stage, in_flight)
        number = len(stage.trials) if lost is None else lost.number
        if number < self.count:
            return Probe(0, number, 0.01, 1, base_pieces("constant", rate=0.01, start=0, stop=1), validations=0)
        return Wait() if in_flight else Decide(0, 0.01, steps, base_pieces("constant", rate=0.01, start=0, stop=steps))

    def judge(self, record: Record, probed: Probed) -> Forecast | None:
        return Forecast(1.0, probed.objective or 0.0, 0.1)

    def prune(self, *args: Any) -> str:
        return ""


class Ballast(nn.Module):
    """So many megabytes of weights, of which a step trains four."""

    def __init__(self, megabytes: float) -> None:
        super().__init__()
        self.register_buffer("ballast", torch.rand(int(megabytes * 250_000)))
        self.weights = nn.Parameter(torch.ones(4))


def light(session: autolrs.Session) -> float:
    """Steps that cost nothing unless they are told to, with a state that does; returns `restore_and_step`'s seconds."""
    model = Ballast(session.args["megabytes"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session.track(model=model, optimizer=optimizer)
    for _ in session.batches([0] * 10):
        if seconds := session.args.get("seconds"):
            time.sleep(seconds)
        session.report(light_step(model, optimizer))
    return restore_and_step(model, optimizer)


def light_step(model: Ballast, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    loss = model.weights.square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def restore_and_step(model: Ballast, optimizer: torch.optim.Optimizer, count: int = 50) -> float:
    """Seconds that a probe of one step would take without anything around it: the median of `count`."""
    tracked = track("model", model), track("optimizer", optimizer)
    states, times = [each.capture() for each in tracked], []
    for _ in range(count):
        start = time.perf_counter()
        for each, state in zip(tracked, states, strict=True):
            each.restore(state)
        light_step(model, optimizer).item()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@dataclass(frozen=True)
class PerProbe:
    """What a probe of one step takes, and the same without anything around it, in the same process [s].

    Attributes:
        growth: of this process over the last four fifths of the probes [MB].
    """

    whole: float
    plain: float
    growth: float = 0.0

    @property
    def overhead(self) -> float:
        return self.whole - self.plain


def settled(times: Sequence[float]) -> float:
    """The median gap between the last four fifths of `times`: processes that begin are busy with other things, too."""
    return statistics.median(b - a for a, b in pairwise(times[len(times) // 5 :]))


def per_probe(megabytes: float, probes: int, executor: str, place: str | None = None) -> PerProbe:
    """Probes of autolrs with the study in a folder in `place`; None: where temporary files are, on a disk."""
    import psutil

    strategy: Strategy = Many(probes)
    clock = Clock()
    with TemporaryDirectory(dir=place) as folder:
        memory = []

        class Memory(Clock):
            def on_event(self, record: Record, event: Any) -> None:
                if isinstance(event, Probed) and event.number in (probes // 5, probes - 1):
                    memory.append(psutil.Process().memory_info().rss / 1e6)

        study = autolrs.tune(
            light,
            steps=10,
            space="sgd",
            strategy=strategy,
            executor=executor,
            storage=folder,
            callbacks=[clock, Memory()],
            args={"megabytes": megabytes},
        )
    took = [seconds for name, seconds in clock.times if name == "Probed"]
    return PerProbe(settled(took), study.result, memory[-1] - memory[0])


def stored(megabytes: float) -> float:
    """The object store's largest content in a run on two workers with many checkpoints, in states."""
    import re
    import threading

    import ray
    from ray._private.internal_api import memory_summary

    over, most, address = threading.Event(), 0.0, ray.get_runtime_context().gcs_address

    def watch() -> None:
        nonlocal most
        while not over.wait(0.2):
            found = re.search(r"Plasma memory usage (\d+) MiB", memory_summary(address, stats_only=True))
            most = max(most, float(found[1]) * 2**20 if found else 0.0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with TemporaryDirectory() as folder:
            autolrs.tune(
                light,
                steps=400,
                space="sgd",
                executor="ray",
                workers=2,
                storage=folder,
                checkpoint_every=20,
                args={"megabytes": megabytes, "seconds": 0.05},
            )
    finally:
        over.set()
        watcher.join()
    return most / (megabytes * 1e6)


IN_MEMORY: Final = "/dev/shm"
"""A folder in memory, where no disk is waited for."""


def tune_per_probe(megabytes: float, probes: int, *, record: bool = False, states: bool = False) -> PerProbe:
    """Probes as trials of Ray Tune in its quickest layout: one actor, used again for each trial, that restores the
    state from the object store. What it stores lies in memory, so that it waits for no disk.

    Args:
        record: what is known of the trials is stored after each, so that `Tuner.restore` finds it after a kill at any
            moment; else at Tune's own pace, every 10 s or more seldom.
        states: the state that a trial ends at is kept as its checkpoint; else it is thrown away.
    """
    import ray
    from ray import tune as ray_tune

    state = ray.put(bytes(encode(track("model", Ballast(megabytes)).capture())))

    class ProbeTrial(ray_tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.model = Ballast(megabytes)
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
            self.tree = decode(ray.get(state), alias=True)
            self.plain = restore_and_step(self.model, self.optimizer)

        def reset_config(self, config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            track("model", self.model).restore(self.tree)
            loss = light_step(self.model, self.optimizer).item()
            return {"loss": loss, "done": True, "ended": time.time(), "plain": self.plain}

        def save_checkpoint(self, folder: str) -> None:
            if states:
                Path(folder, "state").write_bytes(encode(track("model", self.model).capture()))

    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "0" if record else "auto"
    with TemporaryDirectory(dir=IN_MEMORY) as folder:
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(ProbeTrial, {"cpu": 1}),
            param_space={"lr": ray_tune.loguniform(1e-4, 1e-1)},
            tune_config=ray_tune.TuneConfig(num_samples=probes, max_concurrent_trials=1, reuse_actors=True),
            run_config=ray_tune.RunConfig(
                storage_path=folder, verbose=0, checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=states)
            ),
        )
        results = tuner.fit()
    ended = sorted(result.metrics["ended"] for result in results)
    return PerProbe(settled(ended), results[0].metrics["plain"])


def broadcast(megabytes: float, workers: int) -> float:
    """Seconds until all workers of this machine have restored a state from the object store; the best of five."""
    import numpy as np
    import ray

    @ray.remote(num_cpus=CPUS)
    class Restorer:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self.tracked = track("model", Ballast(megabytes))

        def restore(self, data: Any) -> None:
            self.tracked.restore(decode(memoryview(data), alias=True))

    data = np.frombuffer(encode(track("model", Ballast(megabytes)).capture()), np.uint8)
    restorers = [Restorer.remote() for _ in range(workers)]
    times = []
    for _ in range(6):
        start = time.perf_counter()
        state = ray.put(data)
        ray.get([restorer.restore.remote(state) for restorer in restorers])
        times.append(time.perf_counter() - start)
    for restorer in restorers:
        ray.kill(restorer)
    return min(times[1:])


def exchange(rounds: int = 1000) -> float:
    """Seconds that an actor of Ray takes to be called and to answer nothing: the least that a probe on one costs."""
    import ray

    @ray.remote(num_cpus=CPUS)
    class Idle:
        def answer(self) -> None:
            pass

    idle, times = Idle.remote(), []
    for _ in range(rounds):
        start = time.perf_counter()
        ray.get(idle.answer.remote())
        times.append(time.perf_counter() - start)
    ray.kill(idle)
    return statistics.median(times)


ROUNDS: Final = 3
"""So often ours and Ray Tune's are measured in turn, since other work on the machine comes and goes."""


def table() -> str:
    lines = [
        "| a probe of one step | whole [ms] | overhead [ms] | of rounds | goal |",
        "| --- | --- | --- | --- | --- |",
    ]
    measured: dict[str, list[PerProbe]] = defaultdict(list)
    with ray_with_room():

        def row(what: str, found: Sequence[PerProbe], goal: str = "") -> None:
            whole = statistics.median(f.whole for f in found) * 1e3
            over = statistics.median(f.overhead for f in found) * 1e3
            spread = " / ".join(f"{f.overhead * 1e3:.1f}" for f in found)
            lines.append(f"| {what} | {whole:.1f} | {over:.1f} | {spread} | {goal} |")

        for _ in range(ROUNDS):
            for what, measure in _RIVALRY.items():
                measured[what].append(measure())
        bare = exchange()
        for what, found in measured.items():
            row(what, found, "5 ms" if what == _DISK else "")
        row("100 MB, serial run", [per_probe(100, 40, "serial")])
        row("100 MB, one worker of Ray", [per_probe(100, 40, "ray")], "30 ms")
        lines += ["", "| what | measured | goal |", "| --- | --- | --- |"]
        for how in (what for what in measured if "Ray Tune" in what):
            for ours in (_MEMORY, _DISK):
                ratios = [
                    theirs.overhead / our.overhead for theirs, our in zip(measured[how], measured[ours], strict=True)
                ]
                spread = " / ".join(f"{ratio:.1f}" for ratio in ratios)
                lines.append(f"| {how}, by {ours} | {statistics.median(ratios):.1f} x ({spread}) | 5 x |")
        lines.append(f"| one empty exchange with an actor of Ray | {bare * 1e3:.2f} ms | |")
        growth = max(found.growth for found in measured[_DISK])
        lines.append(f"| the driver's memory over 400 probes | {growth:+.1f} MB | 20 MB |")
        lines.append(f"| object store, 100 MB of state, at most, sampled | {stored(100):.2f} x | 2.2 x |")
        lines.append(f"| 100 MB to 4 workers of one machine, restored | {broadcast(100, 4) * 1e3:.0f} ms | 150 ms |")
    return "\n".join(lines)


_DISK: Final = "one worker of Ray"
_MEMORY: Final = "one worker of Ray, study in memory"
_RIVALRY: Final[dict[str, Callable[[], PerProbe]]] = {
    "serial run": lambda: per_probe(1, 200, "serial"),
    "serial run, study in memory": lambda: per_probe(1, 200, "serial", IN_MEMORY),
    _DISK: lambda: per_probe(1, 500, "ray"),
    _MEMORY: lambda: per_probe(1, 500, "ray", IN_MEMORY),
    "trial of Ray Tune, nothing stored": lambda: tune_per_probe(1, 200),
    "trial of Ray Tune, all stored after each of 30": lambda: tune_per_probe(1, 30, record=True),
    "trial of Ray Tune, all stored after each of 100": lambda: tune_per_probe(1, 100, record=True),
    "the same 100, and the state that each ends at": lambda: tune_per_probe(1, 100, record=True, states=True),
}
"""What is compared, at 1 MB of state."""

TEXT: Final = """\
Probes of one step with a constant for a rate, so that proposing costs nothing, as in Ray Tune's random search, at 1 MB
of state unless another size is said. Overhead is what a probe takes beyond restoring the state and making the step,
both measured in the same process without anything around them. What is left is ours: snapshot, one exchange with the
driver, the decision. A trial of Ray Tune restores the same state and makes the same step, in one actor that is used
again. Medians of rounds in which ours and theirs took turns; beside them, the rounds. Ours with Ray are of 500 probes.

What came out of a probe, and that the next one began, is stored while that one runs, before anybody else is heard. So
a kill at any moment loses no more than a probe that ended a few milliseconds before, which is done again; and once a
probe the disk is waited for, so that a power cut loses no more either. Ray Tune stores what came out every ten seconds
or more seldom unless told to after each trial (`TUNE_GLOBAL_CHECKPOINT_S=0`), and never waits for a disk. So like is
compared with like where it stores after each and our study lies in memory: both outlive a kill, neither a power cut.
It then writes all trials each time, so that its cost grows with their number. Where it stores nothing it does less
than we do; who writes results down in a callback of their own, and sees to going on from them, pays hardly more than
that. The state that a trial ends at is needed only where it is to be trained on."""
