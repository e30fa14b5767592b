"""Signals that stop a run in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class Stoppable(Protocol):
    """A session, or a crew of workers."""

    def halt(self, reason: str) -> None: ...


@contextmanager
def stopping(hands: Stoppable) -> Iterator[None]:
    """SIGINT and SIGTERM stop at the next item, saved; a second SIGINT raises at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        hands.halt(signal.Signals(number).name)

    for number in old:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
