"""The benchmark's own training tasks: fixed splits of enough size, and a loop that runs."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.plain import PlainSession, train
from benchmarks.problems import finetune_towns
from benchmarks.tasks import TASKS

PROBLEMS = (
    *("stress_lstm", "finetune_towns", "phonemes_transformer"),
    *("flights_embeddings", "photo_field", "digits_vae"),
)
"""Those whose data no other test looks at."""


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_task_trains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_towns, "pretrained", dict)  # seconds
    task = TASKS[name]
    training, validation, test = task.source.data()
    assert len(training) > len(validation) >= 1000
    assert len(test) >= 1000
    assert all(tensor.dtype in (torch.float32, torch.int64, torch.uint8) for tensor in training.tensors)
    losses = []
    for steps in (1, 20):
        session = PlainSession(steps, lambda step, rate=task.rates[3]: rate)  # type: ignore[misc]
        validation_loss, test_loss = train(task, session, 0)
        assert validation_loss > 0
        assert abs(math.log(test_loss / validation_loss)) < 0.2
        losses.append(validation_loss)
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_item_is_in_two_splits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the inputs. A few towns of two countries share a name, and a few flights to one place leave in one hour."""
    monkeypatch.setattr(finetune_towns, "pretrained", dict)
    training, validation, test = TASKS[name].source.data()
    splits = [{row.numpy().tobytes() for row in part.tensors[0]} for part in (training, validation, test)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert len(splits[first] & splits[second]) <= 0.05 * min(len(splits[first]), len(splits[second]))
