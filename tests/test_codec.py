from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open

from autolrs import codec, snapshot
from autolrs.errors import CheckpointError, UntrackableError

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning")

DTYPES = sorted({d for name in dir(torch) if isinstance(d := getattr(torch, name), torch.dtype)}, key=str)
DENSE = [d for d in DTYPES if not re.fullmatch(r"torch\.(u?int[1-7]|bits.*|q.*)", str(d))]


def there_and_back(tree: object, path: Path, **options: bool) -> object:
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        codec.dump(tree, file, **options)
    loaded = codec.load(path, **options)
    data = codec.encode(tree, **options)
    assert bytes(data) == path.read_bytes()
    assert codec.encode(codec.decode(data, **options), **options) == codec.encode(loaded, **options)
    return loaded


def same(a: object, b: object) -> bool:
    """Equality that looks at types, NaNs, dtypes and bits."""
    if type(a) is not type(b) and not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return False
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) and same(a[x], b[y]) for x, y in zip(a, b, strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b)
    return a == b


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DENSE))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    data = draw(st.binary(min_size=size, max_size=size))
    if dtype == torch.bool:
        data = bytes(byte & 1 for byte in data)
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype) if data else torch.empty(0, dtype=dtype)
    return flat.reshape(shape)


keys = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=2).map(tuple),
    max_leaves=3,
)
arrays = hnp.arrays(
    st.one_of(hnp.scalar_dtypes(), hnp.unicode_string_dtypes(), hnp.byte_string_dtypes(), hnp.array_dtypes()),
    hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3),
)
leaves = (
    keys
    | st.binary().map(bytearray)
    | st.sampled_from(DTYPES)
    | st.sampled_from([torch.device("cpu"), torch.device("cuda", 1)])
    | st.lists(st.integers(0, 9), max_size=3).map(torch.Size)
    | tensors()
    | arrays
    | hnp.arrays(hnp.scalar_dtypes(), ()).map(lambda array: array[()])
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=4).map(OrderedDict)
        | st.sets(st.integers() | st.text(), max_size=4)
        | st.frozensets(st.integers() | st.text(), max_size=4)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("codec") / "tree.safetensors"


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees)
def test_what_is_read_is_what_was_written(tree: object, path: Path) -> None:
    assert same(there_and_back(tree, path), tree)


@pytest.mark.parametrize("dtype", DENSE, ids=str)
def test_every_dtype_scalar_strided_and_empty(dtype: torch.dtype, path: Path) -> None:
    tensor = torch.arange(64, dtype=torch.uint8).view(dtype) if dtype != torch.bool else torch.arange(64) % 2 == 0
    tree = [tensor.reshape(2, -1).t(), tensor[0], tensor[:0], tensor[1::2]]
    assert same(there_and_back(tree, path), [part.contiguous() for part in tree])


def test_the_file_is_plain_safetensors(path: Path) -> None:
    there_and_back({"model": {"weight": torch.ones(2, 3)}, "odd": torch.ones(3, dtype=torch.uint8)}, path)
    with safe_open(path, framework="np") as file:
        assert file.get_tensor("model/weight").tolist() == [[1.0] * 3] * 2
        assert "autolrs" in file.metadata()


def test_shared_memory_is_written_once_and_shared_again(path: Path) -> None:
    weight = torch.randn(1000)
    tree = {"a": weight, "tied": weight.view(1000), "half": weight[:500], "parameter": torch.nn.Parameter(weight)}
    loaded = there_and_back(tree, path)
    assert isinstance(loaded, dict)
    assert same(loaded, tree)
    assert loaded["a"].data_ptr() == loaded["tied"].data_ptr() == loaded["parameter"].data_ptr()
    assert path.stat().st_size < 4000 + 2000 + 1500


def test_a_loaded_tensor_does_not_depend_on_the_file(path: Path) -> None:
    loaded = there_and_back([torch.ones(100_000)], path)
    os.truncate(path, 0)
    assert isinstance(loaded, list)
    loaded[0].add_(1)
    assert loaded[0].sum() == 200_000


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_sparse_layouts(path: Path) -> None:
    dense = torch.tensor([[0.0, 2.0, 0.0, 0.0], [1.0, 0.0, 0.0, 3.0]])
    coo = torch.sparse_coo_tensor(
        torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 2.0]), (2, 4), check_invariants=True
    )
    tree = [
        coo,
        dense.to_sparse(),
        dense.to_sparse_csr(),
        dense.to_sparse_csc(),
        dense.to_sparse_bsr((1, 2)),
        dense.to_sparse_bsc((1, 2)),
    ]
    loaded = there_and_back(tree, path)
    assert isinstance(loaded, list)
    for before, after in zip(tree, loaded, strict=True):
        assert after.layout == before.layout
        assert torch.equal(after.to_dense(), before.to_dense())
    assert [part.is_coalesced() for part in loaded[:2]] == [False, True]


def test_optimizer_and_generator_states(path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tree = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "numpy": np.random.default_rng(3).bit_generator.state,
        "legacy": np.random.RandomState(3).get_state(),
        "torch": torch.get_rng_state(),
    }
    assert same(there_and_back(tree, path), tree)


class Odd:
    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Odd) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]


