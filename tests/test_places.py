"""Places for checkpoints: a folder, and a real object store on this machine (moto's S3 server)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import digest
from tuned_loops import SMALL, build, loop, run

from autolrs import Session, load_study, tune
from autolrs.checkpoints import MANIFEST, CheckpointStore
from autolrs.errors import CheckpointError, SettingError
from autolrs.places import place_of, under


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URI of an empty bucket."""
    moto = pytest.importorskip("moto.server")
    import boto3

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
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


@pytest.fixture(params=["folder", "file", pytest.param("s3", marks=pytest.mark.filterwarnings("ignore"))])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    if request.param == "s3":
        return under(request.getfixturevalue("s3"), tmp_path.name)
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


@pytest.mark.filterwarnings("ignore")  # of the S3 server
def test_a_run_keeps_its_checkpoints_in_a_bucket_and_goes_on_from_them(s3: str, tmp_path: Path) -> None:
    def stopping(session: Session, loss: torch.Tensor) -> None:
        if not session.is_probe and session.step == 40:
            raise KeyError("stop")

    storage = tmp_path / "journal"
    settings = {"checkpoint_dir": under(s3, "study"), "storage": str(storage)}
    with pytest.raises(KeyError):
        tune(loop(each=stopping), **SMALL | settings)
    study = tune(loop(), **SMALL | settings)
    assert study.result == run(tmp_path / "serial").result
    assert str(study.checkpoint("final")).startswith("s3://")
    model, _, _ = build()
    load_study("run", str(storage)).load_into(model)
    assert digest(model) == study.result["weights"]
    assert MANIFEST in place_of(under(str(settings["checkpoint_dir"]), "run")).names()
    assert not list(storage.rglob("*.safetensors"))


def test_a_place_that_nobody_knows() -> None:
    with pytest.raises(SettingError, match="cannot keep checkpoints at nowhere://x"):
        place_of("nowhere://x")


def test_a_secret_in_a_uri_is_refused_and_not_told() -> None:
    with pytest.raises(SettingError, match="must not have a secret in it") as info:
        place_of("s3://key:hunter2@bucket/runs")
    assert "hunter2" not in str(info.value)
