"""Snapshots: whatever happens in between, a restore brings every bit back, any number of times."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import digest, loss_of, network, rng_digest, seed_all, update
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from autolrs import codec
from autolrs.errors import CheckpointError, UntrackableError
from autolrs.snapshot import capture_rng, clone, restore_rng, rng_preserved, same_rng, track


def equal(a: Any, b: Any) -> bool:
    """Whether two trees hold the same values, bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in inside for tensor in tensors_in(part)]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd-nesterov-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "adamw-tensor-rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        inputs = torch.randn(5, 6)

        def closure(inputs: Tensor = inputs) -> float:
            optimizer.zero_grad()
            loss = loss_of(model, inputs)
            loss.backward()
            return loss.item()

        optimizer.step(closure)


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_restore_goes_on_with_the_same_bits(kind: str, before: int) -> None:
    seed_all()
    model = network()
    optimizer = OPTIMIZERS[kind](list(model.parameters()))
    tracked = [track("model", model), track("optimizer", optimizer)]
    train(model, optimizer, before)
    trees, rng = [t.capture() for t in tracked], capture_rng()
    original = copy.deepcopy(trees)
    ends = []
    for _ in range(4):  # the trap: `load_state_dict` keeps the tensors it is given, and the second restore is corrupted
        train(model, optimizer, 3)
        ends.append((digest(model), clone(optimizer.state_dict()["state"])))
        for each, tree in zip(tracked, trees, strict=True):
            each.restore(tree)
        restore_rng(rng)
        assert equal([t.capture() for t in tracked], original)
        assert equal(trees, original)
    assert all(equal(end, ends[0]) for end in ends[1:])
    assert digest(model) != ends[0][0]


def test_state_born_since_the_snapshot_is_deleted() -> None:
    model = nn.Linear(6, 1)
    frozen, trained = model.parameters()
    optimizer = torch.optim.SGD([frozen, trained], lr=0.1, momentum=0.9)
    trained.grad = torch.ones(1)
    optimizer.step()
    optimizer.state["shared"] = {"count": torch.ones(())}  # some optimizers keep a state that is no parameter's
    tracked = track("optimizer", optimizer)
    tree = tracked.capture()
    for _ in range(2):
        frozen.grad = torch.ones(1, 6)
        trained.grad = torch.ones(1)
        optimizer.step()
        optimizer.state[trained]["extra"] = 1
        optimizer.state[trained]["momentum_buffer"] = optimizer.state[trained]["momentum_buffer"].double() / 3
        optimizer.state["shared"]["count"] += 1
        optimizer.state["late"] = 3
        tracked.restore(tree)
        assert set(optimizer.state) == {trained, "shared"}
        assert equal(dict(optimizer.state[trained]), {"momentum_buffer": torch.ones(1)})
        assert optimizer.state["shared"] == {"count": torch.ones(())}
        assert frozen.grad is None
        assert trained.grad is None


def test_the_options_of_the_groups_come_back_and_the_groups_stay_the_same_objects() -> None:
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.AdamW([{"params": parameters[:1], "lr": torch.tensor(0.5)}, {"params": parameters[1:]}])
    groups, keys, rate = list(optimizer.param_groups), list(optimizer.param_groups[0]), optimizer.param_groups[0]["lr"]
    tracked = track("optimizer", optimizer)
    tree = tracked.capture()
    optimizer.param_groups[0].update(weight_decay=0.5, betas=(0.1, 0.2), note="new")
    rate.fill_(0.25)
    tracked.restore(tree)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.5
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    assert all(now is then for now, then in zip(optimizer.param_groups, groups, strict=True))
    assert list(optimizer.param_groups[0]) == keys  # torch.compile guards on their order
    assert optimizer.param_groups[0]["params"][0] is parameters[0]


