"""The command line: what it prints where, and its exit codes. `tune` runs for real, on a tiny regression."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autolrs.cli import main
from autolrs.schedules import Schedule
from autolrs.study import load_study

LOOP = """
import torch
from torch import nn
import autolrs

def train(session):
    data = [torch.randn(8, 4) for _ in range(6)]
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session.track(model=model, optimizer=optimizer)
    for step, x in enumerate(session.batches(data)):
        if step == session.args.get("fail_at"):
            raise ZeroDivisionError("mine")
        loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        session.report(loss)
        if session.args.get("slow"):
            import time; time.sleep(0.02)
    return {"scale": session.args.get("scale", 1)}
"""
TUNE = ("tune", "loop.py:train", "--steps", "60", "--space", "sgd", "--name", "demo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a loop and a finished study of it, `demo`."""
    path = tmp_path_factory.mktemp("cli")
    (path / "loop.py").write_text(LOOP)
    return path


@pytest.fixture
def run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*args, code=0):
        with pytest.raises(SystemExit) as exit:
            main(args)
        out, err = capsys.readouterr()
        assert (exit.value.code or 0) == code, out + err
        return out, err

    return run


@pytest.fixture
def demo(run, folder):
    if not (folder / "autolrs-runs" / "demo").exists():
        run(*TUNE)
    return run


# tune


def test_tune_prints_results_on_stdout_and_progress_on_stderr(run, folder):
    out, err = run(*TUNE[:-1], "first", "--set", "strategy.length=0.2", "--arg", "scale=7")
    assert re.search(r"study +first in autolrs-runs", out)
    assert re.search(r"final loss +\d", out)
    assert "{'scale': 7}" in out
    assert "search cost" in out
    assert "final.safetensors" in out
    assert "\nSchedule\n" in out
    assert "probe 0.0 at rate" in err
    assert err.splitlines()[-1].startswith("finished, loss ")
    study = load_study("first", str(folder / "autolrs-runs"))
    assert study.finished
    assert study.result == {"scale": 7}
    assert study.record.settings.options["length"] == 0.2


def test_set_changes_the_space(run):
    run(*TUNE[:-1], "narrow", "--set", "space.bounds=[1e-3,2e-3]", "--set", "space.initial=")
    study = load_study("narrow")
    assert study.record.settings.space.bounds == (1e-3, 2e-3)
    assert all(1e-3 <= rate <= 2e-3 for rate in study.trials_dataframe().rate)


def test_the_users_exception_has_its_traceback_and_says_how_to_resume(run):
    _, err = run(*TUNE[:-1], "failing", "--arg", "fail_at=20", code=1)
    assert "ZeroDivisionError: mine" in err
    assert 'loop.py", line 13, in train' in err
    assert "study 'failing' in autolrs-runs has" in err
    assert "run the same again to go on" in err
    run(*TUNE[:-1], "failing")
    assert load_study("failing").finished


def test_stopping_exits_3_and_the_same_command_goes_on(run):
    slow = (*TUNE[:-1], "slow", "--arg", "slow=1")
    out, err = run(*slow, "--max-seconds", "0.1", code=3)
    assert out == ""
    assert "stopped: " in err
    run(*slow)
    assert load_study("slow").finished


