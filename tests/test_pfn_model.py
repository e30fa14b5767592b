"""The curve model `pfn`: its laws, its weights, and that it leaves torch's global state alone."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from autolrs.curves import curve_model
from autolrs.curves.pfn import model
from autolrs.curves.pfn.model import PFN, SHA256, SHIPPED, network
from autolrs.curves.pfn.network import Network
from autolrs.errors import CheckpointError
from autolrs.protocols import CurveModel
from autolrs.records import Curve

MODEL = PFN()


def curve(losses, noise=0.0, offsets=None):
    n = len(losses)
    return Curve(
        tuple(offsets if offsets is not None else range(n)), tuple(map(float, losses)), (0.1,) * n, noise=noise
    )


def falling(n=50, seed=0, noise=0.02):
    rng = np.random.default_rng(seed)
    return curve((1 + np.exp(-0.05 * np.arange(n))) * np.exp(noise * rng.standard_normal(n)), noise)


def forecast(one, at):
    return MODEL.extrapolate([one], [at])[0]


def test_it_is_found_by_name():
    assert curve_model("pfn") == MODEL
    assert isinstance(MODEL, CurveModel)


# Accuracy


def test_a_noisy_exponential_is_continued_within_its_interval():
    inside = 0
    for seed in range(20):
        found = MODEL.extrapolate([falling(seed=seed)], [125])
        low, high = found.quantiles([0.05, 0.95])[0]
        inside += low <= 1 + math.exp(-0.05 * 125) <= high
    assert inside >= 14


def test_far_ahead_is_less_certain_than_near():
    stds = [forecast(falling(), at).std for at in (55, 100, 300)]
    assert stds[0] < stds[1] < stds[2]


def test_widening_moves_the_quantiles_and_not_the_median():
    narrow, wide = (PFN(widening=k).extrapolate([falling()], [125]).table[0] for k in (1.0, 1.3))
    middle = narrow[len(narrow) // 2]
    assert wide == pytest.approx(middle + 1.3 * (narrow - middle))


def test_what_is_seen_is_forecast_where_it_was_seen():
    found = forecast(falling(), 49)
    assert found.mean == pytest.approx(1 + math.exp(-0.05 * 49), rel=0.05)


def test_log_scores_of_draws_from_the_prior_beat_the_last_value():
    from autolrs.curves.pfn.prior import sample

    drawn = sample(np.random.default_rng(7), 200, 50, 2)
    curves = [
        curve(np.exp(y), e * math.exp(y[-1]), t) for t, y, e in zip(drawn.times, drawn.losses, drawn.noise, strict=True)
    ]
    found = MODEL.extrapolate(curves, drawn.at[:, 0])
    truth = drawn.truths[:, 0]
    errors, last = np.abs(np.log(found.median) - truth), np.abs(drawn.losses[:, -5:].mean(axis=1) - truth)
    assert np.median(errors) < 0.8 * np.median(last)
    level = found.cdf(np.exp(truth))
    assert 0.8 < ((level > 0.05) & (level < 0.95)).mean() < 0.97


# Laws

finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(finite, finite), max_size=80), finite, st.floats(0, allow_nan=False, allow_infinity=False))
def test_finite_input_never_raises_or_warns(points, at, noise):
    t, y = ([p[i] for p in points] for i in range(2))
    found = MODEL.extrapolate([curve(y, noise, t)], [at])
    if points:
        assert math.isfinite(found.mean[0])
        assert 0 <= found.std[0] < math.inf
    found.log_prob([1.0])


@settings(max_examples=100, deadline=None)
@given(st.lists(finite, min_size=8, max_size=70), st.floats(0, 1e12), st.floats(0, 10))
def test_finite_losses_on_a_common_grid_never_raise_or_warn(losses, at, noise):
    found = forecast(curve(losses, noise), at)
    assert math.isfinite(found.mean)
    assert 0 <= found.std < math.inf


@settings(max_examples=30, deadline=None)
@given(st.floats(-6, 6), st.integers(0, 1000), st.integers(8, 64), st.booleans())
def test_forecasts_scale_with_the_loss(decades, seed, n, negative):
    k = 10**decades
    one = falling(n, seed)
    losses = np.array(one.losses) - (1.5 if negative else 0.0)
    at = [2.5 * n]
    base, scaled = (MODEL.extrapolate([curve(s * losses, s * one.noise)], at) for s in (1.0, k))
    size = np.abs(losses).max()
    assert scaled.quantiles([0.05, 0.5, 0.95])[0] / k == pytest.approx(
        base.quantiles([0.05, 0.5, 0.95])[0], rel=1e-6, abs=1e-9 * size
    )


def test_the_log_forecast_keeps_its_place_to_a_millionth():
    for k in (1e-3, 20.0, 1e3):
        one = falling()
        scaled = curve(k * np.array(one.losses), k * one.noise)
        assert math.log(forecast(scaled, 200).mean / k) == pytest.approx(math.log(forecast(one, 200).mean), abs=1e-6)


@pytest.mark.parametrize("unit", [1e-3, 7.0, 1e6])
def test_forecasts_do_not_depend_on_the_unit_or_origin_of_time(unit):
    one = falling()
    moved = curve(one.losses, one.noise, 30 + unit * np.arange(50))
    assert forecast(moved, 30 + unit * 120).mean == pytest.approx(forecast(one, 120).mean, rel=1e-6)


def test_losses_that_are_not_positive_move_with_a_constant():
    losses = np.array(falling().losses) - 3.0
    one, moved = (forecast(curve(losses - shift, 0.02), 120) for shift in (0.0, 4.0))
    assert one.mean < losses[-1] + 0.05
    assert moved.mean == pytest.approx(one.mean - 4.0, abs=1e-5)


def test_one_forward_pass_is_one_by_one():
    curves = [falling(n, seed=n) for n in (3, 8, 9, 20, 50, 64)] + [curve([]), curve(-np.linspace(1, 2, 30))]
    at = [60.0 + 10 * i for i in range(len(curves))]
    together = MODEL.extrapolate(curves, at)
    for i, one in enumerate(curves):
        alone = MODEL.extrapolate([one], [at[i]])
        assert np.array_equal(together.table[i], alone.table[0], equal_nan=True)
    assert len(MODEL.extrapolate([], [])) == 0


@pytest.mark.parametrize("n", [2, 3, 4, 5, 17, 64])
def test_batches_of_any_size_are_one_by_one_to_the_last_bit(n):
    rng = np.random.default_rng(n)
    curves = [falling(int(bins), seed=i, noise=0.1**i) for i, bins in enumerate(rng.integers(8, 65, n))]
    at = rng.uniform(20.0, 500.0, n)
    together = MODEL.extrapolate(curves, at)
    alone = [MODEL.extrapolate([one], [t]).table[0] for one, t in zip(curves, at, strict=True)]
    assert np.array_equal(together.table, alone)


def test_thousands_of_raw_points_are_binned():
    n, rng = 5000, np.random.default_rng(0)
    losses = (1 + np.exp(-0.0005 * np.arange(n))) * np.exp(0.2 * rng.standard_normal(n))
    raw, binned = curve(losses), Curve.reduce(list(losses), [0.1] * n)
    assert forecast(raw, 15_000).mean == pytest.approx(forecast(binned, 15_000).mean, rel=0.05)


@pytest.mark.parametrize("n", [1, 3, 7])
def test_few_points_give_the_last_value_wide(n):
    found = forecast(curve(np.linspace(3, 2, n)), 100)
    assert found.mean == pytest.approx(np.linspace(3, 2, n)[-1])
    assert found.std > 0.3 * found.mean


def test_points_that_are_not_finite_are_ignored():
    one = falling(30)
    holes = np.array(one.losses)
    holes[[3, 17]] = math.nan, math.inf
    keep = np.isfinite(holes)
    bare = curve(holes[keep], one.noise, np.arange(30.0)[keep])
    assert forecast(curve(holes, one.noise), 100) == forecast(bare, 100)
    nothing = forecast(curve([math.nan] * 9), 100)
    assert math.isnan(nothing.mean)
    assert nothing.std == math.inf


def test_a_constant_curve_stays():
    found = forecast(curve([2.0] * 20), 100)
    assert found.mean == pytest.approx(2.0, rel=1e-3)


# Weights and global state


def test_the_shipped_weights_are_small_and_a_changed_byte_is_refused(tmp_path, monkeypatch):
    data = SHIPPED.read_bytes()
    assert len(data) <= 10_000_000
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    monkeypatch.setattr(model, "SHIPPED", bad)
    model._loaded.cache_clear()
    try:
        with pytest.raises(CheckpointError, match=SHA256):
            MODEL.extrapolate([falling()], [100])
        with pytest.raises(CheckpointError, match="cannot read the weights"):
            PFN(tmp_path / "none").extrapolate([falling()], [100])
    finally:
        model._loaded.cache_clear()


SMALL = {"width": 8, "layers": 1, "heads": 2, "hidden": 8, "bars": 10}


def stored(path, about=None, **changes):
    """A file of weights of a small network, with some `changes` of its tensors (None: left out); `path`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = Network(**SMALL)
    own.edges.copy_(torch.linspace(-1, 1, 11))
    found = {name: value.half() for name, value in own.state_dict().items()} | changes
    found = {name: value for name, value in found.items() if value is not None}
    path.write_bytes(save(found, {"about": json.dumps({"config": {"network": SMALL}})} if about is None else about))
    return path


