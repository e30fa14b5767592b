"""Search spaces: which learning rates are tried, and what is done with the one that wins.

Shipped spaces are YAML files in `search_spaces/`; docs/search-spaces.md has their schema.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from autolrs.errors import SettingError, UnknownNameError
from autolrs.schedules import BASES
from autolrs.yamls import as_number, load_yaml

SUFFIXES: Final = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """What may be tried, and the shape of the schedule around it.

    Attributes:
        name: how the space is called.
        optimizer: family of optimizers that it is meant for ("any", "sgd", "adam", ...); for people.
        bounds: lowest and highest reference rate, searched on a logarithmic scale.
        initial: rate of the first probe; None: the geometric middle of the bounds.
        schedule: base schedule, one of `schedules.BASES`.
        warmup: share of the run's steps that the rate rises linearly, in [0, 1).
        decay: share of the run that the decay of `wsd` and `wsd-sqrt` takes, in (0, 1].
        momentum: values that `horizon` tries beside the optimizer's own (SGD's momentum, beta_1 of Adam and its kin),
            each in (0, 1); an optimizer without momentum keeps none.
        params: fixed hyperparameters that the loop may read from `session.params`; names and plain values.
        reference: where the numbers come from.

    Raises:
        SettingError: a value breaks its rule.
    """

    name: str
    bounds: tuple[float, float]
    optimizer: str = "any"
    initial: float | None = None
    schedule: str = "wsd"
    warmup: float = 0.0
    decay: float = 0.2
    momentum: tuple[float, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""

    def __post_init__(self) -> None:
        for key in ("name", "optimizer", "schedule", "reference"):
            text = getattr(self, key)
            _check(isinstance(text, str), f"`{key}` must be a text", **{key: text})
        _check(self.name != "", "`name` must not be empty", name=self.name)
        low, high = self._set("bounds", _pair(self.bounds))
        _check(0 < low < high < math.inf, "`0 < low < high < inf` must hold for `bounds`", low=low, high=high)
        if self.initial is not None:
            initial = self._set("initial", as_number("initial", self.initial))
            _check(low <= initial <= high, "`initial` must lie within `bounds`", initial=initial, bounds=(low, high))
        _check(self.schedule in BASES, f"`schedule` must be one of {', '.join(BASES)}", schedule=self.schedule)
        warmup = self._set("warmup", as_number("warmup", self.warmup))
        _check(0 <= warmup < 1, "`0 <= warmup < 1` must hold (a share of the run)", warmup=warmup)
        decay = self._set("decay", as_number("decay", self.decay))
        _check(0 < decay <= 1, "`0 < decay <= 1` must hold (a share of the run)", decay=decay)
        _check(isinstance(self.momentum, list | tuple), "`momentum` must be a list of numbers", momentum=self.momentum)
        momentum = self._set("momentum", tuple(as_number("momentum", value) for value in self.momentum))
        _check(all(0 < m < 1 for m in momentum), "`0 < momentum < 1` must hold for each", momentum=momentum)
        _check(isinstance(self.params, Mapping), "`params` must map names to values", params=self.params)
        for key, value in self.params.items():
            _check(isinstance(key, str), "names in `params` must be texts", name=key)
            _check(_plain(value), f"`params.{key}` must be a text, a finite number, true, false or null", value=value)
        self._set("params", dict(self.params))

    def _set(self, key: str, value: Any) -> Any:
        """Store the checked value; after `__init__` the space never changes."""
        object.__setattr__(self, key, value)
        return value

    @staticmethod
    def names() -> tuple[str, ...]:
        """Names of the shipped spaces."""
        return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))

    @classmethod
    def load(cls, name_or_path: str | Path) -> SearchSpace:
        """A shipped space by its name, or any space by the path of its YAML file (`.yaml` or `.yml`).

        Raises:
            UnknownNameError: there is no such space or file; the message lists the shipped ones.
            SettingError: it is neither, or the file is not a search space; the message names file, key and value.
        """
        if not isinstance(name_or_path, str | Path):
            raise SettingError(f"`space` must be a name, a path or a `SearchSpace`, but got {name_or_path!r}.")
        path = Path(name_or_path)
        if path.suffix.lower() not in SUFFIXES:
            if name_or_path not in cls.names():
                raise UnknownNameError(
                    f"{UnknownNameError.of('search space', str(name_or_path), cls.names())}; "
                    f"or give the path of a file that ends in {' or '.join(SUFFIXES)}"
                )
            path = _folder() / f"{name_or_path}.yaml"
        return cls.from_mapping(_read(path), str(path))

    @classmethod
    def from_mapping(cls, data: Any, source: str) -> SearchSpace:
        """A space from the keys and values of a YAML file; `source` (its path) is named in errors.

        Without a key `name` the space is called as the file, without its suffix.

        Raises:
            SettingError: see `load`.
        """
        known = [item.name for item in fields(cls)]
        try:
            _check(isinstance(data, Mapping), "a search space must map keys to values", found=data)
            for key in data:
                if key not in known:
                    raise SettingError(_unknown(key, data[key], known))
            _check("bounds" in data, "`bounds: [low, high]` is missing", keys=list(data))
            return cls(**{"name": Path(source).stem, **data})
        except SettingError as error:
            raise SettingError(f"{source}: {error}") from None


def _folder() -> Path:
    """Where the shipped files are: inside the package if installed, else beside it in the repository."""
    package = Path(__file__).resolve().parent
    installed = package / "search_spaces"
    return installed if installed.is_dir() else package.parent / "search_spaces"


def _read(path: Path) -> Any:
    import yaml

    try:
        return load_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise UnknownNameError(
            f"there is no search-space file {path}; shipped spaces: {', '.join(SearchSpace.names())}"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError(f"{path}: cannot be read as YAML: {error}") from error


def _check(holds: bool, rule: str, **values: Any) -> None:
    if not holds:
        found = ", ".join(f"{key}={value!r}" for key, value in values.items())
        raise SettingError(f"{rule}, but got ({found}).")


def _pair(bounds: Any) -> tuple[float, float]:
    pair = isinstance(bounds, list | tuple) and len(bounds) == 2
    _check(pair, "`bounds` must be two rates, [low, high]", bounds=bounds)
    return as_number("bounds", bounds[0]), as_number("bounds", bounds[1])


def _plain(value: Any) -> bool:
    """Whether JSON stores `value` and gives back an equal one."""
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def _unknown(key: object, value: object, known: Sequence[str]) -> str:
    near = get_close_matches(str(key), known, n=1)
    meant = f" (did you mean `{near[0]}`?)" if near else ""
    return f"unknown key `{key}`{meant} with value {value!r}; known keys: {', '.join(known)}."
