"""`autolrs submit`: a run as a job of a Ray cluster, by the Ray Jobs API.

The job is `autolrs tune` with `--executor ray`, `--resume auto` and a storage that outlives it, so that a job that is
submitted again, or restarted on another node, goes on where the last one was.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from autolrs.backends import is_url, masked_url
from autolrs.errors import AutoLRSError, SettingError, StoppedError, UnsupportedError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

log = logging.getLogger("autolrs")

LIMIT: Final = 100 * 2**20
"""Bytes of a package, not compressed, that Ray takes."""
EXCLUDES: Final = (
    *(".git", ".hg", ".svn", ".venv", "venv", "env", "__pycache__", "*.pyc", ".mypy_cache", ".ruff_cache"),
    *(".pytest_cache", ".hypothesis", ".ipynb_checkpoints", "node_modules", "*.egg-info", "build", "dist", "wandb"),
    "autolrs-runs",
)
"""What no job needs of a working directory."""
POLL: Final = 1.0
"""Seconds between two looks at a job that no longer logs, and between two tries to submit one."""
YOUNG: Final = 60.0
"""Seconds in which a cluster that has begun must take jobs."""


def entrypoint(train: str, options: Sequence[str], *, python: str = "python") -> str:
    """The job's command: `autolrs tune` with what a job needs.

    Raises:
        SettingError: there is no storage that outlives the job's working directory.
    """
    words = [*options]
    given = {word.partition("=")[0] for word in words}
    if "--executor" not in given:
        words += ["--executor", "ray"]
    if "--resume" not in given:
        words += ["--resume", "auto"]
    for option in ("--storage", "--checkpoint-dir"):
        value = _value(words, option)
        if option == "--checkpoint-dir" and not is_url(_value(words, "--storage")):
            continue  # a folder of studies holds its checkpoints, too
        if value is None or not (is_url(value) or Path(value).is_absolute()):
            raise SettingError(
                f"a job's working directory ends with it, so `{option}` must be a URL or an absolute path that all "
                f"nodes see, but got {value!r}: say {option} /shared/autolrs-runs, or the like."
            )
    return shlex.join([python, "-m", "autolrs.cli", "tune", train, *words])


def check_size(folder: Path, excludes: Sequence[str]) -> int:
    """Bytes of the working directory that are sent.

    Raises:
        SettingError: more than Ray takes; the message has the largest parts.
    """
    if not folder.is_dir():
        raise SettingError(f"the working directory must be a folder, but got {str(folder)!r}.")
    sizes: dict[str, int] = {}
    for path in _files(folder, excludes):
        part = path.relative_to(folder).parts[0]
        sizes[part] = sizes.get(part, 0) + path.stat().st_size
    total = sum(sizes.values())
    if total > LIMIT:
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
        shown = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in largest)
        raise SettingError(
            f"{folder} has {total / 2**20:,.0f} MiB to send, but Ray takes {LIMIT / 2**20:.0f} MiB (largest: {shown}). "
            "Leave out what the job does not need, `--exclude NAME`, and read data from a place that all nodes see."
        )
    return total


def submit(
    command: str,
    *,
    address: str | None,
    working_dir: Path,
    excludes: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    detach: bool = False,
    ask: Callable[[], bool] = lambda: False,
    write: Callable[[str], object] = sys.stdout.write,
) -> int:
    """Run `command` as a job, its log through `write`; its exit code, or 0 if it was left alone.

    Args:
        address: of the cluster's dashboard, such as http://127.0.0.1:8265; None: RAY_ADDRESS.
        ask: at Ctrl-C, whether to stop the job; else it goes on by itself.

    Raises:
        SettingError: the cluster cannot be reached or refuses us, or the working directory is too large.
        StoppedError: the job was stopped, by us or by others.
    """
    left_out = (*EXCLUDES, *excludes)
    size = check_size(working_dir, left_out)
    with _explained(address):
        client = _client(address)
        package = {"working_dir": str(working_dir), "excludes": list(left_out), "env_vars": dict(environment or {})}
        job = _accepted(lambda: client.submit_job(entrypoint=command, runtime_env=package))
    log.info("job %s: %.1f MiB sent, %s", job, size / 2**20, masked_url(command))
    if detach:
        write(f"{job}\n")
        return 0
    try:
        with _explained(address):
            return _follow(client, job, write)
    except KeyboardInterrupt:
        if not ask():
            log.info("job %s goes on; `ray job logs %s --follow` shows it, `ray job stop %s` stops it", job, job, job)
            return 0
        with _explained(address):
            client.stop_job(job)
        raise StoppedError(f"job {job} was told to stop; the same command goes on from its last checkpoint.") from None


def _accepted(submit: Callable[[], str]) -> str:
    """Name of the job, from a cluster that may only just have begun."""
    deadline = time.monotonic() + YOUNG
    while True:
        try:
            return submit()
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(POLL)


def _follow(client: JobSubmissionClient, job: str, write: Callable[[str], object]) -> int:
    """Write the job's log to its end; its exit code."""

    async def tail() -> None:
        async with aclosing(client.tail_job_logs(job)) as texts:
            async for text in texts:
                write(text)

    asyncio.run(tail())
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(POLL)
    info = client.get_job_info(job)
    if status.value == "STOPPED":
        raise StoppedError(f"job {job} was stopped; the same command goes on from its last checkpoint.")
    if status.value == "FAILED" and not info.driver_exit_code:
        raise SettingError(f"job {job} could not run: {info.message}")
    return int(info.driver_exit_code or 0)


def _client(address: str | None) -> JobSubmissionClient:
    try:
        import aiohttp as aiohttp  # what a job's log comes through; Ray itself would fail only later
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise UnsupportedError("`autolrs submit` needs Ray's job client: pip install 'autolrs[submit]'.") from error
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        raise SettingError(
            "no cluster to submit to: say --address http://HEAD:8265, or set RAY_ADDRESS. `ray start --head` starts "
            "one on this machine."
        )
    return JobSubmissionClient(address)


@contextmanager
def _explained(address: str | None) -> Iterator[None]:
    """Ray's errors in words."""
    try:
        yield
    except AutoLRSError:
        raise
    except Exception as error:  # Ray's have no base of their own
        where, text = address or os.environ.get("RAY_ADDRESS"), str(error)
        if type(error).__name__ == "AuthenticationError" or "401" in text or "403" in text:
            raise SettingError(
                f"{where} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the file ~/.ray/auth_token to "
                "what the cluster was started with."
            ) from error
        if isinstance(error, ConnectionError):
            raise SettingError(
                f"nobody answers at {where}: is it the dashboard's address (port 8265), does the cluster run "
                "(`ray status` there), and is the port open, or forwarded, to here?"
            ) from error
        raise SettingError(f"the cluster at {where} refused: {text}") from error


def _files(folder: Path, excludes: Sequence[str]) -> Iterator[Path]:
    for path in folder.iterdir():
        if any(fnmatch.fnmatch(path.name, pattern.rstrip("/")) for pattern in excludes):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path, excludes)
        elif path.is_file():
            yield path


def _value(words: Sequence[str], option: str) -> str | None:
    """What an option is given, as `--option value` or `--option=value`."""
    for word, after in zip(words, (*words[1:], None), strict=True):
        if word == option:
            return after
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def number(words: Sequence[str], option: str, default: float, *, least: float = 0) -> float:
    """A number that is given to the job, for the manifests.

    Raises:
        SettingError: it is none, or less than `least`, or has no end.
    """
    given = _value(words, option)
    try:
        value = default if given is None else float(given)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise SettingError(f"{option} must be a number, at least {least:g}, but got {given!r}.")
    return value
