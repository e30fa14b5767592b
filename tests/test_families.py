"""The fixed schedules that ours is held against."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.families import FAMILIES, one_cycle, rex, step


@given(st.sampled_from(sorted(FAMILIES)), st.floats(1e-4, 1), st.integers(40, 400))
def test_each_has_a_rate_for_each_update_and_its_peak_is_the_one_given(name: str, rate: float, steps: int) -> None:
    rates = FAMILIES[name](rate, steps, steps // 20)
    assert len(rates) == steps
    assert max(rates) == pytest.approx(rate, rel=0.05)
    assert max(rates) <= rate * (1 + 1e-12)
    assert min(rates) > 0
    assert rates[0] < rate


@given(st.sampled_from(sorted(FAMILIES)), st.floats(0.1, 10))
def test_the_shape_does_not_depend_on_the_rate(name: str, factor: float) -> None:
    one, other = (FAMILIES[name](rate, 100, 5) for rate in (0.1, 0.1 * factor))
    assert other == pytest.approx([factor * rate for rate in one])


def test_rex_and_step_by_hand() -> None:
    assert rex(1.0, 4, 0) == pytest.approx([1.0, 0.75 / 0.875, 0.5 / 0.75, 0.25 / 0.625])
    assert step(1.0, 8, 0) == [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]


def test_one_cycle_is_pytorchs_up_to_where_its_turn_falls() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs, scheduler = [], OneCycleLR(optimizer, max_lr=0.5, total_steps=1000)
    for _ in range(1000):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert one_cycle(0.5, 1000, 50) == pytest.approx(theirs, abs=0.5 * 0.01)
