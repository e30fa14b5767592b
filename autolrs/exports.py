"""A schedule written out for use elsewhere: JSON, CSV, or Python that needs nothing but itself."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Final

from autolrs.errors import UnknownNameError
from autolrs.lookahead import EVERY, SHARE
from autolrs.schedules import Schedule

_PYTHON: Final = '''\
"""Learning-rate schedule of the autolrs study {name!r}: {steps} steps."""

import math

# start, stop, shape, first and last rate, and the span from the one to the other
PIECES = (
{pieces}
)
RATIOS = {ratios}  # rate of each parameter group over lr(step)
MOMENTUM = {momentum}  # that the rates go with; None: the optimizer's own


def lr(step):
    """Reference rate of the update numbered `step`, from 0."""
    for start, stop, shape, first, last, begin, end in PIECES:
        if step < stop:
            break
    step = min(step, stop)
    if shape == "constant":
        return first
    u = (step - begin) / (end - begin)
    if shape == "cosine":
        u = 0.5 - 0.5 * math.cos(math.pi * u)
    elif shape == "sqrt":
        u = math.sqrt(u)
    return first + (last - first) * u


def scheduler(optimizer):
    """A LambdaLR that sets exactly these rates: call its `step()` after each `optimizer.step()`."""
    from torch.optim.lr_scheduler import LambdaLR

    for group in optimizer.param_groups:
        group["initial_lr"] = 1.0  # LambdaLR multiplies by it
        if MOMENTUM is not None and "betas" in group:
            group["betas"] = (MOMENTUM, *group["betas"][1:])
        elif MOMENTUM is not None:
            group["momentum"] = MOMENTUM
{look_ahead}    return {kind}(optimizer, [lambda step, ratio=ratio: lr(step) * ratio for ratio in RATIOS])
'''

_LOOKAHEAD: Final = '''
    class LookaheadLR(LambdaLR):
        """Slow weights follow the optimizer's, and every {every} updates draw them back."""

        slow = ()

        def step(self, epoch=None):
            super().step(epoch)
            if self.last_epoch > 0 and not self.slow:
                self.slow = [p.detach().clone() for p in self.weights()]
            elif self.last_epoch > 0 and self.last_epoch % {every} == 0:
                for p, slow in zip(self.weights(), self.slow):
                    p.data.copy_(slow.lerp_(p.data, {share}))

        def state_dict(self):
            return super().state_dict() | {{"slow": [slow.clone() for slow in self.slow]}}

        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)
            self.slow = [slow.to(p.device, copy=True) for slow, p in zip(self.slow, self.weights())]

        def weights(self):
            return [p for group in self.optimizer.param_groups for p in group["params"]]

'''


def export(schedule: Schedule, form: str, *, name: str = "") -> str:
    """The schedule as text in one of `FORMATS`; every float reads back as the same float.

    Args:
        form: "json" is what `Schedule.load` reads; "csv" has a line for each step; "python" is a module with
            `lr(step)` in plain Python and `scheduler(optimizer)` for torch.
        name: the study's, for headings.

    Raises:
        UnknownNameError: there is no such format.
    """
    if form not in _WRITERS:
        raise UnknownNameError.of("export format", form, FORMATS)
    return _WRITERS[form](schedule, name)


def _json(schedule: Schedule, name: str) -> str:
    return json.dumps(schedule.to_json(), indent=1) + "\n"


def _csv(schedule: Schedule, name: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "rate", *(f"group_{group}" for group in range(len(schedule.ratios)))])
    for step in range(schedule.steps):
        writer.writerow([step, repr(schedule(step)), *map(repr, schedule.rates(step))])
    return text.getvalue()


def _python(schedule: Schedule, name: str) -> str:
    rows = []
    for piece in schedule.pieces:
        begin = piece.start if piece.begin is None else piece.begin
        end = piece.stop if piece.end is None else piece.end
        rows.append(f"    {(piece.start, piece.stop, piece.shape, piece.first, piece.last, begin, end)!r},")
    kind, look_ahead = "LambdaLR", ""
    if schedule.lookahead:
        kind, look_ahead = "LookaheadLR", _LOOKAHEAD.format(every=EVERY, share=SHARE)
    return _PYTHON.format(
        name=name,
        steps=schedule.steps,
        pieces="\n".join(rows),
        ratios=repr(schedule.ratios),
        momentum=repr(schedule.momentum),
        look_ahead=look_ahead,
        kind=kind,
    )


_WRITERS: Final[dict[str, Callable[[Schedule, str], str]]] = {"json": _json, "csv": _csv, "python": _python}
FORMATS: Final = tuple(_WRITERS)
