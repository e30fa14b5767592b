"""The network that reads curves: units, masks, bars."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autolrs.curves.pfn.forward import Forward
from autolrs.curves.pfn.network import PATCH, Network, bar_edges, normalise
from autolrs.curves.points import MOST

RNG = np.random.default_rng(0)
SMALL = {"width": 32, "layers": 2, "heads": 2, "hidden": 48, "bars": 40}


def made(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(**SMALL).eval()


def curves(n=3, bins=20):
    t = np.cumsum(RNG.uniform(0.5, 1.5, (n, bins)), axis=1)
    y = -np.log1p(t) + 0.02 * RNG.standard_normal((n, bins))
    return t, y, np.full(n, 0.02), t[:, -1:] * 3.0, np.ones((n, bins), dtype=bool), np.ones(n, dtype=bool)


def test_units_of_time_and_level_drop_out():
    t, y, noise, at, seen, log = curves()
    one = normalise(t, y, noise, at, seen, log)
    other = normalise(100 + 7 * t, y + 4.0, noise, 100 + 7 * at, seen, log)
    assert other.tokens == pytest.approx(one.tokens, abs=1e-5)
    assert other.queries == pytest.approx(one.queries, abs=1e-5)
    assert other.scale == pytest.approx(one.scale)
    assert other.level == pytest.approx(one.level + 4.0)


def test_linear_units_drop_out_too():
    t, y, noise, at, seen, log = curves()
    one = normalise(t, y, noise, at, seen, ~log)
    other = normalise(t, 5 * y - 3, 5 * noise, at, seen, ~log)
    assert other.tokens == pytest.approx(one.tokens, abs=1e-5)
    assert other.scale == pytest.approx(5 * one.scale)


def test_the_size_of_a_drop_in_log_loss_is_seen():
    t, y, noise, at, seen, log = curves()
    one, other = normalise(t, y, noise, at, seen, log), normalise(t, 5 * y, 5 * noise, at, seen, log)
    assert not np.allclose(one.tokens, other.tokens)


@pytest.mark.parametrize("bins", [9, 10])
def test_padding_changes_nothing(bins):
    t, y, noise, at, seen, log = curves(bins=bins)
    short = normalise(t, y, noise, at, seen, log)
    pad = ((0, 0), (0, 7))
    long = normalise(np.pad(t, pad), np.pad(y, pad, constant_values=9.0), noise, at, np.pad(seen, pad), log)
    assert long.scale == pytest.approx(short.scale)
    network = made()
    with torch.inference_mode():
        one = network(torch.from_numpy(short.tokens), torch.from_numpy(short.queries))
        mask = torch.from_numpy(long.seen)[:, None, None]
        other = network(torch.from_numpy(long.tokens), torch.from_numpy(long.queries), mask)
    assert other.numpy() == pytest.approx(one.numpy(), abs=1e-5)
    assert long.seen.sum(axis=1).tolist() == [-(-bins // PATCH)] * 3


@pytest.mark.parametrize("lengths", [(8,), (64,), (9, 30), (50, 8, 33, 64, 16)])
def test_the_quick_pass_answers_as_the_network_does(lengths):
    t, y, noise, at, _, log = curves(len(lengths), bins=MOST)
    of_each = normalise(t, y, noise, at, np.arange(MOST) < np.array(lengths)[:, None], log)
    network = made()
    with torch.inference_mode():
        mask = torch.from_numpy(of_each.seen)[:, None, None]
        logits = network(torch.from_numpy(of_each.tokens), torch.from_numpy(of_each.queries), mask)[:, 0]
    assert Forward(network).densities(of_each) == pytest.approx(logits.double().softmax(dim=-1).numpy(), rel=1e-4)


def test_queries_do_not_see_each_other():
    t, y, noise, at, seen, log = curves()
    two = normalise(t, y, noise, np.concatenate([at, 2 * at], axis=1), seen, log)
    network = made()
    with torch.inference_mode():
        tokens, queries = torch.from_numpy(two.tokens), torch.from_numpy(two.queries)
        together, alone = network(tokens, queries), network(tokens, queries[:, 1:])
    assert together[:, 1:].numpy() == pytest.approx(alone.numpy(), abs=1e-5)
    assert not np.allclose(together[:, 0], together[:, 1])


def test_bars_share_what_is_expected_and_are_symmetric():
    z = RNG.standard_t(3, 100_000)
    edges = bar_edges(z, 50)
    assert len(edges) == 51
    assert (np.diff(edges) > 0).all()
    assert edges == pytest.approx(-edges[::-1])
    counts = np.histogram(z, edges)[0]
    assert counts.sum() == len(z)
    assert counts / len(z) == pytest.approx(np.full(50, 0.02), abs=0.004)


def test_bars_have_a_width_where_all_is_equal():
    assert (np.diff(bar_edges(np.zeros(100), 20)) > 0).all()
