"""Opening a study: a new one, or an unfinished one to go on with, if it is the same run under the same conditions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch

from autolrs import engine
from autolrs.director import Director
from autolrs.errors import IdentityError, UnknownNameError
from autolrs.records import Elapsed, Lost, Moved, Record, Settings
from autolrs.settings import changes
from autolrs.storage import StudyStore

log = logging.getLogger("autolrs")

Resume = Literal["auto", "never", "must"]


def open_study(
    name: str, settings: Settings, resume: Resume, around: Mapping[str, Any], **where: Any
) -> tuple[StudyStore, Record]:
    """The study to work on: an unfinished one, or a new one under a free name."""
    if resume not in ("auto", "never", "must"):
        raise UnknownNameError.of("resume mode", resume, ("auto", "never", "must"))
    base, number = name, 1
    while resume == "never" and StudyStore.exists(name, where["storage"]):
        number, name = number + 1, f"{base}-{number + 1}"
    while True:
        store = StudyStore.open(name, **where, create=resume != "must")
        try:
            old = store.settings
            if old is None:
                store.create_settings(settings, around)
                return store, Record(settings)
            record = engine.replay(old, store.events())
            returned = record.finished and store.result is not None
            if returned and (resume == "must" or changes(old, settings)):
                raise _finished(name, old, settings)
            if not returned:
                _check_identity(name, old, settings)
                return store, record
        except BaseException:
            store.close()
            raise
        store.close()
        number, name = number + 1, f"{base}-{number + 1}"
        log.warning("the study is finished: starting another under the name %s", name)


def account_for_crash(store: StudyStore, director: Director) -> None:
    """If the last process on this study was killed, count what it lost, as of its last heartbeat."""
    events, beat = store.events(), store.last_heartbeat()
    farewell = max((n for n, event in enumerate(events, 1) if isinstance(event, Elapsed)), default=0)
    if beat is None or beat["events"] < farewell:  # nobody has been at work since somebody left in good order
        return
    if beat["events"] == len(events) and beat["running"]:
        director.tell(Lost(beat["running"]))
    director.tell(Elapsed(beat["seconds"]))


def environment() -> dict[str, Any]:
    """What "bit for bit" depends on."""
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "botorch": version("botorch"),
        "gpytorch": version("gpytorch"),
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def check_environment(old: Mapping[str, Any], now: Mapping[str, Any], director: Director) -> None:
    """Say, and remember, that a run is not continued as it was begun."""
    different = [f"{key} was {old[key]}, now {now[key]}" for key in now if key in old and old[key] != now[key]]
    if different and director.record.own_rate is not None:
        log.warning("resuming under other conditions (%s): not bit for bit the same run", "; ".join(different))
        director.tell(Moved("; ".join(different)))


def _check_identity(name: str, old: Settings, new: Settings) -> None:
    if different := changes(old, new):
        raise IdentityError(
            f"study {name!r} was begun with other settings: {different}. Put them back to resume it, or "
            "choose another name."
        )


def _finished(name: str, old: Settings, new: Settings) -> IdentityError:
    if new.steps > old.steps:
        return IdentityError(
            f"study {name!r} is finished: its {old.steps} steps are done and its decay to zero is spent, so it cannot "
            f"be extended to {new.steps}. Start a new study with the steps you want (another name)."
        )
    if different := changes(old, new):
        return IdentityError(f"study {name!r} is finished, and had other settings: {different}. Choose another name.")
    return IdentityError(f"study {name!r} is finished: choose another name, or let resume='auto' do so.")
