"""What a session costs beside the training itself -> docs/performance.md. Run: python -m benchmarks performance

Every figure is a ratio of, or a difference between, things measured in this one process or in pairs, so that a busy
or slow machine moves both.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from torch import nn

import autolrs
from autolrs.snapshot import track
from benchmarks.baselines import PlainSession
from benchmarks.tasks import TASKS, seed_all

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "performance.md"


def least(function: Callable[[], object], calls: int = 100, repeats: int = 50) -> float:
    """Seconds a call takes, undisturbed: the least mean over several batches of calls."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def step_cost(steps: int = 20_000, chunk: int = 160) -> tuple[float, float]:
    """Seconds of (`report`, the optimizer's hook, the next item) and of `tensor.detach()`, the least over chunks.

    Chunks are ten windows long, so that reading the losses every 16 steps is in it.
    """
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(torch.ones(4)).square().sum()
    ours = detach = float("inf")
    with (
        TemporaryDirectory() as folder,
        autolrs.attach(
            model=model, optimizer=optimizer, steps=steps, search_budget=0, storage=folder, checkpoint_every=steps
        ) as session,
    ):
        items = session.batches([0] * steps)
        next(items)
        (hook,) = optimizer._optimizer_step_pre_hooks.values()
        for _ in range(steps // chunk - 1):
            start = time.perf_counter()
            for _ in range(chunk):
                hook(optimizer, (), {})
                session.report(loss)
                next(items)
            middle = time.perf_counter()
            for _ in range(chunk):
                loss.detach()
            ours = min(ours, (middle - start) / chunk)
            detach = min(detach, (time.perf_counter() - middle) / chunk)
        while not session.done:
            session.report(loss)
            next(items, None)
    return ours, detach


def restore_cost(megabytes: int) -> tuple[float, float]:
    """Seconds of capturing and of restoring a state of that size (weights and Adam's two moments)."""
    width = 512
    layers = max(1, round(megabytes * 2**20 / 4 / 3 / (width * width)))
    if megabytes < 3:
        width, layers = int((megabytes * 2**20 / 4 / 3) ** 0.5), 1
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(width)).sum().backward()
    optimizer.step()
    tracked = [track("model", model), track("optimizer", optimizer)]
    trees = [each.capture() for each in tracked]
    calls = 1 if megabytes > 10 else 20

    def restore() -> None:
        for each, tree in zip(tracked, trees, strict=True):
            each.restore(tree)

    return least(lambda: [each.capture() for each in tracked], calls), least(restore, calls)


def overhead(pairs: int, steps: int) -> list[float]:
    """CPU time of `horizon` without a search over that of the plain loop, minus 1, on the char GPT; one a pair."""
    task = TASKS["char_gpt"]
    task.load()

    def tuned() -> float:
        with TemporaryDirectory() as folder:
            start = time.process_time()
            autolrs.tune(task.train, steps=steps, space=task.space, search_budget=0, storage=folder)
            return time.process_time() - start

    def plain(schedule: autolrs.Schedule) -> float:
        start = time.process_time()
        seed_all(0)
        session = PlainSession(schedule)
        task.train(session)
        return time.process_time() - start

    schedule = autolrs.Schedule.build("wsd", rate=task.default_rate, steps=steps, warmup=round(0.05 * steps))
    plain(schedule), tuned()  # warm up: imports, caches
    ratios = []
    for _ in range(pairs):
        if random.random() < 0.5:
            mine, theirs = tuned(), plain(schedule)
        else:
            theirs, mine = plain(schedule), tuned()
        ratios.append(mine / theirs - 1)
        print(f"pair {len(ratios)}: {ratios[-1]:+.2%}", flush=True)
    return ratios


def command_seconds(*words: str, repeats: int = 10) -> float:
    """Median seconds of a command."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def write(pairs: int = 20, steps: int = 300, path: Path = DOCUMENT) -> None:
    """Measure everything and write the document."""
    torch.set_num_threads(1)
    step, detach = step_cost()
    (small_capture, small), (large_capture, large) = restore_cost(1), restore_cost(100)
    start = command_seconds(sys.executable, "-c", "pass")
    imports = command_seconds(sys.executable, "-c", "import autolrs") - start
    assistance = command_seconds(str(Path(sys.executable).with_name("autolrs")), "--help")
    ratios = overhead(pairs, steps)
    mean, error = statistics.fmean(ratios), statistics.stdev(ratios) / len(ratios) ** 0.5
    rows = [
        ("a step: hook, `report`, next item", f"{step * 1e6:.2f} µs", f"{step / detach:.1f} x `detach()`", "5 x"),
        ("restore 1 MB of state", f"{small * 1e3:.2f} ms", f"capture {small_capture * 1e3:.2f} ms", "0.5 ms"),
        ("restore 100 MB of state", f"{large * 1e3:.1f} ms", f"capture {large_capture * 1e3:.1f} ms", "20 ms"),
        (
            f"CPU time of `search_budget=0` over the plain loop, char GPT, {steps} steps, {pairs} pairs",
            f"{mean:+.2%}",
            f"95 % interval {mean - 2.09 * error:+.2%} to {mean + 2.09 * error:+.2%}",
            "upper end 1 %",
        ),
        ("`autolrs --help`", f"{assistance:.2f} s", "median of 10", "0.4 s"),
        ("`import autolrs`", f"{imports:.3f} s", f"beyond Python's own {start:.3f} s", "0.15 s"),
    ]
    lines = [
        "# Performance",
        "",
        f"Written by `python -m benchmarks performance` (torch {torch.__version__}, one thread); edit nothing here by",
        "hand. Memory: at most three states (the stage's start, the best plateau, the live one) and the batches",
        "of one stage's probes, at most `replay_memory`. `python -m benchmarks.proposals` times the search's own",
        "computations.",
        "",
        "| what | measured | | goal |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
