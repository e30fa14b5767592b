"""The live training state: captured, put back, and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from autolrs.batches import Feed, Place
from autolrs.errors import IdentityError
from autolrs.snapshot import Tracked, Tree, capture_rng, restore_rng, rng_preserved


@dataclass(frozen=True)
class Snapshot:
    """A state to come back to: of all tracked objects, the generators and the feed."""

    objects: Mapping[str, Tree]
    rng: Tree
    place: Place


class LiveState:
    """All that a training loop changes, but for its place in the data, which is the feed's.

    Args:
        tracked: the objects, by name.
        validate: measures the validation loss; None: nothing does.
    """

    def __init__(self, tracked: Mapping[str, Tracked], validate: Callable[[], Any] | None) -> None:
        self._tracked = tracked
        self._validate = validate

    @property
    def validates(self) -> bool:
        return self._validate is not None

    def capture(self, feed: Feed) -> Snapshot:
        return Snapshot(self._objects(), capture_rng(), feed.place())

    def go(self, snapshot: Snapshot, feed: Feed) -> None:
        """Put everything back, in place, the data too."""
        feed.go(snapshot.place)
        self._restore(snapshot.objects)
        restore_rng(snapshot.rng)

    def tree(self) -> Tree:
        """The state as a part of a checkpoint."""
        return {"objects": self._objects(), "rng": capture_rng()}

    def load(self, tree: Tree) -> None:
        """Inverse of `tree`.

        Raises:
            IdentityError: other objects are tracked than were then.
        """
        self._restore(tree["objects"])
        restore_rng(tree["rng"])

    def measure(self, feed: Feed) -> float:
        """The validation loss here; generators and training flags stay as they were."""
        assert self._validate is not None
        roots = [root for tracked in self._tracked.values() if (root := getattr(tracked, "module", None)) is not None]
        modules = [module for root in roots for module in root.modules()]
        flags = [module.training for module in modules]
        states = [generator.capture() for generator in feed.generators]
        with rng_preserved(), torch.no_grad():
            try:
                return float(self._validate())
            finally:
                for module, training in zip(modules, flags, strict=True):
                    module.training = training
                for generator, state in zip(feed.generators, states, strict=True):
                    generator.restore(state)

    def _objects(self) -> dict[str, Tree]:
        return {name: tracked.capture() for name, tracked in self._tracked.items()}

    def _restore(self, objects: Mapping[str, Tree]) -> None:
        if objects.keys() != self._tracked.keys():
            raise IdentityError(
                f"the checkpoint holds {sorted(objects)}, but tracked are {sorted(self._tracked)}: track the same "
                "objects under the same names to resume."
            )
        for name, tracked in self._tracked.items():
            tracked.restore(objects[name])
