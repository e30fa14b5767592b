"""Snapshots of everything a rewind must restore.

A snapshot is a plain tree of dicts, lists, numbers and tensors: the same tree is kept in memory between
probes and written to disk as a checkpoint. Taking one clones every tensor; restoring copies *into* the
live tensors, so that no live tensor is ever an alias of a snapshot's. (`Optimizer.load_state_dict` keeps the
tensors it is given; a second restore from the same snapshot then starts from a corrupted state.)
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from autolrs.errors import CheckpointError, UntrackableError

Tree = dict[str, Any]


class Tracked(Protocol):
    """Something whose state can be captured as a tree and put back, exactly, any number of times."""

    def capture(self) -> Tree: ...

    def restore(self, tree: Tree) -> None: ...


def track(name: str, value: object) -> Tracked:
    """How to capture and restore `value`.

    Raises:
        UntrackableError: there is no exact way, or it is an LR scheduler (the session sets the rate).
    """
    if isinstance(value, LRScheduler):
        raise UntrackableError(
            f"`track({name}=...)` got a learning-rate scheduler ({type(value).__name__}), but the session sets the "
            "rate itself: remove the scheduler from the loop."
        )
    for kind, tracked in _KINDS:
        if isinstance(value, kind):
            return tracked(value)
    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
        return _Stateful(value)
    raise UntrackableError(
        f"`track({name}=...)` got {type(value).__name__}, which cannot be restored: give a module, an optimizer, a "
        "tensor, a generator, a dict, or an object with state_dict() and load_state_dict()."
    )


def uncovered(tracked: Iterable[Tracked]) -> int:
    """How many parameters the optimizers among them train that nothing else among them holds, so that a rewind would
    leave them as they are. 0 if an object with a `state_dict` of its own may hold them."""
    tracked = tuple(tracked)
    if any(isinstance(each, _Stateful) for each in tracked):
        return 0
    held: list[Tensor] = [each.tensor for each in tracked if isinstance(each, _Tensor)]
    held += [parameter for each in tracked if isinstance(each, _Module) for parameter in each.module.parameters()]
    places = {tensor.untyped_storage()._cdata for tensor in held}
    trained = [each._parameters() for each in tracked if isinstance(each, _Optimizer)]
    return sum(parameter.untyped_storage()._cdata not in places for parameters in trained for parameter in parameters)


class _Module:
    """Parameters, all buffers (non-persistent ones too), extra state and training flags of a module."""

    def __init__(self, module: nn.Module) -> None:
        original = getattr(module, "_orig_mod", module)  # torch.compile wraps the module; its names must not change
        assert isinstance(original, nn.Module)
        if lazy := [name for name, parameter in original.named_parameters() if is_lazy(parameter)]:
            raise UntrackableError(
                f"`track` got a {type(original).__name__} whose parameters have no shape yet ({', '.join(lazy[:5])}): "
                "run it on one batch first."
            )
        self.module = original

    def _live(self) -> dict[str, Tensor]:
        return dict(self.module.named_parameters()) | dict(self.module.named_buffers())

    def capture(self) -> Tree:
        return {
            "kind": "module",
            "tensors": {name: tensor.detach().clone() for name, tensor in self._live().items()},
            "slots": {name: m._buffers[key] is not None for name, m, key in self._slots()},
            "extra": {name: copy.deepcopy(m.get_extra_state()) for name, m in self._with_extra()},
            "training": {name: m.training for name, m in self.module.named_modules()},
        }

    def restore(self, tree: Tree) -> None:
        saved = tree["tensors"]
        self._restore_slots(saved, tree["slots"])
        live = self._live()
        if live.keys() != saved.keys():
            raise _mismatch("the model's tensors", live, saved)
        copy_into([(live[name], tensor) for name, tensor in saved.items()], "the model")
        for name, module in self._with_extra():
            module.set_extra_state(copy.deepcopy(tree["extra"][name]))
        for name, module in self.module.named_modules():
            module.training = tree["training"][name]
        for parameter in self.module.parameters():
            parameter.grad = None

    def _slots(self) -> Iterator[tuple[str, nn.Module, str]]:
        """Places of buffers, also those that hold none: full name, module, name in the module."""
        for path, module in self.module.named_modules():
            for name in list(module._buffers):
                yield f"{path}.{name}" if path else name, module, name

    def _restore_slots(self, saved: Mapping[str, Tensor], slots: Mapping[str, bool]) -> None:
        """Modules that keep a cache make, drop and resize buffers as they run: undo that."""
        for full, module, name in self._slots():
            buffer = module._buffers[name]
            if full not in slots:
                delattr(module, name)
            elif not slots[full]:
                module._buffers[name] = None
            elif full in saved and (buffer is None or not _alike(buffer, saved[full])):
                home = next(self.module.parameters(), saved[full]) if buffer is None else buffer
                module._buffers[name] = saved[full].to(home.device, copy=True)

    def _with_extra(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self.module.named_modules():
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                yield name, module


class _Optimizer:
    """State of every parameter, by its position, state under other keys, and the options of every group."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def capture(self) -> Tree:
        state = self.optimizer.state
        return {
            "kind": "optimizer",
            "state": [clone(dict(state[p])) if p in state else None for p in self._parameters()],
            "other": {key: clone(value) for key, value in state.items() if not isinstance(key, Tensor)},
            "groups": [
                {key: clone(value) for key, value in group.items() if key != "params"}
                for group in self.optimizer.param_groups
            ],
        }

    def restore(self, tree: Tree) -> None:
        parameters = self._parameters()
        if len(parameters) != len(tree["state"]) or len(self.optimizer.param_groups) != len(tree["groups"]):
            raise _mismatch("the optimizer's parameters", range(len(parameters)), range(len(tree["state"])))
        pairs: list[tuple[Tensor, Tensor]] = []
        state: dict[Any, Any] = self.optimizer.state
        saved_states = iter(tree["state"])
        for group in self.optimizer.param_groups:
            counts_on_device = group.get("capturable") or group.get("fused")
            for parameter in group["params"]:
                parameter.grad = None
                if (saved := next(saved_states)) is None:  # born since the snapshot
                    state.pop(parameter, None)
                else:
                    live = state[parameter]
                    missing = saved.keys() - live.keys()
                    _assign(live, saved, pairs)
                    for key in missing:  # tensors from a file are on the CPU; so is a step count, usually
                        if isinstance(live[key], Tensor) and (key != "step" or counts_on_device):
                            live[key] = live[key].to(parameter.device)
        for key in [key for key in state if not isinstance(key, Tensor) and key not in tree["other"]]:
            del state[key]
        for key, value in tree["other"].items():
            state[key] = clone(value)
        for group, saved in zip(self.optimizer.param_groups, tree["groups"], strict=True):
            _assign(group, saved, pairs, keep="params")
        copy_into(pairs, "the optimizer")


