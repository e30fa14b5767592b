"""The feed: going back and forth in a loader is the same as iterating it once."""

from __future__ import annotations

import itertools
import logging
import random
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import Augmented, draw, rng_digest, seed_all, shuffled
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, TensorDataset

from autolrs import codec
from autolrs.batches import Feed, PassEnded, Place, position_of
from autolrs.errors import LoaderError
from autolrs.snapshot import capture_rng, restore_rng, track

HUGE, TINY = 1 << 30, 300
"""Replay memories: the second holds about three batches."""


class Stream(IterableDataset[Tensor]):
    """Items without indices."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(20.0))


class EpochSampler(Sampler[int]):
    """Like the distributed sampler: the order depends on the epoch it is told."""

    def __init__(self, size: int = 20) -> None:
        self.size = size
        self.told: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.told.append(epoch)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.size, generator=torch.Generator().manual_seed(self.told[-1])).tolist())


def own_sampler() -> DataLoader[Any]:
    """Everything with one generator, in a batch sampler."""
    generator = torch.Generator().manual_seed(3)
    sampler = RandomSampler(Augmented(20), generator=generator)
    return DataLoader(Augmented(20), batch_sampler=BatchSampler(sampler, 4, drop_last=False))


LOADERS: dict[str, Callable[[], Iterable[Any]]] = {
    "list": lambda: [torch.full((2,), float(i)) for i in range(5)],
    "shuffled": lambda: shuffled(Augmented(20)),
    "shuffled, own generator": lambda: shuffled(Augmented(20), own=True),
    "batch sampler": own_sampler,
    "stream": lambda: DataLoader(Stream(), 4),
    "set_epoch": lambda: DataLoader(Augmented(20), 4, sampler=EpochSampler()),
    "not batched": lambda: DataLoader(Augmented(5), batch_size=None, shuffle=True),
}


def step(feed: Feed | Iterator[Any]) -> tuple[Any, ...]:
    """One item, and the random numbers that the body of the loop draws at it."""
    item = feed.draw() if isinstance(feed, Feed) else next(feed)
    return to_plain(item), draw()


def to_plain(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.tolist()
    return [to_plain(part) for part in item] if isinstance(item, list | tuple) else item


def endless(loader: Any) -> Iterator[Any]:
    for epoch in itertools.count():
        for place in (
            getattr(loader, "sampler", None),
            getattr(getattr(loader, "batch_sampler", None), "sampler", None),
        ):
            if callable(set_epoch := getattr(place, "set_epoch", None)):
                set_epoch(epoch)
                break
        yield from loader


def plain(make: Callable[[], Iterable[Any]], count: int) -> list[tuple[Any, ...]]:
    """What an ordinary loop sees and draws."""
    seed_all()
    iterator = endless(make())
    return [step(iterator) for _ in range(count)]


def seen(feed: Feed, count: int) -> list[tuple[Any, ...]]:
    return [step(feed) for _ in range(count)]


@pytest.mark.parametrize("kind", LOADERS)
def test_unmarked_it_is_the_loader_pass_after_pass(kind: str) -> None:
    expected = plain(LOADERS[kind], 13)
    seed_all()
    feed = Feed(LOADERS[kind]())
    assert seen(feed, 13) == expected
    assert (feed.epoch, feed.position.index) == (2, 3)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("draw"), st.integers(1, 9)),
        st.tuples(st.just("mark"), st.just(0)),
        st.tuples(st.just("place"), st.just(0)),
        st.tuples(st.just("go"), st.integers(0, 9)),
        st.tuples(st.just("release"), st.just(0)),
        st.tuples(st.just("resume"), st.just(0)),
    ),
    max_size=14,
)
END = 14 * 9 + 8
PLAIN = {kind: plain(make, END) for kind, make in LOADERS.items()}


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(LOADERS)), st.sampled_from([HUGE, TINY, 0]), OPERATIONS)
def test_law_going_back_and_forth_is_a_plain_iteration(
    kind: str, memory: int, operations: list[tuple[str, int]]
) -> None:
    expected = PLAIN[kind]
    seed_all()
    feed = Feed(LOADERS[kind](), memory=memory)
    at = 0  # the model: an index into the plain iteration
    places: list[tuple[int, Place, Any]] = []  # with the state of the generators, which a caller restores
    for what, number in (*operations, ("release", 0), ("draw", 8)):
        if what == "draw":
            assert seen(feed, number) == expected[at : at + number]
            at += number
        elif what == "mark":
            feed.mark()
            places = [(at, feed.place(), capture_rng())]
        elif what == "place" and places:
            places.append((at, feed.place(), capture_rng()))
        elif what == "go" and places:
            at, place, rng = places[number % len(places)]
            feed.go(place)
            restore_rng(rng)
        elif what == "release":
            feed.release()
            places = []
        elif what == "resume":  # in another process, from a checkpoint
            state, rng = feed.state(), capture_rng()
            feed = Feed(LOADERS[kind](), epoch=state["epoch"], memory=memory)
            feed.seek(position_of(state))
            restore_rng(rng)
            places = []
        assert feed.position.epoch * 5 + feed.position.index == at


def test_a_position_survives_a_file(tmp_path: Path) -> None:
    expected = plain(LOADERS["shuffled, own generator"], 12)
    for before in (0, 1, 5, 7):  # not begun, inside a pass, at its end, inside the next
        seed_all()
        feed = Feed(LOADERS["shuffled, own generator"]())
        seen(feed, before)
        with (tmp_path / "file").open("wb") as file:
            codec.dump({"feed": feed.state(), "rng": capture_rng()}, file)
        draw()
        tree = codec.load(tmp_path / "file")
        again = Feed(LOADERS["shuffled, own generator"](), epoch=tree["feed"]["epoch"])
        again.seek(position_of(tree["feed"]))
        restore_rng(tree["rng"])
        assert seen(again, 12 - before) == expected[before:]


def test_a_checkpoint_before_the_first_item_has_the_loaders_generators_as_they_were() -> None:
    expected = plain(LOADERS["shuffled, own generator"], 5)
    seed_all()
    feed, rng = Feed(LOADERS["shuffled, own generator"]()), capture_rng()
    feed.mark()
    start = feed.place()
    seen(feed, 3)
    feed.go(start)
    feed.release()
    state = feed.state()  # of item 0, though the loader's own generator is past it
    again = Feed(LOADERS["shuffled, own generator"]())
    again.seek(position_of(state))
    restore_rng(rng)
    assert seen(again, 5) == expected


class WorkerNoise(Dataset[Tensor]):
    """Augmented in the worker, from its generator."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index), torch.rand(()).item()])


