"""A tree of plain values, tensors and arrays as one safetensors file, and back; nothing runs on loading.

The file is ordinary safetensors (8 bytes of header length, JSON header, raw buffers), readable by any of its
tools; the tree itself is JSON in the header's metadata and names the buffers. It is written here rather than by
the library so that it goes out in one pass, without a second copy in memory, to any object with `write`.

Tree                                     JSON
    None, bool, int, float, str, list      itself; floats that are not finite and huge ints {"float": ..}, {"int": ..}
    tensor                                 {"tensor": NAME}, {"tensor": [NAME, dtype, shape]} for exotic dtypes
    anything else                          {kind: parts}, see `_Encoder`
"""

from __future__ import annotations

import json
import math
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from autolrs.errors import CheckpointError, UntrackableError
from autolrs.files import Writable

if TYPE_CHECKING:
    import numpy as np
    import torch

Bytes = bytes | bytearray | memoryview

VERSION: Final = 1
HEADER_LIMIT: Final = 100_000_000
"""Bytes of header that safetensors readers accept."""

_NATIVE: Final = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
"""Tensor dtypes that every safetensors reader knows; others are stored as bytes."""
_NAMES: Final = {name: dtype for dtype, name in _NATIVE.items()}

_HOLLOW: Final = re.compile(r"u?int[1-7]|bits.*|q.*")
"""Dtypes that torch itself cannot copy, or that need more than their bytes."""

_COMPRESSED: Final = {
    "sparse_csr": ("crow_indices", "col_indices"),
    "sparse_bsr": ("crow_indices", "col_indices"),
    "sparse_csc": ("ccol_indices", "row_indices"),
    "sparse_bsc": ("ccol_indices", "row_indices"),
}
_ARRAY_KINDS: Final = "biufcSUMmV"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tree that `encode` has turned into the bytes of its file; `dump` writes them as they are."""

    data: Bytes


def encode(tree: Any, *, allow_pickle: bool = False) -> bytearray:
    """The bytes that `dump` would write.

    Raises:
        UntrackableError: see `dump`.
    """
    collected = _Collected()
    dump(tree, collected, allow_pickle=allow_pickle)
    return collected.data


def dump(tree: Any, file: Writable, *, allow_pickle: bool = False) -> None:
    """Write `tree`, which may be `Encoded` already, to `file`.

    Tensors are detached and brought to the CPU in contiguous order; views of one tensor are written once.
    Devices are stored as names. Containers may hold each other in any depth that JSON allows, but no cycles.

    Raises:
        UntrackableError: a value that is neither plain nor a dense or sparse tensor nor a NumPy array, and
            `allow_pickle` is off; the message has its place in the tree.
        OSError: from `file.write`.
    """
    if isinstance(tree, Encoded):
        file.write(memoryview(tree.data))
        return
    encoder = _Encoder(allow_pickle)
    try:
        node = json.dumps({"version": VERSION, "tree": encoder.encode(tree, "")})
    except RecursionError:
        raise UntrackableError("the state refers to itself or is nested too deeply to be stored.") from None
    # Wide elements first: every buffer then starts at a multiple of its element's size.
    buffers = sorted(encoder.buffers.items(), key=lambda item: (-item[1].align, item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "autolrs": node}}
    offset = 0
    for name, buffer in buffers:
        header[name] = {
            "dtype": buffer.dtype,
            "shape": buffer.shape,
            "data_offsets": [offset, offset + buffer.size],
        }
        offset += buffer.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise UntrackableError(
            f"the plain values of the state take {len(text):,} bytes, but a checkpoint's header holds at most "
            f"{HEADER_LIMIT:,}: store long lists of numbers as tensors or arrays."
        )
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for _, buffer in buffers:
        file.write(buffer.data())


def load(path: Path, *, allow_pickle: bool = False) -> Any:
    """Read the tree that `dump` wrote; tensors are on the CPU, and those that shared memory do so again.

    Raises:
        CheckpointError: the file is missing, damaged, of a newer format, or holds a pickled object and
            `allow_pickle` is off.
    """
    from safetensors import safe_open

    with _readable(str(path)):
        with safe_open(path, framework="pt") as file:
            node = json.loads((file.metadata() or {})["autolrs"])
            # A clone, because the reader's tensors are windows on the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return _decode(node, tensors, allow_pickle, str(path))


def decode(
    data: Bytes, *, allow_pickle: bool = False, alias: bool = False, place: str = "a checkpoint in memory"
) -> Any:
    """The tree of `encode`'s bytes. Nothing in it aliases `data`, which other processes may read at the same time.

    Args:
        alias: tensors are windows on `data` instead, and keep it: for one who only copies from them. Writing to one
            changes `data`, or ends the process where its memory is read-only.

    Raises:
        CheckpointError: see `load`.
    """
    import torch

    with _readable(place):
        view = memoryview(data).cast("B")
        begin = 8 + int.from_bytes(view[:8], "little")
        header = json.loads(bytes(view[8:begin]))
        node = json.loads(header.pop("__metadata__")["autolrs"])
        tensors = {}
        for name, entry in header.items():
            start, stop = (begin + offset for offset in entry["data_offsets"])
            buffer = _window(view[start:stop]) if alias else torch.empty(stop - start, dtype=torch.uint8)
            if not alias:
                buffer.numpy()[:] = view[start:stop]
            tensors[name] = buffer.view(_attribute(_NAMES[entry["dtype"]], torch.dtype)).reshape(entry["shape"])
        return _decode(node, tensors, allow_pickle, place)


def _window(view: memoryview) -> torch.Tensor:
    """`view` as a tensor, without a copy."""
    import torch

    if not len(view):
        return torch.empty(0, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(view, dtype=torch.uint8)


def _decode(node: Any, tensors: Mapping[str, torch.Tensor], allow_pickle: bool, place: str) -> Any:
    if node["version"] != VERSION:
        raise CheckpointError(f"{place} has format {node['version']}; this autolrs reads format {VERSION}.")
    return _Decoder(tensors, allow_pickle, place).decode(node["tree"])


@contextmanager
def _readable(place: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except CheckpointError:
        raise
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{place} is not a readable checkpoint: {error}") from error


class _Collected:
    """A file in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes | memoryview, /) -> None:
        self.data += data