class _Stateful:
    """Anything with `state_dict` and `load_state_dict`: a GradScaler, a metric, the user's own class."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def capture(self) -> Tree:
        return {"kind": "stateful", "state": copy.deepcopy(self.value.state_dict())}

    def restore(self, tree: Tree) -> None:
        self.value.load_state_dict(copy.deepcopy(tree["state"]))


class _Tensor:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def capture(self) -> Tree:
        return {"kind": "tensor", "tensor": self.tensor.detach().clone()}

    def restore(self, tree: Tree) -> None:
        copy_into([(self.tensor, tree["tensor"])], "a tracked tensor")
        if self.tensor.is_leaf:
            self.tensor.grad = None


class _Mapping:
    """A dict's items, deep-copied; the dict itself stays the same object."""

    def __init__(self, value: MutableMapping[Any, Any]) -> None:
        self.value = value

    def capture(self) -> Tree:
        for key, value in self.value.items():
            if isinstance(value, nn.Module | Optimizer | LRScheduler):
                raise UntrackableError(
                    f"a tracked dict (or `session.state`) holds a {type(value).__name__} under {key!r}, which a rewind "
                    f"would replace by a copy: give it to `track` itself, `track({key}=...)`."
                )
        return {"kind": "mapping", "items": clone(dict(self.value))}

    def restore(self, tree: Tree) -> None:
        self.value.clear()
        self.value.update(clone(tree["items"]))


class _TorchGenerator:
    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def capture(self) -> Tree:
        return {"kind": "generator", "state": self.generator.get_state()}

    def restore(self, tree: Tree) -> None:
        self.generator.set_state(tree["state"])


class _NumpyGenerator:
    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def capture(self) -> Tree:
        return {"kind": "generator", "state": copy.deepcopy(self.generator.bit_generator.state)}

    def restore(self, tree: Tree) -> None:
        self.generator.bit_generator.state = copy.deepcopy(tree["state"])


