"""A feed of batches with a position that can be left and come back to.

All probes of a stage must see the same batches, and the kept run each batch once, in order. So a loader is
only ever driven forward: while a stage is searched its items are recorded, and going back means playing the
recording. Where drawing an item moved a global generator, the state after the draw is recorded too and put
back on replay, so that the loop's own random numbers are the same as well.

Past a memory cap, and when a run is resumed, the position is reached by iterating the loader again from the
start of its epoch, with the generators as they were then (`Feed.seek`).
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autolrs.errors import LoaderError
from autolrs.snapshot import Tracked, Tree, capture_rng, clone, restore_rng, same_rng, track

log = logging.getLogger("autolrs")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a feed is: `index` items into pass `epoch`.

    Attributes:
        start: state of the generators just before the pass began; None: it has not begun.
        own: state of the loader's own generators, where the pass has not begun.
        loader: (index, state) from the loader's own `state_dict`, if it has one.
    """

    epoch: int
    index: int
    start: Tree | None = None
    own: list[Tree] | None = None
    loader: tuple[int, Any] | None = None

    def to_tree(self) -> Tree:
        return {
            "epoch": self.epoch,
            "index": self.index,
            "start": self.start,
            "own": self.own,
            "loader": self.loader,
        }


@dataclass(frozen=True, slots=True)
class Place:
    """A position since the mark: `cursor` items into the recording, or `position` if that was given up."""

    cursor: int
    position: Position


@dataclass(frozen=True, slots=True)
class _Entry:
    """A recorded item, where the feed was after it, and the generators' state after the draw if it moved them."""

    item: Any
    after: Position
    rng: Tree | None


class PassEnded(Exception):
    """The passes that the caller asked for are over."""