@pytest.mark.parametrize("memory", [HUGE, 40])
def test_workers_are_replayed_too(memory: int) -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(WorkerNoise(), 4, shuffle=True, num_workers=2)

    expected = plain(make, 9)
    seed_all()
    feed = Feed(make(), memory=memory)
    assert seen(feed, 2) == expected[:2]
    feed.mark()
    start, rng = feed.place(), capture_rng()
    for length in (3, 5):  # the second goes further than the first
        assert seen(feed, length) == expected[2 : 2 + length]
        feed.go(start)
        restore_rng(rng)
    feed.release()
    assert seen(feed, 3) == expected[2:5]
    state, rng = feed.state(), capture_rng()
    again = Feed(make(), epoch=state["epoch"])
    again.seek(position_of(state))
    restore_rng(rng)
    assert seen(again, 4) == expected[5:]


def test_workers_that_stay_are_replayed_from_memory_and_warned_of_past_it(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(WorkerNoise(), 4, shuffle=True, num_workers=1, persistent_workers=True)

    expected = plain(make, 5)
    seed_all()
    feed = Feed(make())
    feed.mark()
    start, rng = feed.place(), capture_rng()
    for _ in range(2):
        assert seen(feed, 4) == expected[:4]
        feed.go(start)
        restore_rng(rng)
    feed.release()
    assert seen(feed, 5) == expected
    assert not caplog.records
    Feed(make()).seek(feed.position)
    assert "persistent_workers=True" in caplog.text


@pytest.mark.parametrize("memory", [HUGE, TINY])
@pytest.mark.parametrize("kind", ["torch", "numpy", "random-state", "python"])
def test_tracked_generators_that_the_data_draws_from_are_replayed(kind: str, memory: int) -> None:
    makes: dict[str, Callable[[], Any]] = {
        "torch": lambda: torch.Generator().manual_seed(1),
        "numpy": lambda: np.random.default_rng(1),
        "random-state": lambda: np.random.RandomState(1),
        "python": lambda: random.Random(1),
    }
    generator = makes[kind]()

    def number() -> float:
        if kind == "torch":
            return torch.rand((), generator=generator).item()
        return float(generator.random_sample() if kind == "random-state" else generator.random())

    class Noisy(Dataset[Tensor]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Tensor:
            return torch.full((20,), index + number())

    tracked = track("generator", generator)
    seed_all()
    plain_tree = tracked.capture()
    iterator = endless(DataLoader(Noisy(), 2, shuffle=True))
    expected = [(to_plain(next(iterator)), number()) for _ in range(9)]
    tracked.restore(plain_tree)
    seed_all()
    feed = Feed(DataLoader(Noisy(), 2, shuffle=True), memory=memory, generators=[tracked])
    feed.mark()
    start, rng, tree = feed.place(), capture_rng(), tracked.capture()
    for _ in range(2):
        assert [(to_plain(feed.draw()), number()) for _ in range(6)] == expected[:6]
        feed.go(start)
        tracked.restore(tree)
        restore_rng(rng)
    feed.release()
    assert [(to_plain(feed.draw()), number()) for _ in range(9)] == expected


def test_a_generator_that_is_both_the_loaders_and_tracked() -> None:
    expected = plain(LOADERS["shuffled, own generator"], 12)
    seed_all()
    loader = shuffled(Augmented(20), own=True)
    tracked = track("generator", loader.generator)
    feed = Feed(loader, generators=[tracked])
    seen(feed, 2)
    feed.mark()
    start, rng, tree = feed.place(), capture_rng(), tracked.capture()
    for _ in range(3):
        assert seen(feed, 5) == expected[2:7]  # into the next pass, whose order the generator decides
        feed.go(start)
        tracked.restore(tree)
        restore_rng(rng)
    feed.release()
    assert seen(feed, 10) == expected[2:]


# Copies


@pytest.mark.parametrize("memory", [HUGE, 0])
def test_what_the_loop_does_to_a_batch_while_probing_leaves_no_trace(memory: int) -> None:
    original = [{"x": torch.ones(2), "nested": [torch.ones(1), np.ones(1)]} for _ in range(3)]
    feed = Feed(original, memory=memory)
    feed.mark()
    start = feed.place()
    for _ in range(3):
        for _ in range(2):
            item = feed.draw()
            assert item["x"].tolist() == [1, 1]
            assert (item["nested"][0].item(), item["nested"][1].item()) == (1, 1)
            item["x"] *= 5
            item["nested"][0] += 1
            item["nested"][1] += 1
            item.clear()
        feed.go(start)
    feed.release()
    assert feed.draw() is original[0]  # the kept run gets what a plain loop would


def test_items_are_forgotten_as_the_kept_run_plays_them() -> None:
    feed = Feed(itertools.repeat(torch.ones(2), 50))
    feed.mark()
    start = feed.place()
    for _ in range(20):
        feed.draw()
    feed.go(start)
    feed.release()
    assert feed.live() is None
    for left in range(20, 0, -1):
        assert len(feed._recording) == left
        feed.draw()
    assert feed.live() is not None


# Memory


@dataclass
class Batch:
    inputs: Tensor
    name: str = "x"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: [x],
        lambda x: (x, None),
        lambda x: {"a": {"b": x}},
        lambda x: UserDict(a=x),
        lambda x: x.numpy(),
        lambda x: b"x" * 1000,
        Batch,
    ],
)
def test_the_memory_is_a_limit_on_batches_of_all_kinds(wrap: Callable[[Tensor], Any]) -> None:
    feed = Feed(iter([wrap(torch.ones(250)) for _ in range(20)]), memory=10_500)
    feed.mark()
    with pytest.raises(LoaderError) as caught:
        seen(feed, 15)
    assert len(feed._recording) in (9, 10)
    size = int(str(caught.value).split("about ")[1].split()[0])
    assert 1000 <= size <= 1300


