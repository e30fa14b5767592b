"""`autolrs submit`: what is sent, what is refused, and jobs on a real head node on this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from tuned_loops import wait_for

from autolrs import jobs, load_study
from autolrs.errors import SettingError
from autolrs.storage import StudyStore

# What is sent


def test_a_job_is_tune_on_ray_that_goes_on_where_it_was() -> None:
    command = jobs.entrypoint("a b.py:train", ["--steps", "10", "--storage", "/shared/runs"])
    assert command == (
        "python -m autolrs.cli tune 'a b.py:train' --steps 10 --storage /shared/runs --executor ray --resume auto"
    )
    own = jobs.entrypoint("t.py:f", ["--storage=sqlite:////s.db", "--checkpoint-dir=/c", "--resume=must"], python="py3")
    assert own == (
        "py3 -m autolrs.cli tune t.py:f --storage=sqlite:////s.db --checkpoint-dir=/c --resume=must --executor ray"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"`--storage` must be a URL or an absolute path that all nodes see, but got None"),
        (["--storage", "runs"], "but got 'runs'"),
        (["--storage", "postgresql://db/x"], "`--checkpoint-dir` must be .* but got None"),
        (["--storage", "postgresql://db/x", "--checkpoint-dir", "c"], "`--checkpoint-dir` must be .* but got 'c'"),
    ],
)
def test_a_storage_that_ends_with_the_job_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        jobs.entrypoint("t.py:train", options)


def test_what_a_job_does_not_need_is_not_sent_and_too_much_is_refused(tmp_path: Path) -> None:
    for name in ("train.py", ".venv/lib/big", "autolrs-runs/x/study.journal", "pkg/__pycache__/a.pyc", "data/raw"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 1000)
    assert jobs.check_size(tmp_path, jobs.EXCLUDES) == 2000
    os.truncate(tmp_path / "data" / "raw", 101 * 2**20)
    with pytest.raises(SettingError, match=r"has 101 MiB to send, but Ray takes 100 MiB \(largest: data 101 MiB"):
        jobs.check_size(tmp_path, jobs.EXCLUDES)
    assert jobs.check_size(tmp_path, (*jobs.EXCLUDES, "data")) == 1000
    with pytest.raises(SettingError, match="must be a folder"):
        jobs.check_size(tmp_path / "train.py", ())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def test_a_cluster_that_nobody_named_or_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SettingError, match="say --address http://HEAD:8265, or set RAY_ADDRESS"):
        jobs.submit("true", address=None, working_dir=tmp_path)
    nobody = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SettingError, match=f"nobody answers at {nobody}: is it the dashboard's address"):
        jobs.submit("true", address=nobody, working_dir=tmp_path)


# Jobs on a head node

TRAIN = """
import time
import torch

