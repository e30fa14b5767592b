"""Fits the network to draws from the prior: `autolrs pfn train`.

The data of step i depend on (seed, i) only, and a checkpoint holds weights, moments and step: a run that was killed
ends with the weights of one that was not (on one machine with one thread).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autolrs.curves.pfn.network import Array, Network, Normalised, bar_edges, network_settings, normalise
from autolrs.curves.pfn.prior import Batch, sample
from autolrs.curves.pfn.stored import CHECKPOINT, WEIGHTS, check, read, write
from autolrs.curves.points import FEWEST, MOST
from autolrs.errors import CheckpointError, SettingError
from autolrs.records import POINTS
from autolrs.yamls import as_number, as_whole, load_yaml

__all__ = ["CHECKPOINT", "WEIGHTS", "Config", "batch", "in_own_units", "train", "update"]

_EDGES: Final = 2**32  # in place of a step's number: no step has it
_EDGE_BATCHES = 200
_CLIP = 1.0  # of the gradient's norm
_SHOWN = 100  # steps between lines of progress
_SAVED = 120.0  # seconds between checkpoints
_DEVICES: Final = ("cpu", "cuda")
_RANGES: Final = {  # from, below; of a curve's questions half are about its run's end, hence two at least
    "seed": (0, 2**63),
    "steps": (1, _EDGES),
    "batch": (1, 2**31),
    "queries": (2, 2**31),
    "warmup": (1, _EDGES),
}

Prior = Callable[[np.random.Generator, int, int, int], Batch]
"""Draws n curves with so many bins seen and so many queries each, as `prior.sample` does."""


@dataclass(frozen=True, slots=True)
class Config:
    """What determines the weights.

    Attributes:
        seed: of the data and of the first weights.
        steps: optimizer updates; the rate warms up over the first `warmup` and then falls to 0 on a cosine.
        batch: curves of a step.
        queries: questions about each.
        rate: AdamW's peak learning rate.
        device: "cpu" or "cuda"; on either the blocks' products are in bfloat16.
        network: keyword arguments of `Network`.

    Numbers may be given as texts: YAML 1.1 reads 1e-3, without a point, as one.

    Raises:
        SettingError: a value breaks its rule.
    """

    seed: int
    steps: int
    batch: int
    queries: int
    rate: float
    warmup: int
    device: str
    network: dict[str, int]

    def __post_init__(self) -> None:
        for key, (least, limit) in _RANGES.items():
            value = as_whole(key, getattr(self, key))
            if not least <= value < limit:
                raise SettingError(f"`{least} <= {key} < {limit}` must hold, but got ({key}={value}).")
            object.__setattr__(self, key, value)
        rate = as_number("rate", self.rate)
        if not 0 < rate < math.inf:
            raise SettingError(f"`0 < rate < inf` must hold, but got ({rate=}).")
        object.__setattr__(self, "rate", rate)
        if self.device not in _DEVICES:
            raise SettingError(f"`device` must be one of {', '.join(_DEVICES)}, but got (device={self.device!r}).")
        object.__setattr__(self, "network", network_settings(self.network))

    @classmethod
    def load(cls, path: Path) -> Config:
        """From a YAML file; a name without a folder may be that of a shipped one.

        Raises:
            SettingError: no such file, no YAML, other keys than these, or a value breaks its rule; one line, which
                names the file.
        """
        import yaml

        shipped = Path(__file__).parent / path.name
        try:
            own = path.exists() or path.parent.name or not shipped.exists()
            text = (path if own else shipped).read_text("utf-8")
            values = load_yaml(text, str(path))
        except SettingError:
            raise
        except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8
            raise SettingError(f"cannot read {path}: {' '.join(str(error).split())}") from error
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            found = ", ".join(map(repr, values)) if isinstance(values, dict) else repr(values)
            raise SettingError(f"{path}: the keys must be {', '.join(sorted(names))}, but got ({found}).")
        try:
            return cls(**values)
        except SettingError as error:
            raise SettingError(f"{path}: {error}") from None


def train(
    config: Config,
    out: Path,
    *,
    minutes: float | None = None,
    resume: bool = False,
    draw: Prior = sample,
    log: Callable[[str], None] = print,
) -> Path | None:
    """Train on what `draw` draws and write `out`/weights.safetensors.

    Returns:
        Its path, or None if `minutes` ended first (then resume).

    Raises:
        SettingError: there is no GPU for the device "cuda", or `out` cannot be a folder.
        CheckpointError: `resume`, but the checkpoint in `out` is missing, damaged or of another config.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise SettingError("`device` is cuda, but torch finds no GPU here: set it to cpu.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SettingError(f"`out` must be a folder, or make one, but got (out={str(out)!r}): {error}.") from error
    torch.manual_seed(config.seed)
    network = Network(**config.network)
    if not resume:
        network.edges.copy_(torch.from_numpy(_edges(config, draw)))
    network.to(config.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=0.01, betas=(0.9, 0.98))
    start = _restore(config, network, optimizer, out / CHECKPOINT) if resume else 0
    begun = saved = time.monotonic()
    losses: list[float] = []
    for step in range(start, config.steps):
        now = time.monotonic()
        late = minutes is not None and now - begun > 60.0 * minutes
        if late or now - saved > _SAVED:
            saved = now
            _store(config, network, optimizer, step, out / CHECKPOINT)
        if late:
            log(f"stopped after {step} of {config.steps} steps; go on with --resume")
            return None
        for group in optimizer.param_groups:
            group["lr"] = config.rate * _decay(step, config)
        losses.append(update(network, optimizer, *batch(config, step, draw)))
        if (step + 1) % _SHOWN == 0:
            minutes_run = (time.monotonic() - begun) / 60.0
            speed = (step + 1 - start) * config.batch / (60.0 * minutes_run)
            mean = sum(losses) / len(losses)
            log(f"step {step + 1}/{config.steps}  loss {mean:.4f}  {speed:.0f} curves/s  {minutes_run:.1f} min")
            losses.clear()
    _store(config, network, optimizer, config.steps, out / CHECKPOINT)
    half = {name: value.half() if name != "edges" else value for name, value in _state(network).items()}
    write(out / WEIGHTS, half, {"config": asdict(config)})
    return out / WEIGHTS


def batch(config: Config, step: int, draw: Prior = sample) -> tuple[Normalised, Array]:
    """The curves of one step in their own units, and the truths z (n, q); made from (seed, step) only."""
    rng = np.random.default_rng([config.seed, step])
    bins = POINTS if rng.random() < 0.5 else int(rng.integers(FEWEST, MOST + 1))
    return in_own_units(draw(rng, config.batch, bins, config.queries))


def in_own_units(drawn: Batch) -> tuple[Normalised, Array]:
    """Curves drawn, and their truths z (n, q)."""
    seen = np.ones(drawn.times.shape, dtype=bool)
    curves = normalise(drawn.times, drawn.losses, drawn.noise, drawn.at, seen, np.ones(len(seen), dtype=bool))
    return curves, (drawn.truths - curves.level[:, None]) / curves.scale[:, None]


def update(network: Network, optimizer: torch.optim.Optimizer, curves: Normalised, truths: Array) -> float:
    """One step on the mean negative log probability of the truths' bars; that mean."""
    device = network.edges.device
    tokens, queries = (torch.from_numpy(x).to(device) for x in (curves.tokens, curves.queries))
    z = torch.from_numpy(truths).to(device, torch.float32)
    bars = (torch.bucketize(z, network.edges) - 1).clamp(0, len(network.edges) - 2)
    loss = F.cross_entropy(network(tokens, queries, half=True).flatten(0, 1), bars.flatten())
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
    optimizer.step()
    return float(loss.detach())


def _decay(step: int, config: Config) -> float:
    warm = min(1.0, (step + 1) / config.warmup)
    return warm * 0.5 * (1.0 + float(np.cos(np.pi * step / config.steps)))


def _edges(config: Config, draw: Prior) -> Array:
    rng = np.random.default_rng([config.seed, _EDGES])
    sizes = rng.integers(FEWEST, MOST + 1, _EDGE_BATCHES)
    z = [in_own_units(draw(rng, 256, int(bins), config.queries))[1].ravel() for bins in sizes]
    return bar_edges(np.concatenate(z), config.network["bars"])


def _state(network: Network) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def _store(config: Config, network: Network, optimizer: torch.optim.Optimizer, step: int, path: Path) -> None:
    tensors = {f"network.{name}": value for name, value in _state(network).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value.cpu().contiguous() for name, value in moments.items()}
    write(path, tensors, {"config": asdict(config), "step": step})


def _restore(config: Config, network: Network, optimizer: torch.optim.Optimizer, path: Path) -> int:
    """Put a checkpoint back; the step to go on with.

    Raises:
        CheckpointError: it is missing, damaged, no checkpoint, or of another config; nothing was put back.
    """
    try:
        tensors, step = _checkpoint(config, network, path)
    except CheckpointError as error:
        raise CheckpointError(f"cannot resume: {error}. Start without --resume.") from error
    moments: dict[int, dict[str, Any]] = {}
    weights = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "network":
            weights[rest] = value
        else:
            index, _, moment = rest.partition(".")
            moments.setdefault(int(index), {})[moment] = value
    network.load_state_dict(weights)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def _checkpoint(config: Config, network: Network, path: Path) -> tuple[dict[str, Tensor], int]:
    """A checkpoint's tensors, all there, and its step."""
    tensors, about = read(path)
    step = about.get("step")
    if "config" not in about or not isinstance(step, int):
        raise CheckpointError(f"{path}: it is no checkpoint of a training")
    if about["config"] != asdict(config):
        raise CheckpointError(f"{path} is of another config: {about['config']}")
    if not 0 <= step <= config.steps:
        raise CheckpointError(f"{path}: it says that {step} of {config.steps} steps are done")
    shapes = {f"network.{name}": tuple(value.shape) for name, value in network.state_dict().items()}
    for index, value in enumerate(network.parameters() if step else ()):  # there are no moments before the first step
        own = tuple(value.shape)
        shapes |= {f"optimizer.{index}.{name}": own for name in ("exp_avg", "exp_avg_sq")}
        shapes[f"optimizer.{index}.step"] = ()
    check(path, tensors, shapes)
    return tensors, step
