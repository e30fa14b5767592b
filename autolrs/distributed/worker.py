"""The actor: runs the user's function in a thread, and carries words between it and the driver.

One method call is one turn of the conversation: the driver calls `talk` with an order, and has the worker's next
report for an answer. So the driver can wait for many workers at once, and what a worker returns, end states too,
belongs to the driver and outlives the worker.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Sequence
from typing import Any, Final

from autolrs.distributed.messages import Ended, Order, Pulse, Report, Setup, Want, from_bytes, to_bytes

THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Worker:
    """Made by Ray in a process of its own.

    Args:
        setup: a pickled `messages.Setup`.
        paths: where the driver imports from.
        threads: for the numerical libraries, which read it when they are imported.
    """

    def __init__(self, setup: bytes, paths: Sequence[str], threads: int) -> None:
        sys.path += [path for path in paths if path not in sys.path]
        os.environ.update(dict.fromkeys(THREADS, str(threads)))
        self._setup = setup
        self._orders: queue.SimpleQueue[tuple[Order, Any]] = queue.SimpleQueue()
        self._reports: queue.SimpleQueue[tuple[Report, Any]] = queue.SimpleQueue()
        self._talks = 0
        self._session: Any = None
        self._director: Any = None

    def talk(self, order: bytes | None, state: Any) -> tuple[bytes, Any]:
        """Obey, and report (see `messages`); without an order, begin."""
        self._talks += 1
        if order is None:
            threading.Thread(target=self._work, name="autolrs", daemon=True).start()
        else:
            self._orders.put((from_bytes(order), state))
        report, state = self._reports.get()
        return to_bytes(report), state

    def pulse(self) -> Pulse:
        """Where the work is. Answers while the work goes on."""
        if self._session is None:
            return Pulse(self._talks, 0, 0.0)
        return Pulse(self._talks, self._session.unsaved_steps(), self._director.loss)

    def halt(self, reason: str) -> None:
        """Stop at the next item, saved."""
        if self._session is not None:
            self._session.halt(reason)

    def _ask(self, report: Report, state: Any) -> tuple[Order, Any]:
        self._reports.put((report, state))
        return self._orders.get()

    def _work(self) -> None:
        """The whole of the worker's life."""
        from autolrs.distributed.remote import Dismissed
        from autolrs.distributed.shipping import pack_error

        try:
            ended = Ended(result=self._train())
        except Dismissed:
            ended = Ended()
        except BaseException as error:
            ended = Ended(error=pack_error(error))
        report, state = (
            self._director.report(Want.nothing, ended=ended) if self._director else (Report(ended=ended), None)
        )
        self._reports.put((report, state))

    def _train(self) -> bytes:
        """Run the user's function; its result, pickled."""
        import torch
        from ray import cloudpickle

        from autolrs.distributed.remote import RemoteDirector
        from autolrs.distributed.shipping import pack_result
        from autolrs.session import Session
        from autolrs.snapshot import seed_everything

        setup: Setup = cloudpickle.loads(self._setup)
        torch.set_num_threads(setup.threads)
        torch.set_default_dtype(getattr(torch, setup.dtype))
        if torch.are_deterministic_algorithms_enabled() != setup.deterministic:  # a call imports torch's compiler: 1 s
            torch.use_deterministic_algorithms(setup.deterministic)
        train = setup.train.unpack()
        self._director = RemoteDirector(setup, self._ask)
        self._session = Session(self._director, args=setup.args, tuned=setup.tuned, replay_memory=setup.replay_memory)
        seed_everything(setup.settings.seed)
        try:
            return pack_result(train(self._session))
        finally:
            self._session.close()
