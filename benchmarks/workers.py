"""What several workers bring, and what they cost -> docs/workers.md. Run: python -m benchmarks workers

Steps are simulated: each sleeps, so that more workers than cores can be tried. Everything else is real: Ray, processes,
checkpoints, the search. Beginning (Ray, processes, imports) is not counted; it takes some seconds once.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from autolrs.snapshot import seed_everything, track
from autolrs.strategies.common import lost_in_crash
from benchmarks import idle

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "workers.md"
STEP_SECONDS: Final = 0.02
STEPS: Final = 1500
WORKERS: Final = (1, 2, 4, 8)
CPUS: Final = 0.2
"""Of each worker, so that eight fit on two cores."""


def simulated(session: autolrs.Session) -> float:
    """A loop whose steps take `session.args["seconds"]` each, on a noisy quadratic bowl."""
    weights = nn.Parameter(torch.full((20,), 3.0))
    scales = torch.logspace(-2, 0, 20)
    optimizer = torch.optim.SGD([weights], lr=0.1)
    session.track(weights=weights, optimizer=optimizer)
    assemble(Path(session.args["meet"]), session.args["workers"])
    for _ in session.batches([0] * 1000):
        time.sleep(session.args["seconds"])
        loss = (scales * (weights + 0.5 * torch.randn(20)).square()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        session.report(loss)
    return float((scales * weights.detach().square()).sum())


def assemble(folder: Path, workers: int) -> None:
    """Wait until all workers' processes have come here: how long they take to begin is not what is measured."""
    folder.joinpath(str(os.getpid())).touch()
    while len(list(folder.iterdir())) < workers:
        time.sleep(0.02)


@dataclass
class Clock:
    """A callback: when did which events come."""

    times: list[tuple[str, float]] = field(default_factory=list)

    def on_event(self, record: Record, event: Any) -> None:
        self.times.append((type(event).__name__, time.perf_counter()))

    def on_progress(self, *args: Any) -> None:
        pass

    def first(self, kind: str) -> float:
        return next(seconds for name, seconds in self.times if name == kind)

    def last(self, kind: str) -> float:
        return max(seconds for name, seconds in self.times if name == kind)


@contextmanager
def ray_with_room(**settings: Any) -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", **settings)
    try:
        yield
    finally:
        ray.shutdown()


def tuned(clock: Clock, workers: int, **settings: Any) -> autolrs.Study:
    """A run of `simulated` in a folder of its own."""
    with TemporaryDirectory() as folder, TemporaryDirectory() as meet:
        given = {"steps": STEPS, "executor": "ray", "workers": workers, "resources_per_worker": {"CPU": CPUS}}
        return autolrs.tune(
            simulated,
            storage=folder,
            space="sgd",
            callbacks=[clock],
            args={"seconds": STEP_SECONDS, "meet": meet, "workers": workers},
            **{**given, **settings},
        )