def train(session):
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session.track(model=model, optimizer=optimizer)
    for _ in session.batches([0] * 10):
        time.sleep(session.args.get("seconds", 0.0))
        if session.args.get("fails"):
            raise ZeroDivisionError("mine")
        loss = model(torch.randn(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        session.report(loss)
    return model.weight.tolist()
"""


@pytest.fixture(scope="module", params=["open", "token"])
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node on loopback; where it is, and what its users have in their environment."""
    port, token = free_port(), tmp_path_factory.mktemp("secret") / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    users = {"RAY_AUTH_MODE": "disabled"} if request.param == "open" else secret
    binaries = str(Path(sys.executable).parent)
    patience = {"RAY_agent_register_timeout_ms": "120000"}  # on a busy machine
    own = {"PATH": f"{binaries}:{os.environ['PATH']}"}
    environment = os.environ | users | own | patience
    command = [f"{binaries}/ray", "start", "--head", "--block", "--port=0", "--num-cpus=2", "--disable-usage-stats"]
    options = ["--node-ip-address=127.0.0.1", f"--dashboard-port={port}", "--include-dashboard=true"]
    for _ in range(3):  # on a busy machine Ray's own processes wait for each other in vain
        with subprocess.Popen([*command, *options], env=environment, stdout=subprocess.DEVNULL) as process:
            try:
                if takes_jobs(process, f"http://127.0.0.1:{port}", environment):
                    yield {"address": f"http://127.0.0.1:{port}", **users}
                    return
            finally:
                head = psutil.Process(process.pid)
                for each in [*head.children(recursive=True), head]:
                    each.kill()
    pytest.fail("no head node began")


def takes_jobs(head: subprocess.Popen[bytes], address: str, environment: Mapping[str, str]) -> bool:
    """Wait until the head node does; False if it ends before."""
    ask = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--no-wait", "--address", address, "--", "true"]
    for _ in range(20):
        if subprocess.run(ask, env=environment, capture_output=True, check=False).returncode == 0:
            return True
        if head.poll() is not None:
            return False
        time.sleep(1)
    return False


@pytest.fixture
def here(head: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh directory with nothing but the loop."""
    for name, value in head.items():
        if name != "address":
            monkeypatch.setenv(name, value)
    folder = tmp_path / "fresh"
    folder.mkdir()
    (folder / "loop.py").write_text(TRAIN)
    monkeypatch.chdir(folder)
    return folder


def submit(head: dict[str, str], storage: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autolrs.cli", "submit", "loop.py:train", "--address", head["address"]]
    options = ["--steps", "60", "--name", "job", "--storage", str(storage), "--search-budget", "0.5", *more]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.slow
def test_a_job_from_a_fresh_directory(head: dict[str, str], here: Path, tmp_path: Path) -> None:
    done = submit(head, tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "probe 0.0 at rate" in done.stdout + done.stderr
    assert "search cost" in done.stdout
    study = load_study("job", str(tmp_path / "runs"))
    assert study.finished
    assert not list(here.glob("autolrs-runs"))


@pytest.mark.slow
def test_a_job_that_fails_passes_its_exit_code_and_traceback_on(
    head: dict[str, str], here: Path, tmp_path: Path
) -> None:
    done = submit(head, tmp_path / "runs", "--arg", "fails=1")
    assert done.returncode == 1
    assert "ZeroDivisionError: mine" in done.stdout
    assert re.search(r'loop.py", line \d+, in train', done.stdout)


@pytest.mark.slow
def test_a_jobs_driver_is_killed_and_the_same_command_goes_on(head: dict[str, str], here: Path, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    whole = submit(head, tmp_path / "whole")
    assert whole.returncode == 0
    thread = threading.Thread(target=lambda: codes.append(submit(head, storage, "--arg", "seconds=0.1").returncode))
    codes: list[int] = []
    thread.start()

    def has_probed() -> bool:
        if not StudyStore.exists("job", str(storage)):
            return False
        with StudyStore.open("job", storage=storage, readonly=True) as store:
            return any(type(event).__name__ == "Probed" for event in store.events())

    wait_for(has_probed, seconds=120)
    (driver,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if (words := process.info["cmdline"] or [])[1:4] == ["-m", "autolrs.cli", "tune"] and str(storage) in words
    ]
    driver.send_signal(signal.SIGKILL)
    thread.join(120)
    assert codes != [0]
    assert not load_study("job", str(storage)).finished
    assert submit(head, storage).returncode == 0
    found, expected = (load_study("job", str(where)) for where in (storage, tmp_path / "whole"))
    assert found.result == expected.result
    assert found.schedule.to_json() == expected.schedule.to_json()


INTERRUPTED = """
import sys
from pathlib import Path

from autolrs import jobs

def write(text):
    sys.stdout.write(text)
    if "stage 0 begins" in text:
        raise KeyboardInterrupt  # as Ctrl-C does

def ask():
    print("asked")
    return True

address, *options = sys.argv[1:]
command = jobs.entrypoint("loop.py:train", options)
jobs.submit(command, address=address, working_dir=Path(), ask=ask, write=write)
"""


@pytest.mark.slow
def test_ctrl_c_asks_and_a_stopped_job_goes_on(head: dict[str, str], here: Path, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    options = ["--steps", "60", "--name", "job", "--storage", str(storage), "--search-budget", "0.5"]
    command = [sys.executable, "-c", INTERRUPTED, head["address"], *options, "--arg", "seconds=0.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.count("asked") == 1, done.stderr
    assert "was told to stop; the same command goes on from its last checkpoint" in done.stderr
    time.sleep(4)  # Ray waits 3 s between SIGTERM and SIGKILL
    assert not load_study("job", str(storage)).finished
    assert submit(head, storage, "--resume", "must").returncode == 0


@pytest.mark.slow
def test_without_the_token_the_cluster_says_what_is_missing(
    head: dict[str, str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if head["RAY_AUTH_MODE"] == "disabled":
        pytest.skip("this head lets everybody in")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    code = (
        "import sys\nfrom pathlib import Path\nfrom autolrs import jobs\n"
        f"jobs.submit('true', address={head['address']!r}, working_dir=Path())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert re.search(r"SettingError: http://127.0.0.1:\d+ wants a token: set RAY_AUTH_MODE=token", done.stderr)
