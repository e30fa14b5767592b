"""Files of weights and of checkpoints: tensors, and one text of JSON about them. What is damaged says so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from autolrs.errors import CheckpointError
from autolrs.files import replace_file

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT: Final = "checkpoint.safetensors"
WEIGHTS: Final = "weights.safetensors"

_ABOUT: Final = "about"  # one entry of the metadata: the order of several is left to chance


def write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Put a file in place of `path`, in one step.

    Raises:
        OSError: it could not be written; `path` is untouched.
    """
    from safetensors.torch import save

    data = save(tensors, {_ABOUT: json.dumps(about)})
    replace_file(path, lambda file: file.write(data), durable=False)


def read(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, and what it says about them; `sha256`: which file it must be, None: any.

    Raises:
        CheckpointError: the file is missing, damaged, another one, or not written by `write`. The message names file
            and reason; what to do is the caller's to say.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no name of a file
        raise CheckpointError(f"{path}: {error}") from error
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise CheckpointError(f"{path}: its SHA-256 is {found}, not {sha256}")
    try:
        tensors = load(data)
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: it is damaged or no safetensors file ({error})") from error
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # its length comes first
        about = json.loads(header["__metadata__"][_ABOUT])
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata are not those that `autolrs pfn train` writes") from error
    if not isinstance(about, dict):
        raise CheckpointError(f"{path}: its metadata are not those that `autolrs pfn train` writes")
    return tensors, about


def check(path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """That `tensors`, read from `path`, are finite numbers with these names and shapes.

    Raises:
        CheckpointError: they are not; the message names file and tensor.
    """
    for name in sorted(shapes.keys() | tensors.keys()):
        if name not in tensors:
            raise CheckpointError(f"{path}: the tensor {name} is missing")
        if name not in shapes:
            raise CheckpointError(f"{path}: the tensor {name} does not belong there")
        value = tensors[name]
        if tuple(value.shape) != shapes[name]:
            raise CheckpointError(f"{path}: the tensor {name} is of shape {tuple(value.shape)}, not {shapes[name]}")
        if not (value.is_floating_point() and value.double().isfinite().all()):
            raise CheckpointError(f"{path}: the tensor {name} holds values that are not finite numbers")