def scaling(deterministic: bool) -> str:
    """A table of wall-clock and search efficiency by number of workers."""
    lines = [
        "| workers | probes | search [s] | bound, ceil(P/W) probes [s] | efficiency | run [s] | of plain training |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    with ray_with_room():
        clock = Clock()
        tuned(clock, 1, search_budget=0)
        plain = clock.last("Finished") - clock.first("Opened")
        lines.append(f"| 1, no search | 0 | | | | {plain:.1f} | 1 |")
        for workers in WORKERS if deterministic else WORKERS[1:]:
            clock = Clock()
            study = tuned(clock, workers, deterministic=deterministic)
            (stage,) = study.stages
            search = clock.first("Decided") - clock.first("Opened")
            whole = clock.last("Finished") - clock.first("Opened")
            bound = ideal([trial.steps for trial in stage.trials], workers) * STEP_SECONDS
            lines.append(
                f"| {workers} | {len(stage.trials)} | {search:.2f} | {bound:.2f} | {bound / search:.2f} "
                f"| {whole:.1f} | {whole / plain:.3f} |"
            )
    return "\n".join(lines)


def ideal(steps: Sequence[int], workers: int) -> int:
    """Steps one after the other if batches of `workers` probes cost what their longest one does."""
    return sum(max(steps[i : i + workers]) for i in range(0, len(steps), workers))


# What batches cost in quality


def batching(problems: int = 60) -> str:
    """Final loss of the run that the search chose, on closed-form problems, by number of workers."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # where the trainer without torch, and its crew, are
    from synthetic import Problem, settings_of
    from test_in_flight import Crew

    from autolrs.strategies.horizon import Horizon

    lines = ["| workers | loss above that of one worker, median | mean | worst |", "| --- | --- | --- | --- |"]
    losses = {}
    for workers in WORKERS:
        found = []
        for seed in range(problems):
            crew = Crew(settings_of(steps=1000, budget=0.3, seed=seed), Horizon(), workers, min, batch=workers)
            crew.problem = Problem(rate_unit=10 ** random.Random(seed).uniform(-2, 2))  # where the best rate lies
            found.append(crew.run().final_loss or math.inf)
        losses[workers] = found
    for workers in WORKERS[1:]:
        excess = [a / b - 1 for a, b in zip(losses[workers], losses[1], strict=True)]
        lines.append(
            f"| {workers} | {statistics.median(excess):+.2%} | {statistics.fmean(excess):+.2%} | {max(excess):+.2%} |"
        )
    return "\n".join(lines)


# Overheads


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


def overheads() -> str:
    lines = ["| a probe of one step | whole [ms] | overhead [ms] | goal |", "| --- | --- | --- | --- |"]
    with ray_with_room():

        def row(what: str, measured: PerProbe, goal: str = "") -> None:
            lines.append(f"| {what} | {measured.whole * 1e3:.1f} | {measured.overhead * 1e3:.1f} | {goal} |")

        row("1 MB of state, serial run", per_probe(1, 200, "serial"))
        disk = per_probe(1, 500, "ray")
        row("1 MB, one worker of Ray", disk, "5 ms")
        row("1 MB, serial run, study in memory", per_probe(1, 200, "serial", IN_MEMORY))
        memory = per_probe(1, 500, "ray", IN_MEMORY)
        row("1 MB, one worker of Ray, study in memory", memory)
        rivals = {
            "nothing stored": tune_per_probe(1, 200),
            "all stored after each of 30 trials": tune_per_probe(1, 30, record=True),
            "all stored after each of 100 trials": tune_per_probe(1, 100, record=True),
        }
        for how, theirs in rivals.items():
            row(f"1 MB, trial of Ray Tune, {how}", theirs)
        row("1 MB, the same, and the state that each ends at", tune_per_probe(1, 100, record=True, states=True))
        row("100 MB, serial run", per_probe(100, 40, "serial"))
        row("100 MB, one worker of Ray", per_probe(100, 40, "ray"), "30 ms")
        lines += ["", "| what | measured | goal |", "| --- | --- | --- |"]
        for how, theirs in rivals.items():
            for where, ours in (("on disk", disk), ("in memory", memory)):
                what = f"Ray Tune, {how}, by one worker with the study {where}"
                lines.append(f"| {what} | {theirs.overhead / ours.overhead:.1f} x | 5 x |")
        lines.append(f"| the driver's memory over 400 probes | {disk.growth:+.1f} MB | 20 MB |")
        lines.append(f"| object store, 100 MB of state, at most, sampled | {stored(100):.2f} x | 2.2 x |")
        lines.append(f"| 100 MB to 4 workers of one machine, restored | {broadcast(100, 4) * 1e3:.0f} ms | 150 ms |")
    return "\n".join(lines)


SECTIONS: Final[dict[str, tuple[str, str, Callable[[], str]]]] = {
    "scaling": (
        "By number of workers",
        f"`horizon`, {STEPS:,} steps of {STEP_SECONDS * 1e3:.0f} ms each (asleep), at its own budget of 0.3, in "
        "batches\n(`deterministic=True`). How long processes take to begin is not counted. The bound lets a batch cost "
        "what its longest\nprobe does.",
        lambda: scaling(deterministic=True),
    ),
    "asynchronous": (
        "The same without waiting for each other",
        "`deterministic=False`.",
        lambda: scaling(deterministic=False),
    ),
    "batching": (
        "What proposing in batches costs",
        "The final loss of the run that `horizon` chose on 60 closed-form problems whose best rates lie up to four "
        "decades apart.",
        batching,
    ),
    "idle": (
        "What idle workers could do while the kept run trains",
        "`horizon` on four workers, 60 closed-form problems; and, for racing, searches on recorded miniatures whose "
        "candidates'\nwhole runs were recorded too (`benchmarks/results/lengths.csv`, nine tasks).",
        idle.table,
    ),
    "overheads": (
        "Overheads",
        "Probes of one step with a constant for a rate, so that proposing costs nothing, as in Ray Tune's random "
        "search.\nOverhead is what a probe takes beyond restoring the state and making the step, both measured in the "
        "same process\nwithout anything around them. What is left is ours: snapshot, events stored before and after, "
        "Optuna's trials, one\nexchange with the driver. A trial of Ray Tune restores the same state and makes the "
        "same step, in one actor that is\nused again.\n\nWhat came out of a probe is stored before the next one "
        "begins, so that a kill at any moment loses nothing that\nended, and once a probe the disk is waited for, so "
        "that a power cut does not either. Ray Tune stores what came out\nevery ten seconds or more seldom unless told "
        "to after each trial (`TUNE_GLOBAL_CHECKPOINT_S=0`), and never waits for a\ndisk. So like is compared with "
        "like where it stores after each and our study lies in memory: both outlive a kill, neither\na power cut. "
        "It then writes all trials each time, so that its cost grows with their number. Where it stores nothing it "
        "does\nless than we do; who writes results down in a callback of their own, and sees to going on from them, "
        "pays hardly more\nthan that. The state that a trial ends at is needed only where it is to be trained on. Ours "
        "with Ray are of 500 probes.\n\nOn a machine with other work these times are uncertain: over six runs the "
        "ratios went from 1.2 to 2.6 where Ray Tune\nstores nothing, and from 2.3 to 7.1 where it stores all.",
        overheads,
    ),
}
"""By name: title, what it is, what makes its table."""


def write(names: Sequence[str] = ()) -> None:
    """Measure those sections again, or all; the others stay as they are."""
    seed_everything(0)
    text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    parts = ["# Several workers: what they bring and cost\n\nWritten by `python -m benchmarks workers`"]
    parts[0] += f" (torch {torch.__version__}, {os.cpu_count()} cores shared with other\nwork). "
    parts[0] += "Edit nothing here by hand.\n"
    for name, (title, what, table) in SECTIONS.items():
        old = text.partition(f"## {title}\n")[2].partition("\n## ")[0].strip()
        body = f"{what}\n\n{table()}" if name in names or not names else old
        if body:
            parts.append(f"## {title}\n\n{body}\n")
    DOCUMENT.write_text("\n".join(parts), encoding="utf-8")
