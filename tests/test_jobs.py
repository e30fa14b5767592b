"""`autolrs submit`: what is sent, what is refused, and jobs on a real head node on this machine."""

from __future__ import annotations

import json
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
from typing import Any

import kubernetes_validate
import psutil
import pytest
import ray
import yaml
from jsonschema import Draft202012Validator, ValidationError, validate
from tuned_loops import wait_for

from autolrs import jobs, load_study
from autolrs.cli import main
from autolrs.errors import SettingError, UnknownNameError
from autolrs.manifests import manifest
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


# Manifests

# KubeRay's ray.io/v1 RayJob as far as a manifest of ours goes: names, types and required fields as in the Go types of
# its operator (ray-operator/apis/ray/v1), from which its CRD is generated, and what the operator itself checks besides
# (controllers/ray/utils/validation.go). Anything else is refused. The pods in it are Kubernetes' own, with its schema.
INT32 = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
GROUP: dict[str, Any] = {
    "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
    "template": {"type": "object"},
}
RAYJOB: dict[str, Any] = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}},
            "additionalProperties": False,
        },
        "spec": {
            "type": "object",
            "required": ["rayClusterSpec"],  # there is no other cluster to run on
            "properties": {
                "entrypoint": {"type": "string"},
                "backoffLimit": INT32,
                "shutdownAfterJobFinishes": {"const": True},  # else ttlSecondsAfterFinished is refused
                "ttlSecondsAfterFinished": INT32,
                "rayClusterSpec": {
                    "type": "object",
                    "required": ["headGroupSpec"],
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "headGroupSpec": {
                            "type": "object",
                            "required": ["rayStartParams", "template"],
                            "properties": GROUP,
                            "additionalProperties": False,
                        },
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["groupName", "maxReplicas", "minReplicas", "rayStartParams", "template"],
                                "properties": {
                                    "groupName": {"type": "string"},
                                    "replicas": INT32,
                                    "minReplicas": INT32,
                                    "maxReplicas": INT32,
                                    **GROUP,
                                },
                                "additionalProperties": False,
                            },
                        },
                    },
                    "additionalProperties": False,
                },
            },
            "dependentRequired": {"ttlSecondsAfterFinished": ["shutdownAfterJobFinishes"]},
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}
OPTIONS = ("--steps", "10", "--storage", "/s", "--workers", "3", "--cpus-per-worker", "2", "--gpus-per-worker", "1")


def printed(kind: str, capsys: pytest.CaptureFixture[str]) -> Any:
    with pytest.raises(SystemExit) as exit_:
        main(["submit", "pkg/My_train.py:Train_it", "--print-manifest", kind, *OPTIONS])
    assert exit_.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def check_rayjob(job: Any) -> None:
    """Raises ValidationError: KubeRay or Kubernetes would not take it."""
    validate(job, RAYJOB, cls=Draft202012Validator)
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["spec"]["containers"], "none is valid to Kubernetes, but not to KubeRay"
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}, "template": group["template"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_the_rayjob_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    job = printed("kuberay", capsys)
    Draft202012Validator.check_schema(RAYJOB)
    check_rayjob(job)
    assert job["metadata"]["name"] == "train-it"
    assert job["spec"]["entrypoint"].startswith("python -m autolrs.cli tune pkg/My_train.py:Train_it --steps 10")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 3
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1"}


@pytest.mark.parametrize("name", ["2024_run", "9", "_", "-x-", "a" * 39 + ".b", "Größe", "autolrs"])
@pytest.mark.parametrize("resources", [{}, {"CPU": 0.5, "GPU": 0.25}])
def test_whatever_a_study_is_called_its_rayjob_is_valid(name: str, resources: dict[str, float]) -> None:
    check_rayjob(yaml.safe_load(manifest("kuberay", "true", workers=1, resources=resources, name=name, version="2")))


def test_a_rayjob_with_a_slip_is_not_valid() -> None:
    """So that the check above means something: a misspelt field anywhere, or a number where text belongs."""
    text = manifest("kuberay", "true", workers=1, resources={}, name="a", version="2")
    for right, wrong in (
        ("name: a\n", "name: 1a\n"),
        ("minReplicas", "minimumReplicas"),
        ("num-cpus: '0'", "num-cpus: 0"),
        ("shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false"),
        ("image:", "picture:"),
        ("limits:", "limit:"),
    ):
        assert right in text
        with pytest.raises(ValidationError):
            check_rayjob(yaml.safe_load(text.replace(right, wrong)))


def test_the_cluster_is_valid_by_rays_own_schema(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = printed("cluster", capsys)
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    validate(cluster, schema)
    assert cluster["available_node_types"]["worker"]["resources"] == {"CPU": 2, "GPU": 1}
    assert cluster["max_workers"] == 3


def test_a_manifest_that_is_not_known() -> None:
    with pytest.raises(UnknownNameError, match="unknown manifest 'slurm'; known: cluster, kuberay"):
        manifest("slurm", "true", workers=1, resources={}, name="a", version="2")


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