class Rich(nn.Module):
    """Everything a module can carry."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("hidden", torch.zeros(2, dtype=torch.bfloat16), persistent=False)
        self.register_buffer("cache", None, persistent=False)
        self.tied = self.inner[0]
        self.count = {"calls": 0}

    def get_extra_state(self) -> dict[str, int]:
        return self.count

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.count = state


def test_buffers_extra_state_and_training_flags_come_back() -> None:
    model = Rich()
    model.inner[1].eval()
    tracked = track("model", model)
    live = dict(model.named_parameters()) | dict(model.named_buffers())
    tree = tracked.capture()
    for _ in range(3):
        with torch.no_grad():
            for tensor in live.values():
                tensor.add_(1)
        model.kept = model.kept * 2  # a buffer may be replaced by another tensor, too
        model.count["calls"] += 1
        model.inner.train()
        model.eval()
        model.inner[0].weight.grad = torch.ones(2, 2)
        tracked.restore(tree)
        assert equal(tracked.capture(), tree)
        assert model.kept.tolist() == [0, 0]
        assert model.hidden.tolist() == [0, 0]
        assert model.count == {"calls": 0}
        assert model.training
        assert model.inner[0].training
        assert not model.inner[1].training
        assert model.inner[0].weight.grad is None
        assert model.inner[0].weight is live["inner.0.weight"]


def test_caches_that_grow_appear_or_go_are_put_back() -> None:
    model = Rich()
    tracked = track("model", model)
    empty = tracked.capture()
    model.cache = torch.ones(3)
    model.register_buffer("late", torch.ones(1))
    small = tracked.capture()
    model.cache = torch.ones(7, dtype=torch.float64)
    model.late = None
    tracked.restore(small)
    assert model.cache.tolist() == [1, 1, 1]
    assert model.cache.dtype is torch.float32
    assert model.late.tolist() == [1]
    for other in (model.cache + 1, torch.ones(3, dtype=torch.float64) / 3):
        model.cache = other
        tracked.restore(small)
        assert equal(model.cache, torch.ones(3))
    tracked.restore(empty)
    assert model.cache is None
    assert not hasattr(model, "late")
    assert "late" not in model.state_dict()


def test_a_buffer_in_two_places_stays_one() -> None:
    model = nn.ModuleDict({"a": nn.Module(), "b": nn.Module()})
    shared = torch.zeros(2)
    for part in model.values():
        part.register_buffer("shared", shared)
    tracked = track("model", model)
    tree = tracked.capture()
    shared += 1
    tracked.restore(tree)
    assert shared.tolist() == [0, 0]
    assert model["a"].shared is model["b"].shared is shared


def test_a_snapshot_shares_no_memory_with_what_is_live() -> None:
    seed_all()
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01))
    update(model, optimizer, torch.randn(5, 6))
    state = {"deep": [{"tensor": torch.ones(2)}]}
    own = torch.Generator()
    tracked = [track("x", value) for value in (model, optimizer, state, torch.ones(2), own)]

    def pointers(values: Any) -> set[int]:
        return {tensor.data_ptr() for tensor in tensors_in(values)}

    live = pointers([list(model.parameters()), list(model.buffers()), list(optimizer.state.values()), state])
    live |= pointers([group["lr"] for group in optimizer.param_groups])
    trees = [t.capture() for t in tracked]
    assert not pointers(trees) & live
    optimizer.state.clear()
    for each, tree in zip(tracked, trees, strict=True):
        each.restore(tree)
    assert not pointers(trees) & pointers([list(optimizer.state.values()), state, list(model.buffers())])
    assert len(pointers(trees)) > 20


def test_a_compiled_model_is_the_model_it_wraps() -> None:
    model = network()
    plain, compiled = track("model", model).capture(), track("model", torch.compile(model, backend="eager")).capture()
    assert equal(plain, compiled)


def test_a_fresh_process_goes_on_from_a_file(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer, list[Any]]:
        seed_all()
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return model, optimizer, [track("model", model), track("optimizer", optimizer)]

    model, optimizer, tracked = make()
    train(model, optimizer, 3)
    trees, rng = [t.capture() for t in tracked], capture_rng()
    with (tmp_path / "file").open("wb") as file:
        codec.dump([trees, rng], file)
    train(model, optimizer, 3)
    model_2, optimizer_2, tracked_2 = make()
    trees, rng = codec.load(tmp_path / "file")
    for each, tree in zip(tracked_2, trees, strict=True):
        each.restore(tree)
    restore_rng(rng)
    train(model_2, optimizer_2, 3)
    assert equal([t.capture() for t in tracked_2], [t.capture() for t in tracked])


@pytest.mark.parametrize("fused", [False, True])
def test_the_state_from_a_file_goes_where_its_parameter_is(fused: bool) -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.Adam([parameter], fused=fused)
    optimizer.step()
    elsewhere = nn.Parameter(torch.ones(2, device="meta"))
    other = torch.optim.Adam([elsewhere])
    other.param_groups[0]["fused"] = fused
    track("optimizer", other).restore(track("optimizer", optimizer).capture())
    state = other.state[elsewhere]
    assert (state["exp_avg"].device.type, state["exp_avg_sq"].device.type) == ("meta", "meta")
    assert state["step"].device.type == ("meta" if fused else "cpu")


def test_what_belongs_to_another_model_is_refused() -> None:
    tree = track("model", nn.Linear(2, 3)).capture()
    with pytest.raises(CheckpointError, match=r"shape \(2, 2\).*holds \(3, 2\)"):
        track("model", nn.Linear(2, 2)).restore(tree)
    with pytest.raises(CheckpointError, match=r"missing \['bias'\]"):
        track("model", nn.Linear(2, 3, bias=False)).restore(tree)
    optimizer = torch.optim.SGD(nn.Linear(2, 3).parameters(), lr=0.1)
    other = torch.optim.SGD(nn.Linear(2, 3, bias=False).parameters(), lr=0.1)
    with pytest.raises(CheckpointError, match="optimizer"):
        track("optimizer", other).restore(track("optimizer", optimizer).capture())


@pytest.mark.parametrize("enabled", [True, False])
def test_a_grad_scaler_comes_back(enabled: bool) -> None:
    seed_all()
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2, enabled=enabled)
    tracked = track("scaler", scaler)
    fresh = tracked.capture()

    def step(factor: float) -> None:
        optimizer.zero_grad()
        scaler.scale(loss_of(model, torch.ones(2, 6)) * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    step(1.0)
    tree = tracked.capture()
    for _ in range(2):
        step(1.0)  # the second good step in a row doubles the scale
        step(float("inf"))  # and this one halves it and is skipped
        step(float("inf"))
        if enabled:
            assert scaler.get_scale() == 512.0
        tracked.restore(tree)
        assert equal(tracked.capture(), tree)
        if enabled:
            assert scaler.state_dict()["_growth_tracker"] == 1
    tracked.restore(fresh)
    assert equal(tracked.capture(), fresh)


class Metric:
    """An object of the user's; its `state_dict` hands out what it goes on using."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"seen": [], "sum": torch.zeros(())}

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state


