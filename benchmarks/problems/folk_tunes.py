"""What comes next in a folk song: a diagonal state space model, as long convolutions, reads the tunes of the Essen
collection in ABC notation (package music21) character by character, AdamW.

References:
    Gu, Gupta, Goel, Ré: "On the Parameterization and Initialization of Diagonal State Space Models", NeurIPS 2022.
    Schaffrath: "The Essen Folksong Collection", 1995 (the data, in ABC notation by Schlien).
"""

from __future__ import annotations

import math
import re
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 900
LENGTH, WIDTH, STATES = 64, 48, 8
CHARACTERS = 54


@cache
def data() -> tuple[TensorDataset, ...]:
    """Rows of 65 characters, of metre, unit, key and notes, from 0 to 53; 500 songs to validate and to test."""
    # Importing the package would import all its parsers.
    folder = Path(str(distribution("music21").locate_file("music21/corpus/essenFolksong")))
    songs: dict[str, None] = {}  # some are there twice
    for file in sorted(folder.glob("*.abc")):
        for song in re.split("^X:", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            lines = [line.strip() for line in song.splitlines()[1:]]
            songs["\n".join(line for line in lines if line and not re.match("[NORST]:", line)) + "\n\n"] = None
    tunes = list(songs)
    codes = {character: code for code, character in enumerate(sorted({*"".join(tunes)}))}
    order = torch.randperm(len(tunes), generator=torch.Generator().manual_seed(0)).tolist()
    splits = []
    for part in (order[1_000:], order[:500], order[500:1_000]):
        text = "".join(tunes[number] for number in part)
        characters = torch.tensor([codes[character] for character in text])
        splits.append(TensorDataset(characters.unfold(0, LENGTH + 1, LENGTH)))
    return tuple(splits)


class StateSpace(nn.Module):
    """Each channel is convolved with a sum of oscillations that die out; then a gate mixes the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.step = nn.Parameter(torch.empty(WIDTH, 1).uniform_(math.log(0.01), math.log(0.5)))
        self.decay = nn.Parameter(torch.full((WIDTH, STATES), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(STATES).repeat(WIDTH, 1))
        self.weight = nn.Parameter(torch.randn(WIDTH, STATES, 2))
        self.skip = nn.Parameter(torch.randn(WIDTH, 1))
        self.mix = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        channels = self.norm(inputs).mT
        times = self.step.exp() * torch.arange(LENGTH)  # (channels, LENGTH)
        angles = self.frequency[:, :, None] * times[:, None]
        waves = self.weight[..., :1] * angles.cos() + self.weight[..., 1:] * angles.sin()
        kernel = self.step.exp() * (waves * (-self.decay.exp()[:, :, None] * times[:, None]).exp()).sum(1)
        # Twice as long, so that the end does not come round to the beginning.
        spectrum = torch.fft.rfft(channels, 2 * LENGTH) * torch.fft.rfft(kernel, 2 * LENGTH)
        outputs = torch.fft.irfft(spectrum, 2 * LENGTH)[..., :LENGTH] + self.skip * channels
        mixed: Tensor = inputs + nn.functional.glu(self.mix(nn.functional.gelu(outputs).mT), 2)
        return mixed


class Network(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Embedding(CHARACTERS, WIDTH), *(StateSpace() for _ in range(blocks))),
            *(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHARACTERS)),
        )

    def forward(self, characters: Tensor) -> Tensor:
        """Cross-entropy of each character but the first, by those before it."""
        logits = self.layers(characters[:, :-1])
        return nn.functional.cross_entropy(logits.mT, characters[:, 1:])


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> float:
    """Mean cross-entropy in nats per character."""
    loss: Tensor = model(*dataset.tensors)
    return loss.item()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = Network()
    adamw = optimizer(model)
    session.track(model=model, optimizer=adamw)
    session.validate(lambda: evaluate(model, validation))
    for (characters,) in session.batches(DataLoader(training, batch_size=16, shuffle=True)):
        loss = model(characters)
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        session.report(loss)
    return {"test_loss": evaluate(model, test)}
