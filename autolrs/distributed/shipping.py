"""The user's function, and what else workers need of the user's, as bytes.

a function of a package        by reference: workers import the package
a function of a script         by the script's path and the function's name: workers run the script as a module
a closure, or in `__main__`    by value (cloudpickle), with the globals that it uses
"""

from __future__ import annotations

import functools
import inspect
import io
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autolrs.errors import SettingError, WorkerError
from autolrs.scripts import load_file

log = logging.getLogger("autolrs")


@dataclass(frozen=True, slots=True)
class Shipped:
    """A function on its way to the workers: pickled in `data`, or called `name` in the script at `path`.

    Attributes:
        folder: the driver's working directory; a worker in another one looks for the script there, too.
    """

    name: str
    data: bytes = b""
    path: str = ""
    folder: str = ""

    def unpack(self) -> Callable[[Any], Any]:
        """The function, in a worker.

        Raises:
            SettingError: this machine does not have the script.
        """
        from ray import cloudpickle

        found: Any = load_file(self._script()) if self.path else cloudpickle.loads(self.data)
        for part in self.name.split(".") if self.path else ():
            found = getattr(found, part)
        train: Callable[[Any], Any] = found
        return train

    def _script(self) -> Path:
        path = Path(self.path)
        places = [path]
        if path.is_relative_to(self.folder):
            places.append(Path.cwd() / path.relative_to(self.folder))
        for place in places:
            if place.is_file():
                return place
        raise SettingError(
            f"a worker has no file {' or '.join(map(str, places))}: submit the run with `autolrs submit`, which sends "
            "the working directory along, or give all machines the same folder."
        )


def ship(train: Callable[[Any], Any]) -> Shipped:
    """`train` for the workers.

    Raises:
        SettingError: it holds something that cannot be pickled; the message names it.
    """
    name = getattr(train, "__qualname__", type(train).__qualname__)
    if path := _script_of(train):
        return Shipped(name, path=path, folder=str(Path.cwd()))
    return Shipped(name, pack(train, f"the train function {name!r}"))


def pack(value: Any, what: str) -> bytes:
    """`value` as bytes that `ray.cloudpickle.loads` takes in a worker.

    Raises:
        SettingError: it cannot be pickled; the message calls it `what`, and names the part that is to blame.
    """
    try:
        return _pickled(value)
    except Exception as error:
        blame = next((f"{name!r}, a {type(part).__name__}" for name, part in _parts(value) if not _can(part)), "")
        raise SettingError(
            f"{what} cannot be sent to the workers, because {f'it uses {blame}, which' if blame else 'it'} cannot be "
            f"pickled ({type(error).__name__}: {error}). Make it inside the function, or move the function to a file "
            "of its own."
        ) from error


def pack_result(result: Any) -> bytes:
    """What a train function returned; how it prints, if it cannot be pickled."""
    try:
        return _pickled(result)
    except Exception as error:
        log.warning("what the train function returned cannot be pickled (%s): the study has its repr", error)
        return _pickled(repr(result))


def pack_error(error: BaseException) -> bytes:
    """An error with the text of its traceback, or one that tells of it if it cannot be pickled."""
    from ray import cloudpickle

    inner = error.__traceback__.tb_next if error.__traceback__ else None  # without the frame that caught it
    text = "".join(traceback.format_exception(type(error), error, inner))
    try:
        data: bytes = _pickled((error, text))
        cloudpickle.loads(data)
    except Exception:
        name = f"{type(error).__module__}.{type(error).__qualname__}"
        data = _pickled((WorkerError(f"{name}: {error}"), text))
    return data


def unpack_error(data: bytes) -> BaseException:
    """Inverse of `pack_error`: the error, caused by one that prints like the worker's traceback."""
    from ray import cloudpickle

    error, text = cloudpickle.loads(data)
    assert isinstance(error, BaseException)
    error.__cause__ = _Elsewhere(text)
    return error


class _Elsewhere(Exception):
    """The traceback of another process, as text."""

    def __str__(self) -> str:
        return f'in a worker:\n"""\n{self.args[0]}"""'


def _script_of(train: Any) -> str:
    """Path of the script that `train` is a plain function of; "" if it is something else."""
    module = sys.modules.get(getattr(train, "__module__", None) or "")
    path = getattr(module, "__file__", None)
    if module is None or path is None or not inspect.isfunction(train) or "<" in train.__qualname__:
        return ""
    if module.__name__ == "__main__" or module.__package__:
        return ""
    return str(Path(path).resolve())


def _pickled(value: Any) -> bytes:
    from ray import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        """Takes functions behind `functools.cache` in `__main__`, too, which go by a name that workers do not know."""

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, functools._lru_cache_wrapper) and value.__module__ == "__main__":
                return _cached, (value.__wrapped__, value.cache_parameters())
            return super().reducer_override(value)

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


def _cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _can(value: Any) -> bool:
    try:
        _pickled(value)
    except Exception:
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[object, Any]]:
    """The variables that a function uses, the arguments of a partial one, or an object's attributes."""
    if inspect.isfunction(value):
        used = inspect.getclosurevars(value)
        yield from {**used.globals, **used.nonlocals}.items()
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), *enumerate(value.args), *value.keywords.items())
    else:
        yield from getattr(value, "__dict__", {}).items()