def test_a_one_shot_loader_says_what_to_do_when_the_memory_is_full() -> None:
    feed = Feed((torch.ones(100) for _ in range(9)), memory=1000)
    feed.draw()
    feed.mark()
    feed.draw(), feed.draw()
    with pytest.raises(LoaderError) as caught:
        feed.draw()
    message = str(caught.value)
    assert "3 batches of about 400 bytes exceed the cap of 1000 bytes" in message
    assert "one-shot iterator (generator)" in message
    assert "Raise replay_memory, shorten the probes, or give a loader that can be iterated again." in message
    assert isinstance(caught.value, ValueError)


def test_a_one_shot_loader_is_fine_within_the_memory() -> None:
    feed = Feed(iter(range(10)), memory=5 * 64)
    feed.draw()
    feed.mark()
    start = feed.place()
    for _ in range(3):
        assert [feed.draw() for _ in range(5)] == [1, 2, 3, 4, 5]
        feed.go(start)
    feed.release()
    assert [feed.draw() for _ in range(9)] == list(range(1, 10))
    with pytest.raises(LoaderError, match="one-shot iterator that is used up"):
        feed.draw()


def test_what_was_recorded_before_counts_when_recording_begins_anew() -> None:
    feed = Feed(iter(range(20)), memory=5 * 64)
    feed.mark()
    start = feed.place()
    for _ in range(5):
        feed.draw()
    feed.go(start)
    feed.release()
    feed.draw()
    feed.mark()
    assert [feed.draw() for _ in range(5)] == [1, 2, 3, 4, 5]
    with pytest.raises(LoaderError, match="6 batches"):
        feed.draw()


