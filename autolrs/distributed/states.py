"""The kept state in Ray's object store, from which workers take over."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, Final

from autolrs.distributed.cluster import check_store
from autolrs.records import Record

log = logging.getLogger("autolrs")

SAMPLE: Final = 2**26
"""Bytes that are copied to see how fast that goes."""

Key = tuple[int, int]
"""Of a kept state: its step, and how many roll-backs came before it."""


@dataclass(frozen=True)
class KeptState:
    """A kept state in the object store: a reference to it, and a window on it, which keeps a copy on this node."""

    key: Key
    ref: Any
    data: Any

    @classmethod
    def put(cls, key: Key, data: bytearray) -> KeptState:
        """Put a state from disk there."""
        import ray

        ref = share(data)
        return cls(key, ref, ray.get(ref))

    def check_size(self) -> None:
        """Whether the store has room for such states; says what handing one over will take.

        Raises:
            SettingError: it has not.
        """
        check_store(len(self.data))
        log.info(
            "the training state has %.1f MB: a worker takes it over, once a stage, in about %.0f ms",
            len(self.data) / 1e6,
            self.copying() * 1e3,
        )

    def copying(self) -> float:
        """Seconds that one copy of it takes here, which is what a worker does to take it over, from a sample."""
        start = time.perf_counter()
        sample = self.data[:SAMPLE].copy()
        return (time.perf_counter() - start) * len(self.data) / max(1, len(sample))


def share(data: bytearray) -> Any:
    """A reference to the bytes in the object store."""
    import numpy as np
    import ray

    return ray.put(np.frombuffer(data, np.uint8))


def key_of(record: Record) -> Key:
    """Key of the record's kept state."""
    return record.kept_steps, len(record.roll_backs)