class Feed:
    """The items of `loader`, pass after pass.

    Args:
        loader: any iterable. A `DataLoader`'s workers, samplers and generators are respected.
        epochs: passes to yield; None: without end.
        memory: bytes of recorded items to hold at most.
        generators: the user's tracked generators, restored along with the global ones.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        epoch: int = 0,
        epochs: int | None = None,
        memory: int = 1 << 30,
        generators: Iterable[Tracked] = (),
    ) -> None:
        self.loader = loader
        self._last_epoch = None if epochs is None else epoch + epochs
        self._memory = memory
        self._generators = tuple(generators)
        self._own = tuple(track("generator", generator) for generator in _generators_of(loader))
        self._iterator: Iterator[Any] | None = None
        self._live = Position(epoch, 0)  # position of the loader itself
        self._index = 0  # items drawn in this pass; `_live.index` is only brought up to date where it is read
        self._recording: list[_Entry] = []
        self._recorded_bytes = 0
        self._before = self._live  # position of the recording's first entry
        self._cursor = 0  # next entry to play
        self._mark: Position | None = None  # where the recording starts; None: not recording
        self._overflown = False  # the recording was given up: rewinding iterates again

    @property
    def position(self) -> Position:
        """Position of the next item."""
        if self._cursor < len(self._recording):
            return self._recording[self._cursor - 1].after if self._cursor else self._before
        return replace(self._live, index=self._index)

    @property
    def epoch(self) -> int:
        return self.position.epoch

    @property
    def next_epoch(self) -> int:
        """The pass that comes after this one; this one, if it has not begun."""
        position = self.position
        return position.epoch + (position.start is not None)

    @property
    def generators(self) -> tuple[Tracked, ...]:
        """The user's tracked generators and the loader's own."""
        return (*self._generators, *self._own)

    def room(self) -> int | None:
        """Items left before the caller's passes end, if that can be known; None: no end, or unknown."""
        if self._last_epoch is None:
            return None
        try:
            size = len(self.loader)  # type: ignore[arg-type]
        except TypeError:
            return None
        position = self.position
        return size * (self._last_epoch - position.epoch) - position.index

    def over(self) -> bool:
        """Whether the caller's passes are over. Looks at the next item, which is then played: not every loader knows
        its length, and some samplers draw random numbers as they end."""
        if self._last_epoch is None or self._iterator is None or self._cursor < len(self._recording):
            return False
        position, rng = self.position, self._rng()
        try:
            entry = self._draw_entry()
        except PassEnded:
            return True
        self._before = position
        self._recording, self._cursor = [entry], 0
        self._restore(rng)
        return False

    def draw(self) -> Any:
        """The next item.

        Raises:
            PassEnded: no pass is left.
            LoaderError: a whole pass yields nothing.
        """
        if self._cursor < len(self._recording):
            return self._play()
        if self._mark is None:
            return self._draw_live()
        return clone(self._draw_live()) if self._overflown else self._record()

    def live(self) -> Iterator[Any] | None:
        """The loader's own iterator, if items may be taken from it as they come; `skip` what was taken."""
        return self._iterator if self._mark is None and not self._recording else None

    def skip(self, items: int) -> None:
        self._index += items

    def mark(self) -> None:
        """Start recording here, to come back to this place. Items before it are forgotten."""
        self._forget()
        self._recorded_bytes = sum(_size(entry.item) for entry in self._recording)
        self._mark = self._before = self._complete(self._before)
        self._overflown = False

    def place(self) -> Place:
        """Where the feed is now, for `go`."""
        return Place(self._cursor, self._complete(self.position))

    def go(self, place: Place) -> None:
        """Go back to a place at or after the mark; the generators are the caller's to restore, afterwards."""
        if self._overflown:
            self.seek(place.position)
        self._cursor = place.cursor

    def release(self) -> None:
        """Stop recording. What is recorded is still played, and forgotten item by item."""
        self._forget()
        self._mark = None
        self._overflown = False

    def _forget(self) -> None:
        self._before = self.position
        self._recording = self._recording[self._cursor :]
        self._cursor = 0

    def state(self) -> Tree:
        """The position as a tree, for a checkpoint."""
        return self._complete(self.position).to_tree()

    def seek(self, position: Position) -> None:
        """Bring a loader to `position` by iterating it again; leaves the global and the user's generators moved.

        Raises:
            LoaderError: the loader ends before the position.
        """
        self._iterator = None
        mark, self._mark, self._recording, self._cursor = self._mark, None, [], 0
        self._live, self._index = replace(position, index=0), 0
        if position.start is None:
            for generator, tree in zip(self._own, position.own or (), strict=False):
                generator.restore(tree)
        else:
            restore_rng(position.start["rng"])
            for generator, tree in zip(self.generators, position.start["generators"], strict=True):
                generator.restore(tree)
            how = self._begin_at(position)
            log.info("reached batch %d of epoch %d by %s", position.index, position.epoch, how)
        self._mark = mark

    def move(self, position: Position) -> None:
        """`seek` to a place in another run's data, whose pass becomes the first of the passes that the caller asked
        for; what was recorded is forgotten."""
        if self._last_epoch is not None:
            self._last_epoch += position.epoch - self.epoch
        self._mark, self._overflown = None, False
        self.seek(position)

    def _begin_at(self, position: Position) -> str:
        """Iterate from the epoch's start to `position.index`; say how that was done."""
        skip, how = position.index, "loading and discarding"
        if position.loader is not None:
            index, state = position.loader
            self.loader.load_state_dict(clone(state))  # type: ignore[attr-defined]
            skip, how = position.index - index, "the loader's state_dict"
            self._index = index
        _set_epoch(self.loader, position.epoch)
        self._iterator = iter(self.loader)
        skipped: Iterator[Any] = self._iterator
        if position.loader is None and _skips_by_index(self.loader, self._iterator):
            how = "skipping indices"
            skipped = iter(self._iterator._next_index, _NOTHING)  # type: ignore[attr-defined]
        done = sum(1 for _ in itertools.islice(skipped, skip))
        if done < skip:
            raise LoaderError(
                f"the loader ended after {position.index - skip + done} items, but the run is at item {position.index} "
                f"of epoch {position.epoch}: the data is not what it was, or cannot be iterated twice."
            )
        if getattr(self.loader, "persistent_workers", False):
            log.warning(
                "the loader keeps its workers from pass to pass (persistent_workers=True), so the random numbers that "
                "they draw cannot be drawn again: if they augment the data, raise replay_memory or let the workers go."
            )
        self._index = position.index
        return how

    def _record(self) -> Any:
        entry = self._draw_entry()
        self._recorded_bytes += _size(entry.item)
        if self._recorded_bytes > self._memory:
            self._overflow()
        else:
            self._recording.append(entry)
            self._cursor += 1
        return clone(entry.item)

    def _draw_entry(self) -> _Entry:
        before = self._rng()
        item = self._draw_live()
        after = self._rng()
        return _Entry(item, replace(self._live, index=self._index), None if _same(before, after) else after)

    def _play(self) -> Any:
        entry = self._recording[self._cursor]
        if entry.rng is not None:
            self._restore(entry.rng)
        if self._mark is None:
            del self._recording[0]
            self._before = entry.after
            return entry.item
        self._cursor += 1
        return clone(entry.item)

    def _draw_live(self) -> Any:
        """The next item from the loader, beginning passes where one ends."""
        while True:
            if self._iterator is None:
                self._begin_pass()
            assert self._iterator is not None
            item = next(self._iterator, _NOTHING)
            if item is not _NOTHING:
                self._index += 1
                return item
            if self._index == 0:
                raise LoaderError(
                    f"the loader ({type(self.loader).__name__}) yields nothing in epoch {self._live.epoch}: it is "
                    "empty, or it is a one-shot iterator that is used up; give a loader that can be iterated again."
                )
            if self._live.epoch + 1 == self._last_epoch:
                raise PassEnded
            self._iterator = None
            self._live, self._index = Position(self._live.epoch + 1, 0), 0

    def _begin_pass(self) -> None:
        start = {"rng": capture_rng(), "generators": [generator.capture() for generator in self.generators]}
        self._live = replace(self._live, start=start, own=None)
        _set_epoch(self.loader, self._live.epoch)
        self._iterator = iter(self.loader)

    def _overflow(self) -> None:
        """The recording has grown past the cap: from now on rewinding iterates the loader again."""
        count = len(self._recording) + 1
        if isinstance(self.loader, Iterator):
            raise LoaderError(
                f"replay_memory is full: {count} batches of about {self._recorded_bytes // count} bytes exceed the cap "
                f"of {self._memory} bytes, and the loader is a one-shot iterator ({type(self.loader).__name__}) that "
                "cannot be iterated again. Raise replay_memory, shorten the probes, or give a loader that can be "
                "iterated again."
            )
        log.info("replay memory of %d bytes is full after %d batches: probes iterate again", self._memory, count)
        self._overflown = True
        self._recording, self._cursor = [], 0

    def _complete(self, position: Position) -> Position:
        """`position` with all that is needed to come back to it from elsewhere."""
        own = position.own
        if position.start is None and own is None:  # the pass has not begun: they are as it will find them
            own = [generator.capture() for generator in self._own]
        return replace(position, own=own, loader=self._loader_state(position))

    def _loader_state(self, position: Position) -> tuple[int, Any] | None:
        """The loader's own state, if it keeps one and is at `position`; else what was known before."""
        state = getattr(self.loader, "state_dict", None)
        live = self._cursor >= len(self._recording) and self._iterator is not None
        if callable(state) and callable(getattr(self.loader, "load_state_dict", None)) and live:
            return position.index, copy.deepcopy(state())
        return position.loader

    def _rng(self) -> Tree:
        """State of all generators that the loop may draw from."""
        return {"rng": capture_rng(), "generators": [generator.capture() for generator in self._generators]}

    def _restore(self, rng: Tree) -> None:
        restore_rng(rng["rng"])
        for generator, tree in zip(self._generators, rng["generators"], strict=True):
            generator.restore(tree)


