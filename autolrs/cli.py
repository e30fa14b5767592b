"""The command line: `autolrs tune | submit | show | plot | export | predict | spaces | clean`.

Results go to stdout, progress and logs to stderr. Exit codes: 0 done, 1 an error of the user's, 2 wrong usage,
3 stopped but resumable. Whatever is slow to import is imported by the command that needs it.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from autolrs.errors import AutoLRSError, SettingError, StoppedError
from autolrs.pfn_cli import app as pfn_app

if TYPE_CHECKING:
    from rich.console import Console

    from autolrs.strategies.common import PlannedStage

USER_ERROR: Final = 1
RESUMABLE: Final = 3
INTERRUPTED: Final = 130  # what shells make of a SIGINT

app = typer.Typer(
    help="Tune a network's learning-rate schedule while it trains.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(pfn_app, name="pfn")


class Resume(StrEnum):
    auto = "auto"
    never = "never"
    must = "must"


class Format(StrEnum):
    json = "json"
    csv = "csv"
    python = "python"


Name = Annotated[str, typer.Argument(help="Name of the study.", metavar="NAME")]
Storage = Annotated[
    str | None, typer.Option(help="Folder, or Optuna storage URL, of the study. [default: autolrs-runs]", metavar="URL")
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"autolrs {version('autolrs')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def tune(
    train: Annotated[str, typer.Argument(help="Your loop: train.py:train or package.module:train.", metavar="TRAIN")],
    steps: Annotated[int, typer.Option(min=1, help="Kept optimizer steps of the whole run.")],
    space: Annotated[str, typer.Option(help="Search space: its name (`autolrs spaces`) or a YAML file.")] = "default",
    strategy: Annotated[str, typer.Option(help="horizon or autolrs.")] = "horizon",
    search_budget: Annotated[
        float | None, typer.Option(min=0, help="Probe steps / steps at most. [default: the strategy's]")
    ] = None,
    curve_model: Annotated[str, typer.Option(help="Extrapolates a probe's losses.")] = "auto",
    executor: Annotated[str, typer.Option(help="Where the loop runs: serial or ray.")] = "serial",
    workers: Annotated[int, typer.Option(min=1, help="Probes at once, on Ray.")] = 1,
    cpus_per_worker: Annotated[float | None, typer.Option(min=0, help="CPUs for each worker. [default: 1]")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(min=0, help="GPUs for each worker.")] = None,
    deterministic: Annotated[
        bool, typer.Option(help="Let a proposal depend on finished batches of probes alone.")
    ] = True,
    storage: Storage = None,
    name: Annotated[str | None, typer.Option(help="Name of the study. [default: the function's and a hash]")] = None,
    resume: Annotated[Resume, typer.Option(help="Go on with an unfinished study of that name.")] = Resume.auto,
    seed: Annotated[int, typer.Option(help="Of the run and of the search.")] = 0,
    checkpoint_dir: Annotated[str | None, typer.Option(help="Folder or URI (s3://...) for checkpoints.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="Kept steps between checkpoints.")] = None,
    replay_memory: Annotated[str, typer.Option(help="Memory for recorded batches.")] = "1GiB",
    max_seconds: Annotated[float | None, typer.Option(help="Stop, resumable, after this time.")] = None,
    average: Annotated[
        bool, typer.Option("--average", help="Let averaged weights be the final ones where they validate better.")
    ] = False,
    restore_best: Annotated[
        bool, typer.Option(help="Let a probe's end be the final state if the whole run ends higher.")
    ] = True,
    rescue: Annotated[bool, typer.Option(help="Roll back a run that breaks with a finite loss.")] = True,
    lookahead: Annotated[
        bool, typer.Option("--lookahead", help="Slow weights follow the optimizer's; for Adam and its kin.")
    ] = False,
    tuned: Annotated[str | None, typer.Option(help="Name, in `track`, of the optimizer to tune.")] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Let checkpoints hold pickles.")] = False,
    takeover: Annotated[bool, typer.Option("--takeover", help="Own a study that another process owns.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="strategy.KEY=VALUE or space.KEY=VALUE, as in YAML.")
    ] = None,
    arg: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for `session.args`.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print stages, probes and cost, and train nothing.")] = False,
) -> None:
    """Train, and find the learning-rate schedule meanwhile. The same command again resumes."""
    with _errors():
        from autolrs.arguments import load_train, parse, sections, space_with

        resources = {"CPU": cpus_per_worker, "GPU": gpus_per_worker}
        given = {name: count for name, count in resources.items() if count is not None}
        for name, count in given.items() if executor == "serial" else ():
            raise SettingError(f"--{name.lower()}s-per-worker {count:g} needs --executor ray.")
        changes = sections(set_ or ())
        session_args = parse(arg or (), "--arg")
        searched = space_with(space, changes["space"])
        function = load_train(train)
        if plan:
            _plan(steps, searched, strategy, search_budget, curve_model, changes["strategy"])
            return
        from autolrs.progress import ShowProgress
        from autolrs.tuner import tune as run

        console = _console(stderr=True)
        with _logs(console), ShowProgress(console) as progress:
            study = run(
                function,
                steps=steps,
                space=searched,
                strategy=strategy,
                options=changes["strategy"],
                search_budget=search_budget,
                curve_model=curve_model,
                executor=executor,
                workers=workers,
                resources_per_worker={"CPU": 1.0, **given} if executor == "ray" else None,
                deterministic=deterministic,
                storage=storage,
                name=name,
                resume=resume.value,
                seed=seed,
                checkpoint_dir=checkpoint_dir,
                checkpoint_every=checkpoint_every,
                replay_memory=replay_memory,
                max_seconds=max_seconds,
                average=average,
                restore_best=restore_best,
                rescue=rescue,
                lookahead=lookahead,
                tuned=tuned,
                allow_pickle=allow_pickle,
                takeover=takeover,
                args=session_args,
                callbacks=(progress,),
            )
        from autolrs.report import summary

        _console().print(summary(study))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    train: Annotated[str, typer.Argument(help="Your loop, in the working directory: train.py:train.", metavar="TRAIN")],
    address: Annotated[
        str | None, typer.Option(help="The cluster's dashboard: http://HEAD:8265. [default: RAY_ADDRESS]")
    ] = None,
    working_dir: Annotated[Path, typer.Option(help="Folder that is sent to the cluster.")] = Path(),
    exclude: Annotated[list[str] | None, typer.Option(help="Names not to send, beside .git, .venv, ...")] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the job's environment.")] = None,
    python: Annotated[str, typer.Option(help="The cluster's Python, which has autolrs.")] = "python",
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's name and leave it alone.")] = False,
    print_manifest: Annotated[
        str | None, typer.Option(help="Print a manifest for the job instead: kuberay or cluster.")
    ] = None,
) -> None:
    """Run `tune` as a job on a Ray cluster. All other options are those of `tune`; --storage is a must."""
    with _errors():
        from autolrs import jobs

        command = jobs.entrypoint(train, context.args, python=python)
        environment = dict(word.partition("=")[::2] for word in env or ())
        if print_manifest is not None:
            _print_manifest(print_manifest, command, context.args, environment)
            return
        console = _console(stderr=True)
        with _logs(console):
            code = jobs.submit(
                command,
                address=address,
                working_dir=working_dir,
                excludes=exclude or (),
                environment=environment,
                detach=detach,
                ask=_stop_or_detach,
                write=lambda text: typer.echo(text, nl=False),
            )
    raise typer.Exit(code)


def _print_manifest(kind: str, command: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
    from importlib.metadata import version

    from autolrs.jobs import number
    from autolrs.manifests import manifest

    resources = {"CPU": number(words, "--cpus-per-worker", 1), "GPU": number(words, "--gpus-per-worker", 0)}
    workers = int(number(words, "--workers", 1, least=1))
    name = command.partition(" tune ")[2].partition(":")[2].partition(" ")[0]
    text = manifest(
        kind, command, workers=workers, resources=resources, name=name, version=version("ray"), environment=environment
    )
    typer.echo(text, nl=False)


def _stop_or_detach() -> bool:
    """At Ctrl-C: whether to stop the job. Where nobody can be asked, it goes on."""
    import sys

    if not sys.stdin.isatty():
        return False
    answer: str = typer.prompt("\nstop the job, or detach and let it go on? [stop/detach]", default="detach", err=True)
    return answer.strip().lower().startswith("s")


@app.command()
def show(name: Name, storage: Storage = None) -> None:
    """Stages, probes, forecasts, schedule and cost of a study."""
    with _errors():
        from autolrs.report import show as show_study
        from autolrs.study import load_study

        show_study(load_study(name, storage), _console())


@app.command()
def plot(
    name: Name,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="FILE.png or FILE.html. [default: NAME.png]")
    ] = None,
    storage: Storage = None,
) -> None:
    """A study as a picture or a web page."""
    with _errors():
        from autolrs.plots import save
        from autolrs.study import load_study

        path = _in_a_folder(output or Path(f"{name}.png"))
        save(load_study(name, storage), path)
        typer.echo(path)


@app.command()
def export(
    name: Name,
    form: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.json,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File. [default: stdout]")] = None,
    storage: Storage = None,
) -> None:
    """The tuned schedule for use elsewhere."""
    with _errors():
        from autolrs.exports import export as export_schedule
        from autolrs.study import load_study

        text = export_schedule(load_study(name, storage).schedule, form.value, name=name)
        if output is None:
            typer.echo(text, nl=False)
        else:
            _in_a_folder(output).write_text(text, encoding="utf-8")


@app.command()
def predict(
    name: Name,
    schedule: Annotated[
        list[str] | None, typer.Option(help="cosine:3e-4, wsd:1e-3, ... or a JSON file of `export`; may be repeated.")
    ] = None,
    storage: Storage = None,
) -> None:
    """What the final training loss would have been under other schedules, by loss laws fitted to the study."""
    with _errors():
        from autolrs.predict_cli import report
        from autolrs.study import load_study

        _console().print(report(load_study(name, storage).record, schedule or ()))


@app.command()
def spaces() -> None:
    """The search spaces that come with autolrs."""
    with _errors():
        from autolrs.report import spaces_table

        _console().print(spaces_table())


@app.command()
def clean(name: Name, storage: Storage = None) -> None:
    """Remove a study's checkpoints but the final and the last two.

    While a search is going on, the checkpoint that it starts from stays, too.
    """
    with _errors():
        from autolrs.engine import replay
        from autolrs.storage import StudyStore

        with StudyStore.open(name, storage=storage, create=False) as store:
            before = store.checkpoints.size
            settings = store.settings
            assert settings is not None, "`open` finds only studies that have settings"
            stage = replay(settings, store.events()).stage
            store.checkpoints.prune(keep=2, protect={stage.start} if stage and not stage.decided else ())
            after = store.checkpoints.size
        typer.echo(
            f"{(before - after) / 1e6:.1f} MB removed, {after / 1e6:.1f} MB kept in {store.checkpoints.directory}"
        )


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the `autolrs` command; always raises SystemExit."""
    app(args=args)


