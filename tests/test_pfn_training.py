"""Training of the network: same seed, same weights, interrupted or not; and `autolrs pfn train`."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save
from typer.testing import CliRunner

from autolrs.cli import app
from autolrs.curves.pfn import training
from autolrs.curves.pfn.model import PFN
from autolrs.curves.pfn.prior import sample
from autolrs.curves.pfn.training import CHECKPOINT, WEIGHTS, Config, batch, train
from autolrs.errors import CheckpointError, SettingError
from autolrs.records import Curve

TINY = Config(
    seed=3,
    steps=6,
    batch=8,
    queries=3,
    rate=1e-3,
    warmup=2,
    device="cpu",
    network={"width": 16, "layers": 1, "heads": 2, "hidden": 16, "bars": 20},
)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(training, "_EDGE_BATCHES", 2)
    with torch.random.fork_rng(devices=[]):
        yield


def quiet(line):
    pass


def test_a_batch_depends_on_seed_and_step_only():
    (one, z), (same, y) = batch(TINY, 4), batch(TINY, 4)
    assert np.array_equal(one.tokens, same.tokens)
    assert np.array_equal(z, y)
    assert not np.array_equal(batch(TINY, 5)[1], z)
    assert not np.array_equal(batch(dataclasses.replace(TINY, seed=4), 4)[1], z)


def test_the_same_config_gives_the_same_file(tmp_path):
    config = dataclasses.replace(TINY, steps=3)
    one, same = (train(config, tmp_path / name, log=quiet) for name in "ab")
    assert one.read_bytes() == same.read_bytes()
    other = train(dataclasses.replace(config, seed=9), tmp_path / "c", log=quiet)
    assert other.read_bytes() != one.read_bytes()


def test_an_interrupted_run_ends_with_the_same_file(tmp_path, monkeypatch):
    whole = train(TINY, tmp_path / "whole", log=quiet)
    done, real = [], training.update

    def dies(*args):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args)

    monkeypatch.setattr(training, "update", dies)
    monkeypatch.setattr(training, "_SAVED", 0.0)  # a checkpoint before every step
    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path / "cut", log=quiet)
    monkeypatch.setattr(training, "update", real)
    lines = []
    resumed = train(TINY, tmp_path / "cut", resume=True, log=lines.append)
    assert resumed.read_bytes() == whole.read_bytes()


def test_time_that_is_up_leaves_a_checkpoint(tmp_path):
    lines = []
    assert train(TINY, tmp_path, minutes=0, log=lines.append) is None
    assert (tmp_path / CHECKPOINT).exists()
    assert not (tmp_path / WEIGHTS).exists()
    assert "--resume" in lines[-1]
    assert train(TINY, tmp_path, resume=True, log=quiet) == tmp_path / WEIGHTS


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    network = training.Network(**TINY.network)
    edges = training._edges(TINY, sample)
    network.edges.copy_(torch.from_numpy(edges))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    config = dataclasses.replace(TINY, batch=64)
    losses = [training.update(network, optimizer, *batch(config, step)) for step in range(120)]
    assert losses[0] == pytest.approx(np.log(20), abs=0.5), "bars share the prior equally"
    assert np.mean(losses[-20:]) < np.mean(losses[:5]) - 0.2


def test_the_rate_warms_up_and_falls_to_0():
    rates = [training._decay(step, TINY) for step in range(TINY.steps)]
    assert rates[0] == 0.5
    assert max(rates) == rates[1]
    assert all(a > b for a, b in pairwise(rates[1:]))
    assert training._decay(TINY.steps, TINY) == 0


def test_resuming_nothing_or_something_else_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="cannot resume"):
        train(TINY, tmp_path, resume=True, log=quiet)
    train(TINY, tmp_path, minutes=0, log=quiet)
    with pytest.raises(CheckpointError, match="another config"):
        train(dataclasses.replace(TINY, rate=1.0), tmp_path, resume=True, log=quiet)
    (tmp_path / CHECKPOINT).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot resume"):
        train(TINY, tmp_path, resume=True, log=quiet)


def rewritten(path, about=None, **changes):
    """The checkpoint at `path` with some tensors changed (None: left out), or with something else said about it."""
    with safe_open(path, "pt") as file:
        said = file.metadata()
    tensors = {name: value for name, value in (load_file(path) | changes).items() if value is not None}
    path.write_bytes(save(tensors, said if about is None else about))


BIAS = "network.head.bias"
MOMENT = "optimizer.0.exp_avg"
SPOILT = {
    "no metadata": lambda path: path.write_bytes(save(load_file(path))),
    "no JSON": lambda path: rewritten(path, {"about": "{"}),
    "nothing said": lambda path: rewritten(path, {"about": "{}"}),
    "no number of a step": lambda path: rewritten(
        path, {"about": json.dumps({"config": dataclasses.asdict(TINY), "step": "3"})}
    ),
    "steps past the end": lambda path: rewritten(
        path, {"about": json.dumps({"config": dataclasses.asdict(TINY), "step": 7})}
    ),
    "weights": lambda path: path.write_bytes(path.with_name(WEIGHTS).read_bytes()),
    "a tensor too few": lambda path: rewritten(path, **{BIAS: None}),
    "a tensor too many": lambda path: rewritten(path, more=torch.zeros(1)),
    "another shape": lambda path: rewritten(path, **{BIAS: torch.zeros(3)}),
    "NaN": lambda path: rewritten(path, **{BIAS: torch.full((20,), math.nan)}),
    "a moment too few": lambda path: rewritten(path, **{MOMENT: None}),
    "a moment of another shape": lambda path: rewritten(path, **{MOMENT: torch.zeros(3)}),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_checkpoint_that_cannot_be_used_says_so(spoil, tmp_path):
    train(TINY, tmp_path, log=quiet)
    spoil(tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match=r"cannot resume: .*checkpoint\.safetensors.*without --resume") as one:
        train(TINY, tmp_path, resume=True, log=quiet)
    assert "\n" not in str(one.value)


def test_a_finished_training_can_be_resumed_for_the_same_weights(tmp_path):
    whole = train(TINY, tmp_path, log=quiet).read_bytes()
    assert train(TINY, tmp_path, resume=True, log=quiet).read_bytes() == whole


@pytest.mark.parametrize("name", ["small.yaml", "large.yaml"])
def test_shipped_configs_are_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config.load(Path(name))
    assert config.steps > config.warmup
    training.Network(**config.network)


def test_bad_configs_name_the_file(tmp_path):
    with pytest.raises(SettingError, match=r"cannot read other\.yaml: .*'other\.yaml'$"):
        Config.load(Path("other.yaml"))
    path = tmp_path / "bad.yaml"
    with pytest.raises(SettingError, match=r"bad\.yaml"):
        Config.load(path)
    path.write_text("seed: 0\nseed: 1\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"bad\.yaml: `seed` stands in line 1 and again in line 2: keep one\.$"):
        Config.load(path)
    path.write_text("steps: [", encoding="utf-8")
    with pytest.raises(SettingError, match=r"bad\.yaml"):
        Config.load(path)
    path.write_text("steps: 5", encoding="utf-8")
    with pytest.raises(SettingError, match="the keys must be batch, device"):
        Config.load(path)

    path.write_bytes(b"steps: \xff")
    with pytest.raises(SettingError, match=r"bad\.yaml"):
        Config.load(path)


NETWORK = dict(TINY.network)
BAD = [
    *({"steps": value} for value in ("abc", 0, -3, 2.5, None, True, [5], "inf")),
    *({key: value} for key in ("warmup", "batch", "queries") for value in (0, -1, "x", math.nan)),
    *({"queries": 1}, {"seed": -1}, {"seed": 2**63}, {"device": "foo"}, {"device": 3}, {"device": ["cpu"]}),
    *({"rate": value} for value in (0, -1e-3, math.nan, math.inf, "fast", None, True)),
    *({"network": value} for value in (3, None, {"width": 32}, NETWORK | {"depth": 2}, {1: 2}, list(NETWORK))),
    *({"network": NETWORK | {key: value}} for key in NETWORK for value in (0, -2, 2.5, "wide", 10**30)),
    *({"network": NETWORK | change} for change in ({"width": 33}, {"bars": 21})),
]


@pytest.mark.parametrize("change", BAD, ids=str)
def test_a_bad_value_is_one_line_with_file_rule_and_value(change, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(dataclasses.asdict(TINY) | change), encoding="utf-8")
    with pytest.raises(SettingError, match=r"bad\.yaml: .*(must|hold).*, but got \(") as one:
        Config.load(path)
    assert "\n" not in str(one.value)


def test_numbers_in_texts_are_numbers(tmp_path):
    path = tmp_path / "texts.yaml"
    path.write_text(
        "{seed: 3, steps: 6e0, batch: '8', queries: 3.0, rate: 1e-3, warmup: 2, device: cpu, "
        "network: {width: 1.6e+1, layers: 1, heads: '2', hidden: 16, bars: 2e1}}",
        encoding="utf-8",
    )
    found = Config.load(path)
    assert found == TINY
    assert json.dumps(dataclasses.asdict(found)) == json.dumps(dataclasses.asdict(TINY))  # of the same types, too


def test_a_gpu_that_is_not_there_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match="`device` is cuda, but"):
        train(dataclasses.replace(TINY, device="cuda"), tmp_path / "out", log=quiet)
    assert not (tmp_path / "out").exists()


def test_the_command_says_in_one_line_what_is_wrong(tmp_path):
    config, file = tmp_path / "tiny.yaml", tmp_path / "file"
    file.touch()
    threads = torch.get_num_threads()
    try:
        for change, out in (({"warmup": 0}, "out"), ({"network": {"width": 3}}, "out"), ({}, "file"), ({}, "file/out")):
            config.write_text(yaml.safe_dump(dataclasses.asdict(TINY) | change), encoding="utf-8")
            arguments = ["pfn", "train", "--config", str(config), "--out", str(tmp_path / out)]
            wrong = CliRunner().invoke(app, arguments)
            assert wrong.exit_code == 1
            (line,) = wrong.output.splitlines()
            assert line.startswith("error: ")
            assert str(config if change else tmp_path / out) in line
    finally:
        torch.set_num_threads(threads)
    assert sorted(tmp_path.iterdir()) == [file, config]


def test_the_command_trains_and_its_weights_forecast(tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(dataclasses.asdict(TINY)), encoding="utf-8")
    arguments = ["pfn", "train", "--config", str(config), "--out", str(tmp_path / "out")]
    threads = torch.get_num_threads()
    try:
        stopped = CliRunner().invoke(app, [*arguments, "--minutes", "0"])
        done = CliRunner().invoke(app, [*arguments, "--resume"])
        wrong = CliRunner().invoke(app, ["pfn", "train", "--config", str(tmp_path / "none.yaml")])
    finally:
        torch.set_num_threads(threads)
    assert (stopped.exit_code, done.exit_code, wrong.exit_code) == (3, 0, 1)
    assert "none.yaml" in wrong.output
    weights = tmp_path / "out" / WEIGHTS
    assert done.output.splitlines()[-1] == str(weights)
    assert load_file(weights)["head.weight"].dtype == torch.float16
    curve = Curve(tuple(range(20)), tuple(np.linspace(2, 1, 20)), (0.1,) * 20, noise=0.01)
    assert 0 < PFN(weights).extrapolate([curve], [40])[0].mean < 10
