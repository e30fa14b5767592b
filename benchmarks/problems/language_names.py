"""Which names are of the same language, one in English, one in Ukrainian, Hindi or Tamil: two towers of convolutions,
learned by contrast, on the languages of ISO 639-3 (package pycountry), NAdam.

References:
    Radford, Kim, Hallacy et al.: "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from __future__ import annotations

import gettext
import json
import math
from functools import cache
from importlib.metadata import distribution

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 1000
LENGTH = 20  # of the longest names
TRANSLATIONS = ["uk", "hi", "ta"]
BATCH = 64  # pairs that are told apart
CHARACTERS = 216


@cache
def data() -> tuple[TensorDataset, ...]:
    """Names in English and in another language (n, 20), characters from 1 on, 0 behind the end; the names of 1,000
    languages to validate and to test."""
    folder = distribution("pycountry").locate_file("pycountry")
    with open(f"{folder}/databases/iso639-3.json", encoding="utf-8") as table:
        names = [each["name"] for each in json.load(table)["639-3"]]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    parts: list[list[tuple[str, str]]] = [[], [], []]
    for code in TRANSLATIONS:
        with open(f"{folder}/locales/{code}/LC_MESSAGES/iso639-3.mo", "rb") as file:
            translate = gettext.GNUTranslations(file).gettext
        for place, number in enumerate(order):
            name, other = names[number], translate(names[number])
            if name != other and max(len(name), len(other)) <= LENGTH:
                parts[(place >= 1_000) + (place >= 2_000)].append((name.lower(), other.lower()))
    characters = sorted({character for part in parts for pair in part for character in "".join(pair)})
    codes = {character: 1 + code for code, character in enumerate(characters)}

    def rows(texts: tuple[str, ...]) -> Tensor:
        return torch.tensor([[codes[each] for each in text] + [0] * (LENGTH - len(text)) for text in texts])

    validation, test, training = (TensorDataset(*map(rows, zip(*part, strict=True))) for part in parts)
    return training, validation, test


class Tower(nn.Module):
    """Two convolutions; the largest of each channel; a direction."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, width, padding_idx=0)
        self.near, self.far = nn.Conv1d(width, width, 3, padding=1), nn.Conv1d(width, 2 * width, 5, padding=2)
        self.head = nn.Linear(2 * width, width)

    def forward(self, names: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.near(self.characters(names).mT))
        return nn.functional.normalize(self.head(nn.functional.gelu(self.far(hidden)).amax(2)), dim=1)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.english, self.other = Tower(), Tower()
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, english: Tensor, other: Tensor) -> Tensor:
        """Cross-entropy of each name's partner, both ways."""
        logits = self.scale.exp() * self.english(english) @ self.other(other).T
        partners = torch.arange(len(logits))
        return (nn.functional.cross_entropy(logits, partners) + nn.functional.cross_entropy(logits.T, partners)) / 2


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> float:
    """Mean cross-entropy among as many names as in a batch."""
    batches = DataLoader(dataset, batch_size=BATCH, drop_last=True)
    return sum(float(model(english, other)) for english, other in batches) / len(batches)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.NAdam(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = Towers()
    nadam = optimizer(model)
    session.track(model=model, optimizer=nadam)
    session.validate(lambda: evaluate(model, validation))
    for english, other in session.batches(DataLoader(training, batch_size=BATCH, shuffle=True, drop_last=True)):
        loss = model(english, other)
        nadam.zero_grad()
        loss.backward()
        nadam.step()
        session.report(loss)
    return {"test_loss": evaluate(model, test)}
