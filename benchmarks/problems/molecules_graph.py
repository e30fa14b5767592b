"""How much better a substance dissolves in octanol than in water, by its molecule: messages from atom to atom along the
bonds, on the measurements of the package chemicals, Adam.

References:
    Gilmer, Schoenholz, Riley, Vinyals, Dahl: "Neural Message Passing for Quantum Chemistry", ICML 2017.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import distribution

import pandas
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 1500
ATOMS = 24  # of the largest molecules, without hydrogen
ELEMENTS = ["C", "N", "O", "F", "Si", "P", "S", "Cl", "Br", "I"]
BONDS = {"-": 1, "=": 2, "#": 3}


def molecule(smiles: str) -> Tensor | None:
    """The bonds between the atoms (24, 24), 0 where there is none, and on the diagonal their elements, from 1 on. None:
    it is larger, or of more than one part, or has other elements."""
    graph = torch.zeros(ATOMS, ATOMS, dtype=torch.uint8)
    before, count, bond = -1, 0, 1
    branches: list[int] = []
    rings: dict[str, tuple[int, int]] = {}
    for token in re.findall(r"\[[^]]*\]|Cl|Br|%\d\d|.", smiles):
        if token in BONDS:
            bond = BONDS[token]
        elif token == "(":
            branches.append(before)
        elif token == ")":
            before = branches.pop()
        elif token[-1].isdigit():
            if token in rings:
                other, ring = rings.pop(token)
                graph[before, other] = graph[other, before] = max(bond, ring)
            else:
                rings[token] = before, bond
            bond = 1
        elif token not in "/\\":
            element = re.sub(r"^\[\d*|[@H+\-\d]*\]$", "", token)
            if element not in ELEMENTS or count == ATOMS:
                return None
            graph[count, count] = 1 + ELEMENTS.index(element)
            if before >= 0:
                graph[before, count] = graph[count, before] = bond
            before, count, bond = count, count + 1, 1
    return graph


@cache
def data() -> tuple[TensorDataset, ...]:
    """Molecules as `molecule` makes them, standardised log10 of how many times as much dissolves; 1,000 molecules to
    validate and to test. Of mirror images one is taken."""
    # Importing the package would import all its formulas.
    folder = distribution("chemicals").locate_file("chemicals")
    table = pandas.read_csv(f"{folder}/Environment/Syrres logP data.csv.gz", sep="\t")
    measured = table.set_index("CAS")["logP"].to_dict()
    found: dict[bytes, tuple[Tensor, float]] = {}
    for size in ("large", "small"):
        with open(f"{folder}/Identifiers/chemical identifiers pubchem {size}.tsv", encoding="utf-8") as lines:
            for line in lines:
                _, number, _, _, smiles, _ = line.split("\t", 5)
                if number in measured and (graph := molecule(smiles)) is not None:
                    found.setdefault(graph.numpy().tobytes(), (graph, measured[number]))
    graphs = torch.stack([graph for graph, _ in found.values()])
    log_p = torch.tensor([value for _, value in found.values()])
    order = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(0))
    tensors = graphs[order], ((log_p - log_p.mean()) / log_p.std())[order]
    sizes = [len(graphs) - 2_000, 1_000, 1_000]
    return tuple(TensorDataset(*parts) for parts in zip(*(tensor.split(sizes) for tensor in tensors), strict=True))


class Network(nn.Module):
    """Three rounds of messages, other ones along each kind of bond; then the sum over the atoms."""

    def __init__(self, width: int = 48, rounds: int = 3) -> None:
        super().__init__()
        self.element = nn.Embedding(1 + len(ELEMENTS), width)
        self.messages = nn.ModuleList(nn.Linear(width, len(BONDS) * width, bias=False) for _ in range(rounds))
        self.updates = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(rounds)
        )
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1), nn.Flatten(0))

    def forward(self, graphs: Tensor) -> Tensor:
        elements = graphs.diagonal(dim1=1, dim2=2).long()
        there = (elements > 0)[:, :, None]
        bonds = graphs - torch.diag_embed(graphs.diagonal(dim1=1, dim2=2))
        kinds = torch.cat([bonds == kind for kind in BONDS.values()], 2).float()  # (n, atoms, kinds x atoms)
        atoms = self.element(elements)
        for message, update in zip(self.messages, self.updates, strict=True):
            sent = torch.cat(message(atoms).chunk(len(BONDS), 2), 1)
            atoms = atoms + update(torch.cat([atoms, kinds @ sent], 2))
        log_p: Tensor = self.head((atoms * there).sum(1) / ATOMS)
        return log_p


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> float:
    """Mean squared error, in units of the target's variance."""
    graphs, log_p = dataset.tensors
    return nn.functional.mse_loss(model(graphs), log_p).item()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = Network()
    adam = optimizer(model)
    session.track(model=model, optimizer=adam)
    session.validate(lambda: evaluate(model, validation))
    for graphs, log_p in session.batches(DataLoader(training, batch_size=32, shuffle=True)):
        loss = nn.functional.mse_loss(model(graphs), log_p)
        adam.zero_grad()
        loss.backward()
        adam.step()
        session.report(loss)
    return {"test_loss": evaluate(model, test)}