@pytest.mark.parametrize("empty", [[], iter([]), DataLoader(TensorDataset(torch.ones(0, 2)))])
def test_a_loader_that_yields_nothing_is_an_error_not_a_hang(empty: Iterable[Any]) -> None:
    with pytest.raises(LoaderError, match="yields nothing in epoch 0"):
        Feed(empty).draw()


# Passes


def test_each_pass_is_announced_to_the_sampler() -> None:
    sampler = EpochSampler()
    for loader in (
        DataLoader(Augmented(20), 4, sampler=sampler),
        DataLoader(Augmented(20), batch_sampler=BatchSampler(sampler, 4, drop_last=False)),
    ):
        sampler.told.clear()
        feed = Feed(loader, epoch=2)
        seen(feed, 11)
        assert sampler.told == [2, 3, 4]
    batch_sampler = type("Batches", (EpochSampler,), {"__iter__": lambda self: iter([[0, 1], [2]])})()
    seen(Feed(DataLoader(Augmented(20), batch_sampler=batch_sampler)), 3)
    assert batch_sampler.told == [0, 1]


def test_a_feed_of_some_passes_ends_after_them() -> None:
    feed = Feed([1, 2, 3], epoch=4, epochs=2)
    for left in (6, 5, 4, 3, 2, 1):
        assert feed.room() == left
        feed.draw()
    assert feed.room() == 0
    with pytest.raises(PassEnded):
        feed.draw()
    assert (feed.epoch, feed.next_epoch) == (5, 6)
    with pytest.raises(PassEnded):
        feed.draw()
    assert Feed([1]).room() is None
    assert Feed(iter([1]), epochs=1).room() is None
    assert Feed(DataLoader(Stream()), epochs=1).room() is None


@pytest.mark.parametrize("memory", [HUGE, 0])
def test_a_marked_pass_can_be_played_again_after_its_end(memory: int) -> None:
    feed = Feed([1, 2, 3], epochs=1, memory=memory)
    feed.draw()
    feed.mark()
    start = feed.place()
    for _ in range(2):
        assert (feed.draw(), feed.draw()) == (2, 3)
        assert (feed.epoch, feed.next_epoch) == (0, 1)
        for _ in range(2):
            with pytest.raises(PassEnded):
                feed.draw()
        assert (feed.epoch, feed.next_epoch) == (0, 1)
        feed.go(start)
        assert (feed.epoch, feed.room()) == (0, 2)
    feed.release()
    assert (feed.draw(), feed.draw()) == (2, 3)
    assert (feed.epoch, feed.next_epoch) == (0, 1)
    with pytest.raises(PassEnded):
        feed.draw()
    assert (feed.epoch, feed.next_epoch) == (0, 1)