def test_ctrl_c_saves_and_exits_3(folder):
    command = [sys.executable, "-m", "autolrs.cli", *TUNE[:-1], "interrupted", "--arg", "slow=1", "--steps", "2000"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("probe 0.1"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 3, rest
    assert "stopped: " in rest
    assert "Traceback" not in rest


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("tune", "loop.py:tran", "--steps", "60"), "unknown function in loop.py 'tran'; known: train"),
        (("tune", "nothing.py:train", "--steps", "60"), "there is no file nothing.py"),
        (("tune", "loop.py:train", "--steps", "60", "--space", "sdg"), "unknown search space 'sdg'"),
        (("tune", "loop.py:train", "--steps", "60", "--strategy", "h"), "unknown strategy 'h'"),
        (("tune", "loop.py:train", "--steps", "60", "--curve-model", "h"), "unknown curve model 'h'"),
        (("tune", "loop.py:train", "--steps", "60", "--set", "strategy.lenght=1"), "did you mean 'length'"),
        (("tune", "loop.py:train", "--steps", "60", "--cpus-per-worker", "2"), "--cpus-per-worker 2 needs --executor"),
        (("tune", "loop.py:train", "--steps", "60", "--gpus-per-worker", "1"), "needs --executor ray"),
        (("tune", "loop.py:train", "--steps", "60", "--resume", "must", "--name", "new"), "no study 'new'"),
        (("show", "nope"), "no study 'nope' in autolrs-runs; studies there: .*demo"),
        (("plot", "nope"), "no study 'nope'"),
        (("export", "nope"), "no study 'nope'"),
        (("clean", "nope"), "no study 'nope'"),
        (("plot", "demo", "-o", "a.pdf"), "must end in .png or .html"),
    ],
)
def test_the_users_errors_are_one_line_and_exit_1(demo, args, message):
    out, err = demo(*args, code=1)
    assert out == ""
    assert re.match(rf"error: .*{message}", err)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "args",
    [("tune", "loop.py:train"), ("tune", "loop.py:train", "--steps", "0"), ("show",), ("nothing",), ("tune", "--no")],
)
def test_wrong_usage_exits_2(run, args):
    assert "Usage: " in run(*args, code=2)[1]


def test_plan_prints_the_cost_and_trains_nothing(run, folder):
    before = sorted(folder.rglob("*"))
    out, _ = run("tune", "loop.py:train", "--steps", "1000", "--strategy", "autolrs", "--set", "strategy.k=5", "--plan")
    assert re.search(r"\n +0 +0 +5 +6 +30 *\n", out)
    assert re.search(r"search cost at most 0\.\d+", out)
    assert sorted(path for path in folder.rglob("*") if "__pycache__" not in str(path)) == [
        path for path in before if "__pycache__" not in str(path)
    ]


# The rest


def test_show_and_plot(demo, folder):
    assert "Probes" in demo("show", "demo")[0]
    assert demo("plot", "demo")[0].strip() == "demo.png"
    assert (folder / "demo.png").read_bytes()[:4] == b"\x89PNG"


def test_exports_are_the_schedule(demo, folder):
    schedule = load_study("demo", str(folder / "autolrs-runs")).schedule
    assert Schedule.from_json(json.loads(demo("export", "demo")[0])) == schedule
    assert demo("export", "demo", "--format", "csv")[0].count("\n") == 61
    assert demo("export", "demo", "--format", "python", "-o", "rates.py")[0] == ""
    space = {}
    exec((folder / "rates.py").read_text(), space)
    assert [space["lr"](step) for step in range(60)] == [schedule(step) for step in range(60)]


def test_spaces_lists_them(run):
    assert {"sgd", "adam", "adamw"} <= {line.split()[0] for line in run("spaces")[0].splitlines()}


def test_clean_keeps_the_final_and_the_last_two(run, folder):
    run(*TUNE[:-1], "full", "--checkpoint-every", "10")
    checkpoints = folder / "autolrs-runs" / "full" / "checkpoints"
    out, _ = run("clean", "full")
    assert re.search(r"MB removed, .* MB kept in autolrs-runs/full/checkpoints", out)
    names = {path.name for path in checkpoints.glob("*.safetensors")}
    assert "final.safetensors" in names
    assert len(names) <= 3
    assert load_study("full").checkpoint("final").is_file()


def test_version(run):
    assert re.fullmatch(r"autolrs \d+\.\d+\.\d+\S*\n", run("--version")[0])


def test_help_is_quick_and_loads_nothing_heavy(tmp_path):
    heavy = ["torch", "botorch", "gpytorch", "ray", "matplotlib", "optuna", "pandas", "scipy", "numpy"]
    code = (
        "import json, sys\nfrom autolrs.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    )
    times = []
    for _ in range(3):  # the best of a few: other processes share the cores
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
        times.append(time.perf_counter() - start)
        assert "tune" in done.stdout
        assert json.loads(done.stdout.splitlines()[-1]) == []
    assert min(times) < 0.4


def test_the_command_is_installed():
    command = Path(sys.executable).with_name("autolrs")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("autolrs ")