def test_any_object_with_a_state_dict_is_copied_both_ways() -> None:
    metric = Metric()
    tracked = track("metric", metric)
    tree = tracked.capture()
    for _ in range(2):
        metric.values["seen"].append(1)
        metric.values["sum"] += 1
        tracked.restore(tree)
        assert metric.values == {"seen": [], "sum": torch.zeros(())}


def test_a_dict_stays_itself_and_gets_its_items_back() -> None:
    inner = {"list": [1, 2], "tensor": torch.ones(2), "array": np.ones(2)}
    state: dict[str, Any] = OrderedDict(step=0, inner=inner, none=None)
    tracked = track("state", state)
    tree = tracked.capture()
    for _ in range(2):
        state["inner"]["list"].append(3)
        state["inner"]["tensor"] += 1
        state["inner"]["array"] += 1
        state["new"] = 1
        del state["none"]
        tracked.restore(tree)
        inner = {"list": [1, 2], "tensor": torch.ones(2), "array": np.ones(2)}
        assert equal(dict(state), {"step": 0, "inner": inner, "none": None})


def test_a_tensor_is_filled_in_place() -> None:
    tensor = torch.tensor([1.0, 2.0], requires_grad=True)
    tracked = track("tensor", tensor)
    tree = tracked.capture()
    with torch.no_grad():
        tensor += 1
    tensor.sum().backward()
    tracked.restore(tree)
    assert tensor.tolist() == [1.0, 2.0]
    assert tensor.grad is None


GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch": (lambda: torch.Generator().manual_seed(1), lambda g: torch.randn(3, generator=g).tolist()),
    "numpy": (lambda: np.random.default_rng(1), lambda g: [*g.normal(size=3), *g.integers(9, size=3, dtype=np.uint8)]),
    "numpy-mt": (lambda: np.random.Generator(np.random.MT19937(1)), lambda g: g.normal(size=3).tolist()),
    "random-state": (lambda: np.random.RandomState(1), lambda g: [g.randn(), *g.rand(2)]),  # an odd number of normals
    "python": (lambda: random.Random(1), lambda g: [g.gauss(0, 1), g.random()]),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_tracked_generator_draws_the_same_again(kind: str, tmp_path: Path) -> None:
    make, draw = GENERATORS[kind]
    generator = make()
    draw(generator)
    tracked = track("generator", generator)
    tree = tracked.capture()
    with (tmp_path / "file").open("wb") as file:
        codec.dump(tree, file)
    first = draw(generator), draw(generator)
    for saved in (tree, tree, codec.load(tmp_path / "file")):
        tracked.restore(saved)
        assert (draw(generator), draw(generator)) == first
    assert draw(generator) != first[0]


DRAWS: list[Callable[[], object]] = [
    random.random,
    lambda: random.gauss(0, 1),
    np.random.rand,
    np.random.randn,
    lambda: torch.rand(1),
    lambda: torch.randn(1),
]


@pytest.mark.parametrize("draw", range(len(DRAWS)))
def test_one_draw_from_one_global_generator_is_noticed(draw: int) -> None:
    seed_all()
    for warm in DRAWS:  # the first draws after seeding change more than later ones
        warm()
    before = capture_rng()
    assert same_rng(before, capture_rng())
    DRAWS[draw]()
    assert not same_rng(before, capture_rng())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, len(DRAWS) - 1), max_size=8), st.lists(st.integers(0, len(DRAWS) - 1), max_size=8))
def test_the_global_generators_come_back_and_are_left_alone(before: list[int], inside: list[int]) -> None:
    seed_all()
    for draw in before:
        DRAWS[draw]()
    state, found = capture_rng(), rng_digest()
    with rng_preserved():
        for draw in inside:
            DRAWS[draw]()
    assert rng_digest() == found

    def fail() -> None:
        for draw in inside:
            DRAWS[draw]()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), rng_preserved():
        fail()
    assert rng_digest() == found
    for _ in range(2):
        for draw in inside:
            DRAWS[draw]()
        restore_rng(state)
        assert rng_digest() == found
        assert same_rng(capture_rng(), state)


