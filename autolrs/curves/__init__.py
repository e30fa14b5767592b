"""Curve models by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from autolrs.errors import UnknownNameError

if TYPE_CHECKING:
    from autolrs.protocols import CurveModel

CURVE_MODELS: Final = ("auto", "exponential")


def curve_model(name: str) -> CurveModel:
    """The curve model called `name`, with its own settings.

    Raises:
        UnknownNameError: there is none; the message lists those that exist.
    """
    if name not in CURVE_MODELS:
        raise UnknownNameError.of("curve model", name, CURVE_MODELS)
    from autolrs.curves.exponential import Exponential

    return Exponential()