@dataclass(frozen=True, slots=True)
class _Buffer:
    """A stretch of the file: `size` bytes that `data` makes when they are due."""

    dtype: str
    shape: list[int]
    size: int
    align: int
    data: Callable[[], bytes | memoryview]


class _Encoder:
    """Turns values into JSON nodes and collects their buffers."""

    def __init__(self, allow_pickle: bool) -> None:
        self.buffers: dict[str, _Buffer] = {}
        self._allow_pickle = allow_pickle
        self._seen: dict[tuple[object, ...], str] = {}

    def encode(self, value: Any, path: str) -> Any:
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            return value if value.bit_length() <= 1024 else {"int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if kind is list:
            return self._items(value, path)
        if kind is tuple:
            return {"tuple": self._items(value, path)}
        if kind in (set, frozenset):
            items = [self.encode(item, f"{path}/{{}}") for item in value]
            return {kind.__name__: sorted(items, key=json.dumps)}
        if kind in (dict, OrderedDict):
            return {kind.__name__: [[self._key(k, path), self.encode(v, f"{path}/{k}")] for k, v in value.items()]}
        if kind in (bytes, bytearray):
            return {kind.__name__: self._raw(bytes(value), path)}
        if kind.__module__.partition(".")[0] == "torch":
            return self._torch(value, path)
        if kind.__module__.partition(".")[0] == "numpy":
            return self._numpy(value, path)
        return self._other(value, path)

    def _items(self, values: Sequence[Any], path: str) -> list[Any]:
        # Python's generator is 625 integers, twice in each checkpoint: they go as they are.
        if {*map(type, values)} == {int} and max(map(int.bit_length, values)) <= 1024:
            return list(values)
        return [self.encode(item, f"{path}/{i}") for i, item in enumerate(values)]

    def _key(self, key: Any, path: str) -> Any:
        node = self.encode(key, f"{path}/(key)")
        if isinstance(node, dict) and node.keys() & {"tensor", "sparse_coo", "compressed"}:
            raise UntrackableError(f"{_place(path)} is a dict with a tensor as a key; use its name or number.")
        return node

    def _torch(self, value: Any, path: str) -> Any:
        import torch

        if type(value) in (torch.Tensor, torch.nn.Parameter):
            return self._tensor(value.detach(), path)
        if isinstance(value, torch.Size):
            return {"size": list(value)}
        if isinstance(value, torch.dtype):
            return {"dtype": _name(value)}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        return self._other(value, path)

    def _tensor(self, tensor: torch.Tensor, path: str) -> Any:
        import torch

        layout = _name(tensor.layout)
        known = layout in ("strided", "sparse_coo", *_COMPRESSED) and not _HOLLOW.fullmatch(_name(tensor.dtype))
        if tensor.is_meta or not known:
            return self._other(tensor, path)
        if layout == "sparse_coo":
            parts = [self._tensor(tensor._indices(), path), self._tensor(tensor._values(), path)]
            return {"sparse_coo": [*parts, list(tensor.shape), tensor.is_coalesced()]}
        if layout != "strided":
            indices = [self._tensor(getattr(tensor, part)(), path) for part in _COMPRESSED[layout]]
            return {"compressed": [layout, *indices, self._tensor(tensor.values(), path), list(tensor.shape)]}
        tensor = tensor.resolve_conj().resolve_neg()
        dtype, shape, size = _name(tensor.dtype), list(tensor.shape), tensor.numel() * tensor.element_size()

        def data() -> bytes | memoryview:
            flat = tensor.cpu().contiguous().reshape(-1)
            return flat.view(torch.uint8).numpy().data if size else b""

        native = dtype in _NATIVE
        buffer = _Buffer(_NATIVE.get(dtype, "U8"), shape if native else [size], size, tensor.element_size(), data)
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if size else None
        name = self._add(buffer, path, key)
        return {"tensor": name if native else [name, dtype, shape]}

    def _numpy(self, value: Any, path: str) -> Any:
        import numpy as np

        if type(value) is np.ndarray or (isinstance(value, np.generic) and type(value) is value.dtype.type):
            dtype = value.dtype
            if dtype.kind in _ARRAY_KINDS and not dtype.hasobject:
                description = np.lib.format.dtype_to_descr(dtype)
                if np.lib.format.descr_to_dtype(description) == dtype:
                    parts = [self._raw(value.tobytes(), path), self.encode(description, path), list(value.shape)]
                    return {"array" if type(value) is np.ndarray else "scalar": parts}
        return self._other(value, path)

    def _other(self, value: Any, path: str) -> Any:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if not self._allow_pickle:
            raise UntrackableError(
                f"{_place(path)} is a {kind}, but a checkpoint holds plain values, tensors and NumPy arrays only. "
                "Put a state_dict of such values there, or pass allow_pickle=True to store it as a pickle "
                "(which runs code when it is loaded)."
            )
        try:
            return {"pickle": self._raw(pickle.dumps(value), path)}
        except Exception as error:
            raise UntrackableError(f"{_place(path)} is a {kind} that cannot be pickled: {error}") from error

    def _raw(self, data: bytes, path: str) -> str:
        return self._add(_Buffer("U8", [len(data)], len(data), 1, lambda: data), path, None)

    def _add(self, buffer: _Buffer, path: str, key: tuple[object, ...] | None) -> str:
        if key is not None and key in self._seen:
            return self._seen[key]
        stem = path.strip("/").encode("ascii", "backslashreplace").decode() or "root"
        name, number = stem, 1
        while name in self.buffers or name == "__metadata__":
            number += 1
            name = f"{stem}#{number}"
        self.buffers[name] = buffer
        if key is not None:
            self._seen[key] = name
        return name


class _Decoder:
    """Turns JSON nodes back into values."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], allow_pickle: bool, place: str) -> None:
        self._tensors = tensors
        self._allow_pickle = allow_pickle
        self._place = place

    def decode(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.decode(item) for item in node]
        if not isinstance(node, dict):
            return node
        ((kind, parts),) = node.items()
        if kind == "int":
            return int(parts, 16)
        if kind == "float":
            return float(parts)
        if kind in (types := {"tuple": tuple, "set": set, "frozenset": frozenset}):
            return types[kind](self.decode(item) for item in parts)
        if kind in ("dict", "OrderedDict"):
            pairs = ((self.decode(key), self.decode(value)) for key, value in parts)
            return dict(pairs) if kind == "dict" else OrderedDict(pairs)
        if kind in ("bytes", "bytearray"):
            return bytes(self._bytes(parts)) if kind == "bytes" else bytearray(self._bytes(parts))
        if kind in ("array", "scalar"):
            array = self._array(*parts)
            return array if kind == "array" else array[()]
        if kind == "pickle":
            return self._unpickle(parts)
        return self._torch(kind, parts)

    def _bytes(self, name: str) -> bytes:
        return self._tensors[name].numpy().tobytes()

    def _array(self, name: str, description: Any, shape: list[int]) -> np.ndarray[Any, Any]:
        import numpy as np

        dtype = np.lib.format.descr_to_dtype(self.decode(description))
        array = np.empty(shape, dtype)
        if array.nbytes:
            array[...] = np.frombuffer(self._bytes(name), dtype).reshape(shape)
        return array

    def _unpickle(self, name: str) -> Any:
        if not self._allow_pickle:
            raise CheckpointError(
                f"{self._place} holds a pickled object at {_place(name)}, and loading it would run code. If you trust "
                "the file, open the study with allow_pickle=True."
            )
        return pickle.loads(self._bytes(name))

    def _torch(self, kind: str, parts: Any) -> Any:
        import torch

        if kind == "tensor" and isinstance(parts, str):
            return self._tensors[parts]
        if kind == "tensor":
            name, dtype, shape = parts
            return self._tensors[name].view(_attribute(dtype, torch.dtype)).reshape(shape)
        if kind == "size":
            return torch.Size(parts)
        if kind == "dtype":
            return _attribute(parts, torch.dtype)
        if kind == "device":
            return torch.device(parts)
        if kind == "sparse_coo":
            indices, values, shape, coalesced = parts
            return torch.sparse_coo_tensor(
                self.decode(indices), self.decode(values), shape, is_coalesced=coalesced, check_invariants=True
            )
        if kind == "compressed":
            layout, outer, inner, values, shape = parts
            return torch.sparse_compressed_tensor(
                self.decode(outer),
                self.decode(inner),
                self.decode(values),
                shape,
                layout=_attribute(layout, torch.layout),
                check_invariants=True,
            )
        raise CheckpointError(f"{self._place} holds a {kind!r}, which this autolrs does not know.")


def _place(path: str) -> str:
    return f"`{path.strip('/')}`" if path.strip("/") else "the state"


def _name(value: torch.dtype | torch.layout) -> str:
    return str(value).removeprefix("torch.")


def _attribute(name: str, kind: type[_T]) -> _T:
    import torch

    value = getattr(torch, name)
    if not isinstance(value, kind):
        raise TypeError(f"{name!r} is no {kind.__name__}")
    return value