class World:
    """All kinds of objects, and things that can happen to them."""

    def __init__(self, kind: str) -> None:
        seed_all()
        self.model = Rich()
        self.optimizer = OPTIMIZERS[kind](list(self.model.inner.parameters()))
        self.state: dict[str, Any] = {"list": []}
        self.generators = [make() for make, _ in GENERATORS.values()]
        self.tracked = [track("x", value) for value in (self.model, self.optimizer, self.state, *self.generators)]
        self.saved: list[tuple[Any, Any]] = []

    def capture(self) -> Any:
        return [t.capture() for t in self.tracked], capture_rng()

    def happen(self, what: str) -> None:
        if what == "train":
            for parameter in self.model.inner.parameters():
                parameter.grad = torch.randn_like(parameter)
            self.optimizer.step()
        elif what == "forward":
            self.model.inner(torch.randn(3, 2))
        elif what == "flags":
            self.model.train(not self.model.training)
        elif what == "cache":
            self.model.cache = torch.randn(random.randrange(1, 4))
        elif what == "state":
            self.state["list"].append(torch.randn(2))
            self.model.count["calls"] += 1
        elif what == "draw":
            for generator, (_, draw) in zip(self.generators, GENERATORS.values(), strict=True):
                draw(generator)
            np.random.rand()  # noqa: NPY002
        elif what == "rate":
            for group in self.optimizer.param_groups:
                group["lr"] = group["lr"] * 0.5
        elif what == "snapshot":
            tree = self.capture()
            self.saved.append((tree, copy.deepcopy(tree)))
        elif self.saved:
            trees, rng = random.choice(self.saved)[0]
            for each, tree in zip(self.tracked, trees, strict=True):
                each.restore(tree)
            restore_rng(rng)


HAPPENINGS = ("train", "forward", "flags", "cache", "state", "draw", "rate", "snapshot", "restore")


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["sgd", "adam", "adamw-fused"]), st.lists(st.sampled_from(HAPPENINGS), max_size=20))
def test_law_snapshot_then_restore_is_the_identity_any_number_of_times(kind: str, happenings: list[str]) -> None:
    world = World(kind)
    for what in ("snapshot", *happenings):
        world.happen(what)
    for tree, original in world.saved * 2:
        for each, part in zip(world.tracked, tree[0], strict=True):
            each.restore(part)
        restore_rng(tree[1])
        assert equal(world.capture(), original)
        assert equal(tree, original)


@pytest.mark.parametrize("make", [
    lambda o: LambdaLR(o, lambda step: 1.0),
    lambda o: OneCycleLR(o, 0.1, total_steps=10),
    lambda o: ReduceLROnPlateau(o),
])  # fmt: skip
def test_a_scheduler_is_refused(make: Callable[[Any], object]) -> None:
    scheduler = make(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1))
    with pytest.raises(UntrackableError, match=rf"track\(warmup=.*{type(scheduler).__name__}.*remove the scheduler"):
        track("warmup", scheduler)


@pytest.mark.parametrize("value", [3, "text", [torch.ones(1)], lambda: 0, None])
def test_what_has_no_state_is_refused(value: object) -> None:
    with pytest.raises(UntrackableError, match=rf"track\(thing=...\)` got {type(value).__name__}") as caught:
        track("thing", value)
    assert isinstance(caught.value, TypeError)


def test_a_model_that_has_no_shape_yet_is_refused() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(UntrackableError, match=r"no shape yet \(0\.weight, 0\.bias\): run it on one batch first"):
        track("model", model)
    model(torch.ones(2, 4))
    track("model", model).capture()


@pytest.mark.parametrize("make", [nn.Linear, lambda a, b: torch.optim.SGD(nn.Linear(a, b).parameters(), lr=0.1)])
def test_a_model_hidden_in_a_dict_is_refused(make: Callable[[int, int], object]) -> None:
    value = make(2, 2)
    tracked = track("state", {"part": value})
    with pytest.raises(UntrackableError, match=rf"{type(value).__name__} under 'part'.*track\(part=...\)"):
        tracked.capture()


class Pair(NamedTuple):
    first: Tensor
    second: list[int]


def test_a_clone_is_equal_and_shares_nothing() -> None:
    data = torch.arange(1000.0)
    pair = Pair(data[:2], [1])
    value = {"pair": pair, "nested": [(data[2:4], "text", 1.5, None)], "array": np.ones(2)}
    copied = clone(value)
    assert equal(copied, value)
    assert not {t.data_ptr() for t in tensors_in(copied)} & {t.data_ptr() for t in tensors_in(value)}
    assert copied["pair"].second is not pair.second
    assert copied["pair"].first.untyped_storage().nbytes() == 8  # the slice, not all that it was cut from
