"""Momentum of parameter groups: found, set, and the rate that goes with another one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autolrs.momentum import equivalent, momentum_of, set_momentum, sums_gradients


def groups(make, count=1, **settings):
    made = make([{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(count)], **settings)
    return made.param_groups


@pytest.mark.parametrize(
    ("made", "own", "sums"),
    [
        (groups(torch.optim.SGD, lr=0.1, momentum=0.9), 0.9, True),
        (groups(torch.optim.SGD, 2, lr=0.1, momentum=0.5, nesterov=True), 0.5, True),
        (groups(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.9), 0.9, False),
        (groups(torch.optim.SGD, lr=0.1), None, True),
        (groups(torch.optim.Adam), 0.9, False),
        (groups(torch.optim.AdamW, 3, betas=(0.95, 0.99)), 0.95, False),
        (groups(torch.optim.Adam, betas=(0.0, 0.999)), None, False),
        (groups(torch.optim.Adagrad), None, True),
        (groups(torch.optim.SGD, lr=0.1, momentum=0.9) + groups(torch.optim.SGD, lr=0.1, momentum=0.8), None, True),
    ],
)
def test_it_is_found_where_all_groups_have_the_same(made, own, sums):
    assert momentum_of(made) == own
    assert sums_gradients(made) is sums


def test_it_is_set_in_all_groups_and_nothing_else_is():
    sgd, adam = groups(torch.optim.SGD, 2, lr=0.1, momentum=0.9), groups(torch.optim.Adam, 2)
    for made in (sgd, adam):
        before = [{key: value for key, value in group.items() if key not in ("momentum", "betas")} for group in made]
        set_momentum(made, 0.7)
        assert momentum_of(made) == 0.7
        assert before == [{k: v for k, v in group.items() if k not in ("momentum", "betas")} for group in made]
    assert adam[1]["betas"] == (0.7, 0.999)


@given(st.floats(0.5, 0.95), st.floats(0.5, 0.95))
def test_the_equivalent_rate_leaves_a_long_way_in_one_direction_as_it_was(own, momentum):
    """SGD under a constant gradient: after many steps each moves rate / (1 - momentum)."""

    def last_move(rate, m):
        weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        sgd = torch.optim.SGD([weight], lr=rate, momentum=m)
        for _ in range(400):
            before = weight.item()
            weight.grad = torch.ones_like(weight)
            sgd.step()
        return before - weight.item()

    rate = equivalent(0.1, own, momentum, True)
    assert last_move(rate, momentum) == pytest.approx(last_move(0.1, own), rel=1e-6)
    assert equivalent(0.1, own, momentum, False) == 0.1