class Trap:
    """Its pickle leaves a file behind when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    "value",
    [
        Odd(1),
        np.array([Odd(1)]),
        np.ma.array([1, 2]),
        lambda: 1,
        3j,
        torch.ones(2, device="meta"),
        torch.zeros(2).view(torch.bits8),
    ],
    ids=["object", "object array", "masked array", "function", "complex", "meta tensor", "bits"],
)
def test_other_objects_are_refused_by_place(value: object) -> None:
    with pytest.raises(UntrackableError, match=r"`loader/2/sampler` is a .*allow_pickle=True"):
        codec.dump({"loader": [0, 1, {"sampler": value}]}, io.BytesIO())


def test_pickles_need_consent_twice(path: Path, tmp_path: Path) -> None:
    assert there_and_back({"a": Odd(5)}, path, allow_pickle=True) == {"a": Odd(5)}
    with path.open("wb") as file:
        codec.dump({"a": [Trap(tmp_path / "sprung")]}, file, allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"pickled object at `a/0`.*allow_pickle=True"):
        codec.load(path)
    assert not (tmp_path / "sprung").exists()
    codec.load(path, allow_pickle=True)
    assert (tmp_path / "sprung").exists()  # the trap works, so the refusal meant something


def test_what_cannot_be_pickled_either_says_so() -> None:
    with pytest.raises(UntrackableError, match=r"`f` is a builtins\.function that cannot be pickled"):
        codec.dump({"f": lambda: 1}, io.BytesIO(), allow_pickle=True)


def test_cycles_and_depth_are_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(UntrackableError, match="refers to itself"):
        codec.dump(loop, io.BytesIO())


def test_a_tensor_is_no_key() -> None:
    with pytest.raises(UntrackableError, match="`state` is a dict with a tensor as a key"):
        codec.dump({"state": {torch.ones(1): 1}}, io.BytesIO())


def test_a_header_beyond_the_readers_limit_is_refused_on_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "HEADER_LIMIT", 1000)
    with pytest.raises(UntrackableError, match="store long lists of numbers as tensors"):
        codec.dump(list(range(1000)), io.BytesIO())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_an_error_by_name(cut: float, path: Path) -> None:
    there_and_back({"a": torch.ones(50), "b": [1, 2.5, "x"]}, path)
    os.truncate(path, int(cut * path.stat().st_size))
    with pytest.raises(CheckpointError, match=r"tree\.safetensors is not a readable checkpoint"):
        codec.load(path)


@pytest.mark.parametrize(
    "node",
    [{"pickle": "nothing"}, {"dtype": "load"}, {"mystery": 1}, {"a": 1, "b": 2}, {"tensor": "gone"}, {"size": "x"}],
    ids=str,
)
def test_made_up_trees_are_errors(node: object, path: Path) -> None:
    metadata = {"__metadata__": {"autolrs": json.dumps({"version": 1, "tree": node})}}
    text = json.dumps(metadata).encode()
    path.unlink(missing_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError):
        codec.load(path)


def test_a_newer_format_and_a_foreign_file_are_errors(path: Path) -> None:
    for metadata in ({"autolrs": json.dumps({"version": 2, "tree": None})}, {}):
        text = json.dumps({"__metadata__": metadata}).encode()
        path.unlink(missing_ok=True)
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(CheckpointError):
            codec.load(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError):
        codec.load(path)


def test_what_is_decoded_is_no_window_on_the_bytes():
    """Other processes read the same bytes: a restored state that aliases them is overwritten by the next probe."""
    data = codec.encode({"a": torch.arange(4.0), "b": np.arange(3)})
    before = bytes(data)
    tree = codec.decode(memoryview(before))
    tree["a"].add_(1)
    tree["b"] += 1
    assert bytes(data) == before
    assert same(codec.decode(before), codec.decode(data))


@pytest.mark.filterwarnings("error")
def test_a_window_on_read_only_memory_is_restored_from_and_nothing_live_shares_it():
    """What Ray's object store gives: to write there would end the process."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()

    step()
    tracked = [snapshot.track("model", model), snapshot.track("optimizer", optimizer)]
    data = codec.encode([part.capture() for part in tracked])
    before = bytes(data)
    optimizer.state.clear()
    tree = codec.decode(memoryview(data).toreadonly(), alias=True)
    for _ in range(2):
        for part, saved in zip(tracked, tree, strict=True):
            part.restore(saved)
        assert same([part.capture() for part in tracked], codec.decode(before))
        step()
    assert bytes(data) == before
    data[-8:] = bytes(8)  # the last buffer's end: that the tree is a window, not a copy
    assert not same(tree, codec.decode(before))


def test_what_is_encoded_already_is_written_as_it_is(tmp_path):
    data = codec.encode({"a": torch.arange(4.0)})
    with (tmp_path / "file").open("wb") as file:
        codec.dump(codec.Encoded(data), file)
    assert (tmp_path / "file").read_bytes() == bytes(data)


@pytest.mark.parametrize("cut", [0, 4, 30, -1])
def test_bytes_that_end_too_soon_are_refused(cut):
    with pytest.raises(CheckpointError, match="a checkpoint in memory is not a readable checkpoint"):
        codec.decode(codec.encode({"a": torch.arange(4.0)})[:cut])
