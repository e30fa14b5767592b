"""Places for checkpoints: a folder, and servers on this machine that speak S3 (moto) and GCS (gcp-storage-emulator)."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import digest
from tuned_loops import SMALL, build, loop, run

from autolrs import Session, load_study, places, tune
from autolrs.checkpoints import MANIFEST, CheckpointStore
from autolrs.errors import CheckpointError, SettingError
from autolrs.places import place_of, under


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URI of an empty bucket."""
    moto = pytest.importorskip("moto.server")
    import boto3

    port = free_port()
    server = moto.ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys)
    client.create_bucket(Bucket="bucket")
    client.close()
    with pytest.MonkeyPatch.context() as environment:
        for name in ("aws_access_key_id", "aws_secret_access_key"):
            environment.setenv(name.upper(), keys[name])
        yield f"s3://bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    server.stop()


@pytest.fixture(scope="module")
def gs() -> Iterator[str]:
    """URI of an empty bucket, for pyarrow's own GCS client."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    port = free_port()
    with emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket"):
        yield f"gs://anonymous@bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http"


STORES = [pytest.param("s3", marks=pytest.mark.filterwarnings("ignore")), "gs"]  # moto warns


@pytest.fixture(params=STORES)
def bucket(request: pytest.FixtureRequest) -> str:
    uri: str = request.getfixturevalue(request.param)
    return uri


@pytest.fixture(params=["folder", "file", *STORES])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    if request.param in ("s3", "gs"):
        return under(request.getfixturevalue(request.param), tmp_path.name)
    return tmp_path if request.param == "folder" else f"file://{tmp_path}"


def test_files_are_replaced_listed_and_removed(home: str | Path) -> None:
    place = place_of(home)
    place.prepare()
    seen = []
    for text in (b"old", b"newer"):
        place.write("a", lambda file, text=text: file.write(text), before=lambda: seen.append(place.names()))  # type: ignore[misc]
    assert place.read("a") == b"newer"
    assert [name for name in place.names() if not name.startswith(".")] == ["a"]
    place.remove("a")
    with pytest.raises(FileNotFoundError):
        place.read("a")


def test_what_fails_while_it_is_written_leaves_the_old_file(home: str | Path) -> None:
    place = place_of(home)
    place.prepare()
    place.write("a", lambda file: file.write(b"old"))

    def fail(file: Any) -> None:
        file.write(b"new")
        raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        place.write("a", fail)
    assert place.read("a") == b"old"


def test_checkpoints_come_back_the_last_two_stay_and_damage_is_seen(home: str | Path) -> None:
    store = CheckpointStore(home)
    for step in (0, 10, 20):
        store.save(step, {"step": step, "tensor": torch.full((3,), float(step))})
    store.tag(20, "final")
    store.prune(keep=2)
    assert store.steps == (10, 20)
    again = CheckpointStore(home, readonly=True)
    step, tree, damaged = again.latest()
    assert (step, tree["tensor"].tolist(), damaged) == (20, [20.0] * 3, [])
    assert again.load("final")["step"] == 20
    assert "final.safetensors" in str(again.path("final"))
    place_of(home).write("step-00000020.safetensors", lambda file: file.write(b"half"))
    step, tree, (message,) = again.latest()
    assert (step, tree["step"]) == (10, 10)
    assert "is damaged: 4 bytes instead of" in message
    with pytest.raises(CheckpointError, match="no checkpoint step-00000000"):
        again.load(0)


def test_a_run_keeps_its_checkpoints_in_a_bucket_and_goes_on_from_them(bucket: str, tmp_path: Path) -> None:
    def stopping(session: Session, loss: torch.Tensor) -> None:
        if not session.is_probe and session.step == 40:
            raise KeyError("stop")

    storage = tmp_path / "journal"
    settings = {"checkpoint_dir": under(bucket, "study"), "storage": str(storage)}
    with pytest.raises(KeyError):
        tune(loop(each=stopping), **SMALL | settings)
    study = tune(loop(), **SMALL | settings)
    assert study.result == run(tmp_path / "serial").result
    assert str(study.checkpoint("final")).startswith(bucket[:5])
    model, _, _ = build()
    load_study("run", str(storage)).load_into(model)
    assert digest(model) == study.result["weights"]
    assert MANIFEST in place_of(under(str(settings["checkpoint_dir"]), "run")).names()
    assert not list(storage.rglob("*.safetensors"))


KILLED = """
import os, signal, sys
import torch
from autolrs import places
from autolrs.checkpoints import CheckpointStore
from autolrs.places import under

def tree(step):
    return {"step": step, "weight": torch.full((100_000,), float(step))}

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def die_half_way(objects, name, write, before=None):
    held = places._Held()
    write(held)
    stream = objects._system.open_output_stream(f"{objects._root}/{name}")
    stream.write(held.data[: len(held.data) // 2])
    stream.flush()
    die()

def run(where, home):
    store = CheckpointStore(home)
    store.save(100, tree(100)), store.save(200, tree(200))
    if where == "uploading":
        places._Objects.write = die_half_way
    elif where == "listing":
        CheckpointStore._write_manifest = die
    else:
        places._Objects.remove = die
    store.save(300, tree(300))
    store.prune(keep=2)

for where in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        run(where, under(sys.argv[1], where))
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, where
"""


def test_a_kill_at_any_moment_leaves_good_checkpoints_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    home = under(bucket, tmp_path.name)
    moments = {"uploading": (100, 200), "listing": (100, 200), "removing": (200, 300)}
    subprocess.run([sys.executable, "-c", KILLED, str(home), *moments], check=True)
    for where, steps in moments.items():
        store = CheckpointStore(under(home, where))
        step, tree, damaged = store.latest()
        assert (store.steps, step, tree["step"], damaged) == (steps, steps[-1], steps[-1], []), where
        for other in (300, 400):  # and the same command goes on from there
            store.save(other, {"step": other})
        store.prune(keep=2)
        assert store.steps == (300, 400)
        names = place_of(under(home, where)).names()
        assert sorted(names) == [MANIFEST, "step-00000300.safetensors", "step-00000400.safetensors"], where


def test_a_store_of_googles_that_does_not_answer_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "GCS_RETRY_SECONDS", 1)  # of pyarrow's 900
    nobody = f"gs://anonymous@bucket/runs?scheme=http&endpoint_override=127.0.0.1:{free_port()}"
    with pytest.raises(CheckpointError, match=r"cannot use gs://anonymous@bucket/runs.* for checkpoints"):
        CheckpointStore(nobody)


def test_a_place_that_nobody_knows() -> None:
    with pytest.raises(SettingError, match="cannot keep checkpoints at nowhere://x"):
        place_of("nowhere://x")


def test_a_secret_in_a_uri_is_refused_and_not_told() -> None:
    with pytest.raises(SettingError, match="must not have a secret in it") as info:
        place_of("s3://key:hunter2@bucket/runs")
    assert "hunter2" not in str(info.value)
