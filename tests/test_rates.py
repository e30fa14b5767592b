"""The rates of an optimizer's groups: what is set, how, and who else may."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

from autolrs.errors import RateOverriddenError, SessionError, SettingError
from autolrs.rates import Rates, rates_of

Make = Callable[..., torch.optim.Optimizer]


def optimizer_of(*lrs: float | Tensor, make: Make = torch.optim.SGD, **settings: Any) -> torch.optim.Optimizer:
    """An optimizer with a group for each rate, ready for a step."""
    optimizer = make([{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs], **settings)
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones(2)
    return optimizer


def rates(optimizer: torch.optim.Optimizer) -> Rates:
    return Rates(optimizer, rates_of(optimizer))


positive = st.floats(1e-8, 1e3)


@settings(deadline=None)
@given(st.lists(st.just(0.0), max_size=2), positive, st.lists(positive | st.just(0.0), max_size=3), positive)
def test_each_group_keeps_its_ratio_to_the_first_positive_one(
    zeros: list[float], reference: float, others: list[float], rate: float
) -> None:
    optimizer = optimizer_of(*zeros, reference, *others)
    own = rates_of(optimizer)
    tuned = rates(optimizer)
    assert tuned.own_rate == reference
    assert tuned.ratios == tuple(lr / reference for lr in own)
    tuned.apply(rate)
    assert rates_of(optimizer) == [rate * ratio for ratio in tuned.ratios]
    assert tuned.current == rate
    assert [lr == 0 for lr in rates_of(optimizer)] == [lr == 0 for lr in own]
    optimizer.step()


def test_the_rate_of_the_update_is_the_one_applied() -> None:
    optimizer = optimizer_of(0.1, 0.0, 0.3)
    tuned = rates(optimizer)
    for rate in (0.5, 0.25):
        tuned.apply(rate)
        optimizer.step()
    moved = [1 - group["params"][0][0].item() for group in optimizer.param_groups]
    assert moved == pytest.approx([0.75, 0.0, 2.25])


def test_ratios_are_those_given_though_a_scheduler_changed_the_rates_since() -> None:
    optimizer = optimizer_of(0.1, 0.2)
    own = rates_of(optimizer)
    optimizer.param_groups[0]["lr"] = 0.0
    tuned = Rates(optimizer, own)
    assert (tuned.own_rate, tuned.ratios) == (0.1, (1.0, 2.0))


@pytest.mark.parametrize("lrs", [[0.0], [0.0, 0.0], [math.nan], [0.1, math.inf], [0.1, -0.1]])
def test_rates_that_make_no_ratio_are_refused(lrs: list[float]) -> None:
    optimizer = optimizer_of(*[0.1 for _ in lrs])
    with pytest.raises(SettingError, match="finite, not negative, and one of them positive, but got") as caught:
        Rates(optimizer, lrs)
    assert str(lrs) in str(caught.value)


def test_a_rate_in_a_tensor_is_filled_in_place() -> None:
    first, second = torch.tensor(0.1), torch.tensor(0.05, dtype=torch.float64)
    optimizer = optimizer_of(first, second, 0.2, make=torch.optim.Adam)
    tuned = rates(optimizer)
    assert tuned.ratios == pytest.approx((1.0, 0.5, 2.0))
    for rate in (0.4, 0.3):
        tuned.apply(rate)
        assert optimizer.param_groups[0]["lr"] is first
        assert optimizer.param_groups[1]["lr"] is second
        assert (first.item(), second.item(), optimizer.param_groups[2]["lr"]) == pytest.approx(
            (rate, rate / 2, rate * 2)
        )
        optimizer.step()  # no complaint
        tuned.check()
    assert tuned.current == pytest.approx(0.3)


WRITES: dict[str, Callable[[torch.optim.Optimizer, int], object]] = {
    "assigned": lambda optimizer, g: optimizer.param_groups[g].update(lr=0.7),
    "in place": lambda optimizer, g: optimizer.param_groups[g]["lr"].fill_(0.7),
    "replaced": lambda optimizer, g: optimizer.param_groups[g].update(lr=optimizer.param_groups[g]["lr"].clone()),
}


@pytest.mark.parametrize(
    ("lrs", "group", "write"),
    [
        ((0.1,), 0, "assigned"),
        ((0.2, 0.1), 1, "assigned"),
        ((torch.tensor(0.1),), 0, "assigned"),
        ((torch.tensor(0.1),), 0, "in place"),
        ((torch.tensor(0.1),), 0, "replaced"),
        ((0.1, torch.tensor(0.1)), 1, "in place"),
        ((0.1, torch.tensor(0.1)), 0, "assigned"),
    ],
)
def test_another_hand_is_noticed_at_the_next_update(lrs: tuple[Any, ...], group: int, write: str) -> None:
    optimizer = optimizer_of(*lrs, make=torch.optim.Adam)
    tuned = rates(optimizer)
    tuned.apply(0.5)
    optimizer.step()
    before = [group["params"][0].tolist() for group in optimizer.param_groups]
    WRITES[write](optimizer, group)
    with pytest.raises(RateOverriddenError) as caught:
        optimizer.step()
    ours, found = 0.5 * tuned.ratios[group], 0.7 if write != "replaced" else 0.5
    message = str(caught.value)
    assert f"parameter group {group} has the learning rate" in message
    assert [float(word.strip(",:")) for word in message.split() if word[:2] == "0."] == pytest.approx([found, ours])
    assert "Remove the line that does, such as `scheduler.step()` or `group['lr'] = ...`" in message
    assert isinstance(caught.value, RuntimeError)
    assert [group["params"][0].tolist() for group in optimizer.param_groups] == before
    tuned.apply(0.5)
    optimizer.step()


def test_a_scheduler_that_steps_after_the_update_is_noticed_too() -> None:
    optimizer = optimizer_of(0.1)
    scheduler = ExponentialLR(optimizer, 0.5)
    tuned = rates(optimizer)
    tuned.apply(0.5)
    optimizer.step()
    tuned.check()
    scheduler.step()
    with pytest.raises(RateOverriddenError, match=r"group 0 has the learning rate 0\.25, but the session set 0\.5"):
        tuned.check()


def test_the_same_rate_written_again_is_no_offence() -> None:
    optimizer = optimizer_of(0.1)
    tuned = rates(optimizer)
    tuned.apply(0.5)
    optimizer.param_groups[0]["lr"] = float("0.5")
    optimizer.step()
    tuned.check()


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
def test_where_the_rate_is_not_ours_anything_goes(lr: float | Tensor) -> None:
    optimizer = optimizer_of(lr, make=torch.optim.Adam)
    tuned = rates(optimizer)
    optimizer.param_groups[0]["lr"] = 0.3
    optimizer.step()  # nothing applied yet
    tuned.apply(0.5)
    tuned.release()
    optimizer.param_groups[0]["lr"] = 0.7
    optimizer.step()
    tuned.check()
    tuned.apply(0.5)
    assert rates_of(optimizer) == [0.5]
    tuned.close()
    optimizer.param_groups[0]["lr"] = 0.7
    optimizer.step()
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("lrs", [(0.1,), (0.1, 0.2), (torch.tensor(0.1),)])
def test_groups_that_the_user_loads_are_the_ones_that_are_set(lrs: tuple[Any, ...]) -> None:
    optimizer = optimizer_of(*lrs, make=torch.optim.Adam)
    tuned = rates(optimizer)
    tuned.apply(0.5)
    optimizer.load_state_dict(optimizer.state_dict() | {"param_groups": [
        group | {"lr": 0.01} for group in optimizer.state_dict()["param_groups"]
    ]})  # fmt: skip
    with pytest.raises(RateOverriddenError, match=r"has the learning rate 0\.01"):
        optimizer.step()
    tuned.apply(0.5)
    optimizer.step()
    assert rates_of(optimizer) == pytest.approx([0.5 * ratio for ratio in tuned.ratios])


def test_groups_added_since_track_are_refused() -> None:
    optimizer = optimizer_of(0.1)
    own = rates_of(optimizer)
    tuned = rates(optimizer)
    tuned.apply(0.5)
    tuned.check()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    for use in (tuned.check, lambda: Rates(optimizer, own)):
        with pytest.raises(SessionError, match=r"has 2 parameter groups, but it had 1 when it was tracked: add all"):
            use()


# Compiled


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, as it traces its optimizers
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_a_compiled_step_with_its_rate_in_a_tensor_is_not_compiled_again(make: Make) -> None:
    torch._dynamo.reset()
    optimizer = optimizer_of(torch.tensor(0.1), torch.tensor(0.05), make=make)
    twin = optimizer_of(torch.tensor(0.1), torch.tensor(0.05), make=make)
    tuned = rates(optimizer)
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for number in range(8):
        rate = 0.5 / (number + 1)
        tuned.apply(rate)
        for group, ratio in zip(twin.param_groups, (1.0, 0.5), strict=True):
            group["lr"].fill_(rate * ratio)
        with torch._dynamo.config.patch(error_on_recompile=number > 2):  # the first steps make the optimizer's state
            step()
        twin.step()
        tuned.check()
    for ours, plain in zip(optimizer.param_groups, twin.param_groups, strict=True):
        torch.testing.assert_close(ours["params"][0], plain["params"][0])
    optimizer.param_groups[0]["lr"].fill_(0.7)
    with pytest.raises(RateOverriddenError, match="group 0"):
        step()