def no_metadata(path):
    path.write_bytes(save({"head.bias": torch.zeros(10)}))


def of_network(**settings):
    return {"about": json.dumps({"config": {"network": SMALL | settings}})}


DAMAGED = {
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "folder": lambda path: path.mkdir(),
    "missing": lambda path: None,
    "no metadata": no_metadata,
    "no about": lambda path: stored(path, about={"other": "{}"}),
    "about is no JSON": lambda path: stored(path, about={"about": "config"}),
    "about is empty": lambda path: stored(path, about={"about": "{}"}),
    "about is a number": lambda path: stored(path, about={"about": "3"}),
    "config is a list": lambda path: stored(path, about={"about": '{"config": []}'}),
    "no width": lambda path: stored(path, about={"about": '{"config": {"network": {"layers": 1}}}'}),
    "another width": lambda path: stored(path, about=of_network(width=16)),
    "no heads": lambda path: stored(path, about=of_network(heads=0)),
    "a tensor too few": lambda path: stored(path, **{"head.bias": None}),
    "a tensor too many": lambda path: stored(path, more=torch.zeros(1)),
    "another shape": lambda path: stored(path, **{"head.bias": torch.zeros(11)}),
    "NaN": lambda path: stored(path, **{"head.bias": torch.full((10,), math.nan)}),
    "infinite": lambda path: stored(path, edges=torch.full((11,), math.inf)),
    "whole numbers": lambda path: stored(path, **{"head.bias": torch.zeros(10, dtype=torch.int32)}),
    "a checkpoint": lambda path: stored(path, about={"about": json.dumps({"config": {"network": SMALL}, "step": 3})}),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_weights_that_cannot_be_used_name_the_file_and_what_to_do(damage, tmp_path):
    path = tmp_path / "mine.safetensors"
    damage(path)
    with pytest.raises(
        CheckpointError, match=r"cannot read the weights .*mine\.safetensors.*`autolrs pfn train`"
    ) as one:
        PFN(path).extrapolate([falling()], [100])
    assert "\n" not in str(one.value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
@example(34, 1, False)  # the first brace of what the file says about itself
def test_a_damaged_byte_or_end_is_an_error_of_ours_or_a_finite_forecast(tmp_path, place, change, cut):
    path = stored(tmp_path / "mine.safetensors")
    data = bytearray(path.read_bytes())
    place %= len(data)
    if cut:
        del data[place:]
    else:
        data[place] ^= change
    path.write_bytes(data)
    try:
        found = PFN(path).extrapolate([falling()], [100])
    except CheckpointError:
        return
    assert math.isfinite(found.mean[0])


def test_weights_that_were_written_anew_are_read_anew(tmp_path):
    path = stored(tmp_path / "mine.safetensors")
    before = network(path)
    assert network(path) is before
    assert network(str(path)) is before
    one = PFN(path).extrapolate([falling()], [100])
    at = path.stat()
    other = stored(tmp_path / "other.safetensors", **{"head.bias": torch.linspace(-3, 3, 10).half()})
    assert other.stat().st_size == at.st_size
    os.utime(other, ns=(at.st_atime_ns, at.st_mtime_ns))  # as quick as a clock can tell
    other.replace(path)
    assert PFN(path).extrapolate([falling()], [100]).median[0] != one.median[0]


def test_the_shipped_weights_are_not_looked_for_again(monkeypatch):
    before = network()
    monkeypatch.setattr(model, "SHIPPED", model.SHIPPED.with_name("gone"))
    assert network() is before


def test_torch_stays_as_it_was():
    model._loaded.cache_clear()
    before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    MODEL.extrapolate([falling()], [100])
    after = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_the_users_settings_do_not_reach_the_forecast():
    usual = forecast(falling(), 100)
    model._loaded.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            other = forecast(falling(), 100)
    finally:
        torch.set_default_dtype(torch.float32)
        model._loaded.cache_clear()
    assert other == usual