_NOTHING: Any = object()


def position_of(tree: Tree) -> Position:
    """Inverse of `Position.to_tree`."""
    loader = tree["loader"]
    return Position(tree["epoch"], tree["index"], tree["start"], tree["own"], tuple(loader) if loader else None)


def _same(a: Tree, b: Tree) -> bool:
    return same_rng(a["rng"], b["rng"]) and all(
        _equal(x, y) for x, y in zip(a["generators"], b["generators"], strict=True)
    )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return all(_equal(a[key], b[key]) for key in a)
    return bool(repr(a) == repr(b))


def _generators_of(loader: Any) -> list[torch.Generator]:
    """Generators that belong to a `DataLoader` and its samplers."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    places = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [getattr(place, "generator", None) for place in places]
    unique = {id(generator): generator for generator in found if isinstance(generator, torch.Generator)}
    return list(unique.values())


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tell distributed and similar samplers which epoch begins."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    for place in (getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None), batch_sampler):
        if callable(set_epoch := getattr(place, "set_epoch", None)):
            set_epoch(epoch)
            return


def _skips_by_index(loader: Any, iterator: Any) -> bool:
    """Whether items can be skipped without loading them: their random numbers then come from nowhere else."""
    from torch.utils.data import DataLoader, IterableDataset

    return (
        isinstance(loader, DataLoader)
        and loader.num_workers == 0  # a worker's generator moves with each item it loads
        and not isinstance(loader.dataset, IterableDataset)
        and hasattr(iterator, "_next_index")
    )


def _size(item: Any, depth: int = 8) -> int:
    """Bytes of the tensors, arrays and texts in an item, about; `depth` ends objects that hold each other."""
    if isinstance(item, Tensor):
        return item.element_size() * item.nelement()
    if isinstance(item, str | bytes):
        return len(item)
    if isinstance(item, Mapping):
        inside: Iterable[Any] = item.values()
    elif isinstance(item, list | tuple):
        inside = item
    else:
        inside = vars(item).values() if hasattr(item, "__dict__") else ()  # the user's own batch class
    own = int(getattr(item, "nbytes", 64))
    return own + sum(_size(part, depth - 1) for part in inside) if depth else own
