"""autolrs tunes a network's learning-rate schedule while it trains.

Names are imported on first use (PEP 562), so that `import autolrs` is quick and loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from autolrs.errors import AutoLRSError
    from autolrs.protocols import Callback
    from autolrs.schedules import Schedule
    from autolrs.session import Session
    from autolrs.space import SearchSpace
    from autolrs.study import Study, load_study
    from autolrs.tuner import attach, tune

    __version__: str

__all__ = [
    "AutoLRSError",
    "Callback",
    "Schedule",
    "SearchSpace",
    "Session",
    "Study",
    "__version__",
    "attach",
    "load_study",
    "tune",
]

_HOME: Final = {
    "AutoLRSError": "errors",
    "Callback": "protocols",
    "Schedule": "schedules",
    "SearchSpace": "space",
    "Session": "session",
    "Study": "study",
    "attach": "tuner",
    "load_study": "study",
    "tune": "tuner",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("autolrs")
    elif name in _HOME:
        from importlib import import_module

        value = getattr(import_module(f"autolrs.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'autolrs' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
