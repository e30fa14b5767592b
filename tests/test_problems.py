"""The benchmark's own training tasks: fixed splits of enough size, and a loop that runs."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.plain import PlainSession, train
from benchmarks.problems import finetune_towns
from benchmarks.problems.molecules_graph import ATOMS, molecule
from benchmarks.tasks import TASKS

PROBLEMS = (
    *("stress_lstm", "finetune_towns", "phonemes_transformer"),
    *("flights_embeddings", "photo_field", "digits_vae"),
    *("stereo_matching", "few_computers", "word_ends", "molecules_graph"),
    *("folk_tunes", "relief_unet", "movie_genres", "language_names"),
)
"""Those whose data no other test looks at."""

FEW = "few_computers"
"""Overfits, as it has few examples to train on; many to validate and to test."""


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_task_trains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_towns, "pretrained", dict)  # seconds
    task = TASKS[name]
    training, validation, test = task.source.data()
    assert len(training) == 300 if name == FEW else len(training) > len(validation)
    assert min(len(validation), len(test)) >= 1000
    assert all(tensor.dtype in (torch.float32, torch.int64, torch.uint8) for tensor in training.tensors)
    losses = []
    for steps in (1, 60 if name == "stereo_matching" else 20):  # its averages of batch normalisation take longer
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


@pytest.mark.parametrize(
    ("smiles", "elements", "bonds"),
    [
        ("N#CC(=O)[O-]", [2, 1, 1, 3, 3], {(0, 1): 3, (1, 2): 1, (2, 3): 2, (2, 4): 1}),
        ("C1CC=1Cl", [1, 1, 1, 8], {(0, 1): 1, (1, 2): 1, (0, 2): 2, (2, 3): 1}),
        ("F/C=C\\[C@@H](Br)I", [4, 1, 1, 1, 9, 10], {(0, 1): 1, (1, 2): 2, (2, 3): 1, (3, 4): 1, (3, 5): 1}),
    ],
)
def test_a_molecule_is_read(smiles: str, elements: list[int], bonds: dict[tuple[int, int], int]) -> None:
    graph = molecule(smiles)
    assert graph is not None
    assert graph.diagonal().tolist() == elements + [0] * (ATOMS - len(elements))
    assert torch.equal(graph, graph.T)
    found = graph.triu(1).nonzero().tolist()
    assert {(first, second): graph[first, second].item() for first, second in found} == bonds


@pytest.mark.parametrize("smiles", ["CC(=O)[O-].[Na+]", "C[Hg]", "C" * (ATOMS + 1)])
def test_a_molecule_of_other_elements_or_parts_or_size_is_not(smiles: str) -> None:
    assert molecule(smiles) is None
