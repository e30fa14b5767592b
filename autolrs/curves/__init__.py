"""Curve models by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from autolrs.errors import UnknownNameError

if TYPE_CHECKING:
    from autolrs.protocols import CurveModel

CURVE_MODELS: Final = ("auto", "bayes", "exponential", "law", "pfn")


def curve_model(name: str) -> CurveModel:
    """The curve model called `name`, with its own settings.

    Raises:
        UnknownNameError: there is none; the message lists those that exist.
    """
    if name not in CURVE_MODELS:
        raise UnknownNameError.of("curve model", name, CURVE_MODELS)
    if name == "bayes":
        from autolrs.curves.bayes import Bayes

        return Bayes()
    if name == "law":
        from autolrs.curves.law.law import Law

        return Law()
    if name == "pfn":
        from autolrs.curves.pfn.model import PFN

        return PFN()
    if name == "exponential":
        from autolrs.curves.exponential import Exponential

        return Exponential()
    from autolrs.curves.auto import Auto

    return Auto()