class _NumpyRandomState:
    def __init__(self, generator: np.random.RandomState) -> None:
        self.generator = generator

    def capture(self) -> Tree:
        return {"kind": "generator", "state": self.generator.get_state(legacy=False)}

    def restore(self, tree: Tree) -> None:
        self.generator.set_state(tree["state"])


class _PythonRandom:
    def __init__(self, generator: random.Random) -> None:
        self.generator = generator

    def capture(self) -> Tree:
        return {"kind": "generator", "state": self.generator.getstate()}

    def restore(self, tree: Tree) -> None:
        self.generator.setstate(tree["state"])


GENERATORS: Final = (_TorchGenerator, _NumpyGenerator, _NumpyRandomState, _PythonRandom)
"""Kinds of tracked objects that random numbers are drawn from."""

_KINDS: Final[tuple[tuple[type, Callable[[Any], Tracked]], ...]] = (
    (nn.Module, _Module),
    (Optimizer, _Optimizer),
    (Tensor, _Tensor),
    (torch.Generator, _TorchGenerator),
    (np.random.Generator, _NumpyGenerator),
    (np.random.RandomState, _NumpyRandomState),
    (random.Random, _PythonRandom),
    (dict, _Mapping),
)


def clone(value: Any) -> Any:
    """A deep copy that shares no tensor with `value`."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {key: clone(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(clone(item) for item in value)
    if isinstance(value, tuple) and (make := getattr(value, "_make", None)):  # a named tuple
        return make(clone(item) for item in value)
    if isinstance(value, int | float | str | bool | bytes | None):
        return value
    return copy.deepcopy(value)


def copy_into(pairs: list[tuple[Tensor, Tensor]], owner: str) -> None:
    """Copy each second tensor of `pairs` into the first, in place.

    Raises:
        CheckpointError: shapes differ.
    """
    if not pairs:
        return
    for live, saved in pairs:
        if live.shape != saved.shape:
            raise CheckpointError(
                f"a tensor of {owner} has shape {tuple(live.shape)}, but the checkpoint holds {tuple(saved.shape)}: "
                "it belongs to another model."
            )
    with torch.no_grad():
        torch._foreach_copy_([live for live, _ in pairs], [saved for _, saved in pairs])


def _assign(
    live: MutableMapping[str, Any], saved: Tree, pairs: list[tuple[Tensor, Tensor]], keep: str | None = None
) -> None:
    """Make `live` equal to `saved` but for the key `keep`; tensors on both sides are queued in `pairs` for copying."""
    for key in [key for key in live if key not in saved and key != keep]:
        del live[key]
    for key, value in saved.items():
        old = live.get(key)
        if isinstance(value, Tensor) and isinstance(old, Tensor) and _alike(old, value):
            pairs.append((old, value))
        else:
            live[key] = clone(value)


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether copying one into the other keeps every bit."""
    return a.shape == b.shape and a.dtype == b.dtype


def _mismatch(what: str, live: Any, saved: Any) -> CheckpointError:
    missing, extra = sorted(set(saved) - set(live)), sorted(set(live) - set(saved))
    return CheckpointError(f"{what} are not those of the checkpoint: missing {missing[:5]}, unknown {extra[:5]}.")


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global generator is what user code draws from
    torch.manual_seed(seed)


def capture_rng() -> Tree:
    """State of the global generators of Python, NumPy, PyTorch and, where they are in use, CUDA devices."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if in_use else []
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 - the global one is what user code draws from
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore_rng(tree: Tree) -> None:
    random.setstate(tree["python"])
    np.random.set_state(tree["numpy"])  # noqa: NPY002
    torch.set_rng_state(tree["torch"])
    if tree["cuda"]:
        torch.cuda.set_rng_state_all(tree["cuda"])


def same_rng(a: Tree, b: Tree) -> bool:
    """Whether two captures hold the same states."""
    x, y = a["numpy"], b["numpy"]
    return (
        torch.equal(a["torch"], b["torch"])
        and a["python"] == b["python"]
        and (x["has_gauss"], x["gauss"], x["state"]["pos"]) == (y["has_gauss"], y["gauss"], y["state"]["pos"])
        and np.array_equal(x["state"]["key"], y["state"]["key"])
        and len(a["cuda"]) == len(b["cuda"])
        and all(torch.equal(s, t) for s, t in zip(a["cuda"], b["cuda"], strict=True))
    )


@contextmanager
def rng_preserved() -> Iterator[None]:
    """Whatever happens inside leaves the global generators as they were."""
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)