@pytest.mark.parametrize("kind", ["shuffled", "shuffled, own generator", "stream", "list"])
def test_looking_whether_the_pass_is_over_changes_nothing(kind: str) -> None:
    expected = plain(LOADERS[kind], 8)
    for at in (0, 1, 4):
        seed_all()
        feed = Feed(LOADERS[kind](), epochs=1)
        assert seen(feed, at) == expected[:at]
        before = rng_digest()
        assert [feed.over(), feed.over()] == [False, False]
        assert rng_digest() == before
        assert feed.position.index == at
        state = feed.state()
        feed.mark()
        start, rng = feed.place(), capture_rng()
        for _ in range(2):
            assert seen(feed, 5 - at) == expected[at:5]
            feed.go(start)
            restore_rng(rng)
        feed.release()
        assert seen(feed, 5 - at) == expected[at:5]
        assert feed.over()
        after = Feed(feed.loader, epoch=feed.next_epoch, epochs=1)
        assert seen(after, 3) == expected[5:]
        again = Feed(LOADERS[kind](), epochs=1)
        again.seek(position_of(state))
        restore_rng(rng)
        assert seen(again, 5 - at) == expected[at:5]
    assert not Feed([1]).over()
    endless_feed = Feed([1])
    endless_feed.draw()
    assert not endless_feed.over()


# Coming to a position


class Stateful:
    """A loader with a position of its own."""

    def __init__(self) -> None:
        self.at = 0
        self.loaded = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]
        self.loaded += 1

    def __iter__(self) -> Iterator[int]:
        while self.at < 10:
            self.at += 1
            yield self.at
        self.at = 0


class Counting(Dataset[int]):
    loaded = 0

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        self.loaded += 1
        return index


def resumed(loader: Any, state: Any, caplog: pytest.LogCaptureFixture) -> tuple[Feed, str]:
    caplog.clear()
    feed = Feed(loader, epoch=state["epoch"])
    with caplog.at_level(logging.INFO, "autolrs"):
        feed.seek(position_of(state))
    return feed, caplog.text


def test_a_position_is_reached_by_state_dict_else_by_indices_else_by_loading(caplog: pytest.LogCaptureFixture) -> None:
    feed = Feed(Stateful())
    seen(feed, 14)
    loader = Stateful()
    again, text = resumed(loader, feed.state(), caplog)
    assert "reached batch 4 of epoch 1 by the loader's state_dict" in text
    assert loader.loaded == 1
    assert [again.draw() for _ in range(7)] == [5, 6, 7, 8, 9, 10, 1]

    dataset = Counting()
    feed = Feed(DataLoader(dataset, 2))
    seen(feed, 7)
    dataset.loaded = 0
    again, text = resumed(DataLoader(dataset, 2), feed.state(), caplog)
    assert "reached batch 2 of epoch 1 by skipping indices" in text
    assert dataset.loaded == 0
    assert to_plain(again.draw()) == [4, 5]

    feed = Feed(range(5))
    seen(feed, 7)
    again, text = resumed(range(5), feed.state(), caplog)
    assert "reached batch 2 of epoch 1 by loading and discarding" in text
    assert again.draw() == 2


def test_a_stateful_loader_is_still_found_after_items_were_replayed() -> None:
    feed = Feed(Stateful())
    seen(feed, 2)
    feed.mark()
    start = feed.place()
    seen(feed, 5)
    feed.go(start)
    feed.release()
    seen(feed, 3)
    state = feed.state()  # of item 5, though the loader itself is at 7
    again = Feed(Stateful())
    again.seek(position_of(state))
    assert [again.draw() for _ in range(3)] == [6, 7, 8]


def test_a_full_memory_brings_a_stateful_loader_back_by_its_state() -> None:
    loader = Stateful()
    feed = Feed(loader, memory=64)
    seen(feed, 2)
    feed.mark()
    start = feed.place()
    for _ in range(2):
        assert [feed.draw() for _ in range(5)] == [3, 4, 5, 6, 7]
        feed.go(start)
    assert loader.loaded == 2


@pytest.mark.parametrize("short", [[1, 2], DataLoader(TensorDataset(torch.ones(2, 1)))])
def test_data_that_has_shrunk_is_noticed(short: Iterable[Any]) -> None:
    feed = Feed([1, 2, 3, 4])
    seen(feed, 4)
    with pytest.raises(LoaderError, match="ended after 2 items, but the run is at item 4 of epoch 0"):
        Feed(short).seek(feed.position)


def test_drawing_itself_moves_no_generator_that_the_loader_does_not() -> None:
    seed_all()
    before = rng_digest()
    feed = Feed([1, 2, 3])
    feed.mark()
    feed.draw()
    feed.go(feed.place())
    feed.state()
    feed.release()
    feed.draw()
    assert rng_digest() == before
