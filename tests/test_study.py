"""The study: a reader whose every number can be traced to the record."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from example_record import SEARCHES, SETTINGS, STEPS, example_events, example_record, loss

from autolrs.checkpoints import CheckpointStore
from autolrs.errors import CheckpointError, SettingError, StudyNotFoundError
from autolrs.records import Forecast, Record, Settings
from autolrs.space import SearchSpace
from autolrs.storage import StudyStore
from autolrs.study import PROBE_COLUMNS, Cost, Study, came_true, load_study, probe_rows


def study(record=None, directory=None, **kwargs):
    return Study(record or example_record(), name="demo", storage="journal", directory=directory, **kwargs)


def net(width=3):
    torch.manual_seed(width)
    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width))


def checkpoint(path, **modules):
    objects = {
        name: {"kind": "module", "tensors": {**dict(m.named_parameters()), **dict(m.named_buffers())}}
        for name, m in modules.items()
    }
    objects["optimizer"] = {"kind": "optimizer"}
    CheckpointStore(path).save(STEPS, {"objects": objects}, tag="final")


# Reading the record


def test_cost_is_counted_as_the_events_say():
    cost = study().cost
    probed = sum({9e-2: 24, 3e-2: 48}.get(rate, length) for _, rates, length, _, _ in SEARCHES for rate in rates)
    assert cost == Cost(STEPS, probed, 64, 0, 30, 1 + 4 + 1 + 3 + 1, 83.5)
    assert cost.search_cost == (probed - 64) / STEPS


def test_search_cost_counts_discarded_steps_and_starts_at_zero():
    assert Cost(100, 30, 10, 5, 99, 0, 0.0).search_cost == 0.25
    assert Cost(0, 30, 0, 0, 0, 0, 0.0).search_cost == 0.0


def test_the_parts_are_those_of_the_record():
    record = example_record()
    one = study(record, result={"accuracy": 0.9}, environment={"torch": "2"})
    assert (one.name, one.steps, one.result, one.environment) == ("demo", STEPS, {"accuracy": 0.9}, {"torch": "2"})
    assert one.stages == record.stages
    assert one.schedule == record.schedule
    assert one.final_loss == loss(STEPS, 2.5e-3)
    assert one.finished
    assert "2000/2000" in repr(one)


def test_no_schedule_before_the_first_decision():
    record = Record(Settings(10, 5, 0, SearchSpace("s", (0.1, 1.0)), "horizon"))
    with pytest.raises(SettingError, match="'demo' has no schedule yet"):
        _ = study(record).schedule


def test_exact_unless_rolled_back_or_unfinished():
    assert study().exact
    assert study().exact_reason == ""
    half = study(example_record(finished=False))
    assert not half.exact
    rolled = replace(example_record(), roll_backs=("loss nan at step 1990, back to 1800, rate x 0.5",))
    assert not study(rolled).exact
    assert "rolled back: loss nan at step 1990" in study(rolled).exact_reason


def test_probe_rows_hold_every_trial():
    record = example_record()
    rows = probe_rows(record)
    assert [tuple(row) for row in rows] == [PROBE_COLUMNS] * 9
    assert [(row["stage"], row["rate"]) for row in rows] == [
        (stage, rate) for stage, search in enumerate(SEARCHES) for rate in search[1]
    ]
    assert [row["won"] for row in rows].count(True) == 2
    assert rows[4]["state"] == "diverged"
    assert math.isnan(rows[4]["objective"])
    assert math.isnan(rows[4]["forecast_mean"])
    assert rows[6]["forecast_step"] == STEPS


def test_the_dataframe_is_the_rows():
    frame = study().trials_dataframe()
    assert tuple(frame.columns) == PROBE_COLUMNS
    found, expected = frame.to_dict("records")[3], probe_rows(example_record())[3]
    assert math.isnan(found.pop("momentum"))  # the optimizer's own
    assert math.isnan(expected.pop("momentum"))
    assert found == expected
    empty = study(Record(Settings(10, 5, 0, SearchSpace("s", (0.1, 1.0)), "horizon"))).trials_dataframe()
    assert tuple(empty.columns) == PROBE_COLUMNS


def with_forecast(record, at, validates=True):
    stage = record.stages[0]
    trials = tuple(replace(trial, forecast=Forecast(at, 1.0, 0.1)) for trial in stage.trials)
    return replace(record, validates=validates, stages=(replace(stage, trials=trials), *record.stages[1:]))


def test_what_came_true_is_the_kept_runs_loss_at_the_forecasts_step():
    record = example_record()
    winner, loser = record.stages[0].trials[3], record.stages[0].trials[0]
    assert came_true(record, winner) == record.final_loss
    assert came_true(record, loser) is None
    at_stage = with_forecast(record, 1000)
    assert came_true(at_stage, at_stage.stages[0].trials[3]) == record.stages[1].start_loss
    training = with_forecast(record, 500, validates=False)
    assert came_true(training, training.stages[0].trials[3]) == pytest.approx(loss(500, 2.5e-3), abs=0.05)
    unmeasured = with_forecast(record, 500)
    assert came_true(unmeasured, unmeasured.stages[0].trials[3]) is None


def test_the_future_has_not_come_true():
    record = example_record(finished=False)
    assert came_true(record, record.stages[0].trials[3]) is None
    early = with_forecast(record, record.kept_steps + 10, validates=False)
    assert came_true(early, early.stages[0].trials[3]) is None


# Weights


def test_load_into_copies_weights_and_buffers_in_place(tmp_path):
    trained, fresh = net(), net()
    with torch.no_grad():
        for tensor in [*trained.parameters(), *trained.buffers()]:
            tensor.add_(1)
    checkpoint(tmp_path, model=trained)
    before = dict(fresh.named_parameters())
    study(directory=tmp_path).load_into(fresh)
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), trained.state_dict().values(), strict=True)
    )
    assert all(fresh.get_parameter(name) is tensor for name, tensor in before.items())


def test_load_into_finds_the_module_that_fits(tmp_path):
    checkpoint(tmp_path, teacher=net(5), student=net(3))
    model = net(3)
    with torch.no_grad():
        model[0].weight.zero_()
    study(directory=tmp_path).load_into(model)
    assert torch.equal(model[0].weight, net(3)[0].weight)


def test_load_into_a_compiled_model_and_back(tmp_path):
    compiled = torch.nn.Module()
    compiled._orig_mod = net(3)  # what torch.compile wraps a module in
    checkpoint(tmp_path, model=compiled)
    plain = torch.nn.Sequential(*net(3))
    study(directory=tmp_path).load_into(plain)
    study(directory=tmp_path).load_into(compiled)


def test_load_into_another_model_names_the_differences(tmp_path):
    checkpoint(tmp_path, model=net(3))
    with pytest.raises(CheckpointError, match=r"other shape: 0.weight is \(3, 2\) in the checkpoint, \(5, 2\) in the"):
        study(directory=tmp_path).load_into(net(5))
    with pytest.raises(CheckpointError, match=r"'model': not in the checkpoint: weight, not in the model: 0.bias, 0.w"):
        study(directory=tmp_path).load_into(torch.nn.Linear(2, 3, bias=False))


def test_a_mismatch_leaves_the_model_as_it_was(tmp_path):
    checkpoint(tmp_path, model=net(3))
    model = net(5)
    before = model[0].weight.clone()
    with pytest.raises(CheckpointError):
        study(directory=tmp_path).load_into(model)
    assert torch.equal(model[0].weight, before)


def test_checkpoint_is_a_path_or_says_what_exists(tmp_path):
    checkpoint(tmp_path, model=net())
    assert study(directory=tmp_path).checkpoint("final").is_file()
    with pytest.raises(CheckpointError, match=r"step-00000100.*final\.safetensors"):
        study(directory=tmp_path).checkpoint(100)


# On disk


@pytest.fixture
def stored(tmp_path):
    """The example run in a folder, with what it returned."""
    with StudyStore.open("demo", storage=str(tmp_path)) as store:
        store.create_settings(SETTINGS, {"torch": "2"})
        for event in example_events():
            store.append(event)
        store.save_result({"accuracy": 0.9})
    return str(tmp_path)


def test_a_loaded_study_is_the_one_that_ran(stored):
    loaded = load_study("demo", stored)
    assert repr(loaded.record) == repr(example_record())  # repr: a NaN is not equal to itself
    assert (loaded.name, loaded.storage) == ("demo", stored)
    assert (loaded.result, loaded.environment) == ({"accuracy": 0.9}, {"torch": "2"})
    assert loaded.cost == study().cost


def test_loading_takes_no_lock_and_writes_nothing(stored, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with StudyStore.open("demo", storage=stored):
        assert load_study("demo", stored).finished
    assert {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "lock"
    }.items() <= before.items()


def test_a_result_that_is_not_json_is_its_repr(tmp_path):
    with StudyStore.open("demo", storage=str(tmp_path)) as store:
        store.create_settings(SETTINGS, {})
        store.save_result({1, 2})
    assert load_study("demo", str(tmp_path)).result == "{1, 2}"


def test_a_missing_study_lists_those_that_exist(stored):
    with pytest.raises(StudyNotFoundError, match=r"no study 'dmeo' in .*; studies there: demo"):
        load_study("dmeo", stored)


@pytest.mark.parametrize("sql", [False, True])
def test_optuna_sees_the_probes(tmp_path, sql):
    storage = f"sqlite:///{tmp_path}/studies.db" if sql else str(tmp_path)
    with StudyStore.open("demo", storage=storage, checkpoint_dir=tmp_path / "checkpoints") as store:
        store.create_settings(SETTINGS, {})
        for event in example_events():
            store.append(event)
    trials = load_study("demo", storage).optuna_study.trials
    assert [trial.params["rate"] for trial in trials] == [rate for _, rates, *_ in SEARCHES for rate in rates]
    assert [trial.state.name for trial in trials].count("PRUNED") == 2
