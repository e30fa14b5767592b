"""Several probes at once, as the engine sees it: no Ray, no processes, workers that end and die in any order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import GridSampler, Problem, SyntheticTrainer, settings_of

from autolrs import engine
from autolrs.records import (
    Decide,
    Decided,
    Finish,
    Instruction,
    Issued,
    Open,
    Opened,
    Probe,
    Probed,
    Record,
    Started,
    Train,
    TrialState,
    Wait,
)
from autolrs.strategies.autolrs import AutoLRS
from autolrs.strategies.horizon import Horizon

LAW = settings(max_examples=40, deadline=None)
WORKERS = (1, 2, 3, 5)


class Crew(SyntheticTrainer):
    """Several workers at once. `pick` says who of those in flight is next to end, or to die if it is negative."""

    def __init__(self, given: Any, strategy: Any, workers: int, pick: Any, *, batch: int) -> None:
        super().__init__(given, _Masked(strategy, batch), Problem())
        self.workers, self.pick, self.batch = workers, pick, batch
        self.most = 0  # in flight at once

    def run(self) -> Record:
        self._tell(Started(self.own_rate, (1.0,), self.validates))
        flying: dict[int, Probe] = {}
        while True:
            instruction: Instruction = Wait()
            while len(flying) < self.workers and isinstance(instruction := self._next(flying), Probe):
                self._tell(Issued(instruction.stage, instruction.number, instruction.rate, instruction.length))
                flying[instruction.number] = instruction
            self.most = max(self.most, len(flying))
            if flying:
                chosen = self.pick(sorted(flying))
                probe = flying.pop(abs(chosen))
                if chosen >= 0:
                    self._probe(probe)
                continue
            match instruction:
                case Open():
                    self._open(instruction)
                case Train():
                    self._train(instruction)
                case Finish():
                    self._finish()
                    return self.record
                case other:
                    raise AssertionError(f"{other}, and nobody is at work")

    def _next(self, flying: dict[int, Probe]) -> Instruction:
        while isinstance(
            instruction := engine.decide(self.record, self.strategy, in_flight=flying.keys(), batch=self.batch), Decide
        ):
            self._tell(Decided(instruction))
        return instruction


class _Masked:
    """A strategy that prunes as workers do: by the record before the probe's batch."""

    def __init__(self, strategy: Any, batch: int) -> None:
        self._strategy, self._batch = strategy, batch
        self.name, self.decide, self.judge = strategy.name, strategy.decide, strategy.judge

    def prune(self, record: Record, probe: Probe, curve: Any) -> str:
        reason: str = self._strategy.prune(engine.before_batch(record, probe.number, self._batch), probe, curve)
        return reason


def strategies() -> st.SearchStrategy[Any]:
    sampler = GridSampler()
    return st.one_of(
        st.builds(
            Horizon,
            length=st.sampled_from((0.02, 0.05, 0.1)),
            adopt=st.booleans(),
            later=st.sampled_from(((), (0.3,))),
            sampler=st.just(sampler),
        ),
        st.builds(AutoLRS, tau=st.sampled_from((30, 60)), k=st.integers(1, 5), sampler=st.just(sampler)),
    )


def outcome(record: Record) -> Any:
    return record.stages, record.pieces, record.kept_steps, record.final_loss


@st.composite
def picks(draw: st.DrawFn) -> Any:
    """Any order of ends, with a few deaths among them."""
    data = draw(st.lists(st.tuples(st.integers(0, 10**6), st.booleans()), min_size=1, max_size=40))
    deaths = draw(st.integers(0, 5))
    turn = -1

    def pick(flying: list[int]) -> int:
        nonlocal turn, deaths
        turn += 1
        number, dies = data[turn % len(data)]
        chosen = flying[number % len(flying)]
        if dies and deaths and chosen:  # there is no minus nought
            deaths -= 1
            return -chosen
        return chosen

    return pick


@LAW
@given(strategies(), st.sampled_from(WORKERS), picks())
def test_in_batches_neither_the_order_of_ends_nor_deaths_change_the_run(strategy: Any, workers: int, pick: Any) -> None:
    given_settings = settings_of(steps=300, budget=0.5)
    expected = Crew(given_settings, strategy, workers, min, batch=workers).run()
    assert outcome(Crew(given_settings, strategy, workers, pick, batch=workers).run()) == outcome(expected)


@LAW
@given(strategies(), st.booleans())
def test_one_worker_is_the_serial_run(strategy: Any, batched: bool) -> None:
    given_settings = settings_of(steps=300, budget=0.5)
    crew = Crew(given_settings, strategy, 1, min, batch=1 if batched else 0)
    assert crew.run() == SyntheticTrainer(given_settings, strategy, Problem()).run()
    assert crew.most <= 1


@LAW
@given(strategies(), st.sampled_from(WORKERS), picks(), st.booleans())
def test_whatever_happens_the_budget_holds_and_the_run_ends(
    strategy: Any, workers: int, pick: Any, batched: bool
) -> None:
    record = Crew(settings_of(steps=300, budget=0.23), strategy, workers, pick, batch=workers if batched else 0).run()
    assert record.finished
    assert record.probe_steps <= 69
    assert all(trial.state is not TrialState.RUNNING for stage in record.stages for trial in stage.trials)


@pytest.mark.parametrize("batch", [0, 4])
def test_all_workers_are_given_a_probe_at_once(batch: int) -> None:
    crew = Crew(settings_of(steps=1000, budget=0.3), Horizon(sampler=GridSampler()), 4, min, batch=batch)
    crew.run()
    assert crew.most == 4


def test_a_batch_waits_for_its_last_probe_and_asynchronous_workers_do_not() -> None:
    strategy, record = Horizon(sampler=GridSampler()), Record(settings_of(steps=1000, budget=0.3))
    for event in (Started(0.1, (1.0,), False), Opened(0, 0), *(Issued(0, n, 0.01 * (n + 1), 60) for n in range(2))):
        record = engine.apply(record, event)
    first = Crew(record.settings, strategy, 1, min, batch=1)
    probed = next(event for event in first.run() and first.events if isinstance(event, Probed))
    record = engine.apply(record, replace(probed, number=0))
    assert engine.decide(record, strategy, in_flight={1}, batch=2) == Wait()
    asynchronous = engine.decide(record, strategy, in_flight={1})
    assert isinstance(asynchronous, Probe)
    assert asynchronous.number == 2


def test_a_strategy_for_one_worker_need_not_know_of_others() -> None:
    class Single(Horizon):
        def decide(self, record: Record) -> Instruction:  # type: ignore[override]
            return super().decide(record)

    assert Crew(settings_of(steps=300, budget=0.3), Single(sampler=GridSampler()), 1, min, batch=1).run().finished