def _plan(
    steps: int, space: Any, strategy: str, search_budget: float | None, curve_model: str, options: dict[str, Any]
) -> None:
    from autolrs.report import plan_table
    from autolrs.settings import settings_of
    from autolrs.strategies import strategy as strategy_of

    chosen = strategy_of(strategy, options, curve_model)
    settings = settings_of(
        steps=steps, space=space, strategy=chosen, search_budget=search_budget, curve_model=curve_model
    )
    stages: tuple[PlannedStage, ...] = chosen.plan(settings)  # type: ignore[attr-defined]  # those by name all have it
    _console().print(plan_table(settings, stages))


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


@contextmanager
def _errors() -> Iterator[None]:
    """Errors as messages and exit codes; only what is not ours gets a traceback."""
    try:
        yield
    except StoppedError as error:
        _complain("stopped", error)
        raise typer.Exit(RESUMABLE) from None
    except AutoLRSError as error:
        _complain("error", error)
        raise typer.Exit(USER_ERROR) from None
    except KeyboardInterrupt as error:
        _complain("interrupted", error)
        raise typer.Exit(INTERRUPTED) from None
    except typer.Exit:
        raise
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and "autolrs" in Path(trace.tb_frame.f_code.co_filename).parts[-2:-1]:
            trace = trace.tb_next
        notes, error.__notes__ = getattr(error, "__notes__", []), []
        typer.echo("".join(traceback.format_exception(type(error), error, trace or error.__traceback__)), err=True)
        for note in notes:
            typer.echo(note, err=True)
        raise typer.Exit(USER_ERROR) from None


def _in_a_folder(path: Path) -> Path:
    if not path.parent.is_dir():
        raise SettingError(f"cannot write {path}: there is no folder {path.parent}.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise SettingError(f"cannot write {path}: no permission, or a file system for reading only.")
    return path


def _complain(kind: str, error: BaseException) -> None:
    for line in (f"{kind}: {error}" if str(error) else kind, *getattr(error, "__notes__", ())):
        typer.echo(line, err=True)


@contextmanager
def _logs(console: Console) -> Iterator[None]:
    """The library's log on `console` for a while."""
    from rich.logging import RichHandler

    log = logging.getLogger("autolrs")
    handler = RichHandler(console=console, show_time=False, show_path=False)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


if __name__ == "__main__":
    main()
