"""Ray itself: connecting to it, and whether it has what a run asks for."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final

from autolrs.errors import SettingError, UnsupportedError

log = logging.getLogger("autolrs")

STORE_SHARE: Final = 2.2
"""Copies of the training state that Ray's object store holds at most: the last one, and one that is on its way."""


@dataclass(frozen=True)
class RayExecutor:
    """Workers on Ray for `tune(executor=...)`.

    Attributes:
        workers: how many probes run at once.
        resources: of each worker, as Ray counts them: {"CPU": 1, "GPU": 1}, or custom ones.
        deterministic: proposals depend on nothing but finished batches of `workers` probes, so that the same settings
            give the same run. False: each depends on all that has ended by then; no worker waits for its batch.
        address: of the cluster; None: the one that this process is connected to, else the one that RAY_ADDRESS names,
            else a new one on this machine.
        patience: seconds without a step, or without an answer, after which a worker counts as hung. A validation is to
            take less.
        startup: seconds in which a worker must have come to its first batch.
        deaths: workers that may die at one and the same instruction; the run then stops, resumable.
    """

    workers: int = 1
    resources: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    deterministic: bool = True
    address: str | None = None
    patience: float = 600.0
    startup: float = 1200.0
    deaths: int = 3

    def __post_init__(self) -> None:
        counts = self.resources.values()
        for rule, value, holds in (
            ("workers >= 1, an integer", self.workers, isinstance(self.workers, int) and self.workers >= 1),
            (
                "resources of a worker are numbers >= 0, by name",
                dict(self.resources),
                all(isinstance(count, int | float) and 0 <= count < math.inf for count in counts),
            ),
            ("patience > 0", self.patience, self.patience > 0),
            ("startup > 0", self.startup, self.startup > 0),
            ("deaths >= 1", self.deaths, self.deaths >= 1),
        ):
            if not holds:
                raise SettingError(f"`{rule}` must hold for executor 'ray', but got {value!r}.")

    @property
    def threads(self) -> int:
        """Threads of each worker: its share of the cores."""
        return max(1, int(self.resources.get("CPU", 1)))

    @property
    def batch(self) -> int:
        """See `engine.decide`."""
        return self.workers if self.deterministic else 0

    def environment(self, here: Mapping[str, Any]) -> dict[str, Any]:
        """What "bit for bit" depends on in the workers, given what it is in this process."""
        return {**here, "threads": self.threads, "device": "cuda" if self.resources.get("GPU") else "cpu"}

    def options(self) -> dict[str, Any]:
        """The resources as options of a Ray actor."""
        known = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
        own = {name: count for name, count in self.resources.items() if name not in known}
        options: dict[str, Any] = {"num_cpus": 0, "resources": own}
        return options | {known[name]: count for name, count in self.resources.items() if name in known}


def check_installed() -> None:
    """Raises UnsupportedError: Ray is not installed."""
    if find_spec("ray") is None:
        raise UnsupportedError("executor='ray' needs Ray: pip install 'autolrs[ray]'.")


@contextmanager
def connected(executor: RayExecutor) -> Iterator[None]:
    """Ray, connected to; what is begun here is ended here.

    Raises:
        SettingError: the cluster cannot be reached, or can never give what is asked for.
    """
    import ray

    ours = not ray.is_initialized()
    if ours:
        address = executor.address or os.environ.get("RAY_ADDRESS") or "local"
        _check_reachable(address)
        options = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise SettingError(f"cannot connect to Ray at {address!r}: {error}") from error
    try:
        preflight(executor)
        yield
    finally:
        if ours:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Whether somebody listens at HOST:PORT: Ray itself tries for minutes.

    Raises:
        SettingError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise SettingError(
            f"cannot connect to Ray at {address!r}: {error}. Does the cluster run (`ray status` there), and is the "
            "port open to here?"
        ) from error


def preflight(executor: RayExecutor) -> None:
    """Whether the cluster can ever run the workers, and whether it can now.

    Raises:
        SettingError: it cannot, with what is wanted and what there is.
    """
    places = _places()
    wanted = {name: float(count) for name, count in executor.resources.items() if count}
    able = sum(_times(wanted, total) for total, _ in places)
    if able < executor.workers:
        have = "; ".join(_shown(total, wanted) for total, _ in places) or "no node"
        raise SettingError(
            f"{executor.workers} workers with {_shown(wanted, wanted)} each can never run here: there is room for "
            f"{able} ({have}). Ask for fewer workers or fewer resources_per_worker, or use a larger cluster."
        )
    free = sum(_times(wanted, available) for _, available in places)
    if free < executor.workers:
        log.warning(
            "only %d of %d workers have room now; the others begin when others' work on the cluster ends",
            free,
            executor.workers,
        )
    if not wanted.get("GPU") and any(total.get("GPU") for total, _ in places):
        log.warning("the cluster has GPUs, but workers get none: resources_per_worker={'CPU': 1, 'GPU': 1} gives one")


def check_store(size: int) -> None:
    """Whether the object store holds states of `size` bytes.

    Raises:
        SettingError: it does not.
    """
    import ray

    capacity = min(node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"])
    if STORE_SHARE * size > capacity:
        raise SettingError(
            f"the training state has {size / 1e6:,.1f} MB, of which Ray's object store must hold {STORE_SHARE} copies, "
            f"but on one node it has {capacity / 1e6:,.1f} MB: start Ray with a larger object_store_memory."
        )


def _places() -> list[tuple[dict[str, float], dict[str, float]]]:
    """Total and free resources of each node, or of each bundle of the placement group that we are in."""
    import ray
    from ray.util import get_current_placement_group

    if (group := get_current_placement_group()) is not None:
        left = [dict(bundle) for bundle in group.bundle_specs]
        ours = ray.get_runtime_context().get_assigned_resources()
        if (home := next((bundle for bundle in left if _times(ours, bundle)), None)) is not None:
            home.update({name: home[name] - count for name, count in ours.items()})
        return [(bundle, bundle) for bundle in left]
    free = ray._private.state.available_resources_per_node()
    return [(node["Resources"], free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]]


def _times(wanted: Mapping[str, float], have: Mapping[str, float]) -> int:
    """How often `wanted` fits into `have`."""
    fits = (math.floor(have.get(name, 0.0) / count + 1e-9) for name, count in wanted.items())
    return min(fits, default=10**6)


def _shown(resources: Mapping[str, float], names: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {resources.get(name, 0.0):g}" for name in names) or "nothing"
