from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autolrs.checkpoints import CheckpointStore
from autolrs.errors import CheckpointError, SettingError, StudyLockedError, UntrackableError


def tree(step: int) -> dict[str, object]:
    return {"step": step, "weight": torch.full((1000,), float(step))}


def holds(store: CheckpointStore, key: int | str, step: int) -> bool:
    loaded = store.load(key)
    return loaded["step"] == step and torch.equal(loaded["weight"], torch.full((1000,), float(step)))


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (100, 200, 300):
        store.save(step, tree(step))
    return store


def test_saved_checkpoints_load_by_step_and_tag(store: CheckpointStore) -> None:
    path = store.save(300, tree(7), tag="final")
    assert path == store.path("final") == store.directory / "final.safetensors"
    assert store.steps == (100, 200, 300)
    assert holds(store, 200, 200)
    assert holds(store, "final", 7)
    assert not list(store.directory.glob(".*"))


def test_latest_respects_the_limit(store: CheckpointStore) -> None:
    step, loaded, damaged = store.latest(at_most=299)
    assert (step, loaded["step"], damaged) == (200, 200, [])
    with pytest.raises(CheckpointError, match="no checkpoint at or before step 99"):
        store.latest(at_most=99)


def test_saving_a_step_again_replaces_it(store: CheckpointStore) -> None:
    store.save(200, tree(-1))
    assert holds(store, 200, -1)
    assert store.steps == (100, 200, 300)


def test_unknown_keys_are_errors_that_list_what_exists(store: CheckpointStore) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint step-00000150.*step-00000100"):
        store.load(150)
    with pytest.raises(SettingError, match=r"tag must match .*'\.\./x'"):
        store.save(1, tree(1), tag="../x")


def test_what_cannot_be_stored_leaves_everything(store: CheckpointStore) -> None:
    with pytest.raises(UntrackableError, match="`model/0`"):
        store.save(300, {"model": [object()]})
    assert holds(store, 300, 300)
    assert sorted(p.name for p in store.directory.glob("*300*")) == ["step-00000300.safetensors"]


def test_prune_keeps_the_last_two_the_protected_and_the_tagged(store: CheckpointStore) -> None:
    store.save(400, tree(400))
    store.save(400, tree(400), tag="final")
    (store.directory / "step-00000050.safetensors").write_bytes(b"left by a kill")
    store.prune(protect={100})
    assert store.steps == (100, 300, 400)
    assert sorted(path.name for path in store.directory.glob("*.safetensors")) == [
        "final.safetensors",
        *(f"step-{step:08d}.safetensors" for step in (100, 300, 400)),
    ]
    with pytest.raises(SettingError, match="keep >= 1"):
        store.prune(keep=0)


def test_saving_may_prune_with_one_list_written(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(400, tree(400), tag="final")
    (store.directory / "step-00000050.safetensors").write_bytes(b"left by a kill")
    written = []
    write = CheckpointStore._write_manifest
    monkeypatch.setattr(CheckpointStore, "_write_manifest", lambda *given: (written.append(1), write(*given)))
    store.save(500, tree(500), keep=2)
    assert len(written) == 1
    assert store.steps == (300, 500)
    assert sorted(path.name for path in store.directory.glob("*.safetensors")) == [
        "final.safetensors",
        *(f"step-{step:08d}.safetensors" for step in (300, 500)),
    ]
    with pytest.raises(SettingError, match="keep >= 1"):
        store.save(600, tree(600), keep=0)
    assert store.steps == (300, 500)


def test_what_is_removed_is_gone_even_if_a_kill_came_between(store: CheckpointStore) -> None:
    path = store.save(400, tree(400), tag="probe")
    store.remove("probe")
    assert not Path(path).exists()
    Path(path).write_bytes(b"left by a kill")
    store.remove("probe")
    assert not Path(path).exists()
    store.remove("never-there")
    assert store.steps == (100, 200, 300)


def test_a_tagged_checkpoint_is_the_same_and_stays(store: CheckpointStore) -> None:
    store.save(100, {"a": torch.arange(5)})
    path = store.tag(100, "final")
    assert path == store.path("final")
    for step in (200, 300, 400):
        store.save(step, {"a": torch.zeros(5)})
        store.prune()
    assert store.steps == (300, 400)
    assert torch.equal(store.load("final")["a"], torch.arange(5))
    with pytest.raises(CheckpointError, match="no checkpoint step-00000100"):
        store.tag(100, "final")


def test_forget_after_a_roll_back(store: CheckpointStore) -> None:
    store.forget_after(200)
    assert store.steps == (100, 200)
    assert not (store.directory / "step-00000300.safetensors").exists()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_found_named_and_passed_over(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("damage"))
    for step in (100, 200):
        store.save(step, tree(step))
    path = store.path(200)
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans(), label="truncate"):
        path.write_bytes(content[:place])
    else:
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))]) + content[place + 1 :]
        )
    step, loaded, damaged = store.latest()
    assert step == loaded["step"] == 100
    assert len(damaged) == 1
    assert str(path) in damaged[0]
    assert "damaged" in damaged[0]


def test_missing_files_are_named(store: CheckpointStore) -> None:
    for step in store.steps:
        store.path(step).unlink()
    with pytest.raises(CheckpointError, match=r"can be loaded.*300\S* is listed but cannot be read.*step-00000100"):
        store.latest()


def test_a_damaged_manifest_is_named(store: CheckpointStore) -> None:
    (store.directory / "manifest.json").write_text('{"checkpoints": {"st', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"manifest\.json, the list of checkpoints, is damaged"):
        store.latest()


def test_readonly_and_guard(store: CheckpointStore) -> None:
    temporary = store.directory / ".step-00000400.safetensors.1.autolrs-tmp"
    temporary.write_bytes(b"half")
    reader = CheckpointStore(store.directory, readonly=True)
    assert holds(reader, 300, 300)
    for write in (lambda: reader.save(400, tree(400)), reader.prune, lambda: reader.forget_after(1)):
        with pytest.raises(StudyLockedError, match="reading only"):
            write()
    assert temporary.exists()
    assert CheckpointStore(store.directory.parent / "none", readonly=True).steps == ()
    assert not (store.directory.parent / "none").exists()

    def refuse() -> None:
        raise StudyLockedError("not yours")

    guarded = CheckpointStore(store.directory, guard=refuse)
    assert not temporary.exists()
    with pytest.raises(StudyLockedError, match="not yours"):
        guarded.save(400, tree(400))
    assert guarded.steps == (100, 200, 300)


def test_pickles_need_consent_at_both_ends(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, allow_pickle=True).save(1, {"odd": {1: complex(1, 2)}})
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        CheckpointStore(tmp_path).load(1)
    assert CheckpointStore(tmp_path, allow_pickle=True).load(1) == {"odd": {1: 1 + 2j}}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "autolrs-test", str(folder)]
    try:
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this user may not mount a file system")
    except FileNotFoundError:
        pytest.skip("no mount command")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill_up(store: CheckpointStore) -> None:
    store.save(1, tree(1))
    step = 1
    with pytest.raises(CheckpointError, match=r"cannot write .*\.safetensors: .*Make room") as caught:  # noqa: PT012
        while step < 100:
            step += 1
            store.save(step, {"step": step, "weight": torch.full((step * 1000,), 1.0)})
    last = store.steps[-1]
    assert last == step - 1
    assert f"The checkpoint of step {last} is still good" in str(caught.value)
    assert not list(store.directory.glob(".*"))
    found, loaded, damaged = store.latest()
    assert (found, loaded["step"], damaged) == (last, last, [])


def test_a_full_disk(small_disk: Path) -> None:
    store = CheckpointStore(small_disk / "checkpoints")
    fill_up(store)
    store.prune(keep=1)
    store.save(1000, tree(1000))
    assert holds(store, 1000, 1000)


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        fill_up(CheckpointStore(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"cannot use .*file/checkpoints"):
        CheckpointStore(tmp_path / "file" / "checkpoints")


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from autolrs import checkpoints, codec
from autolrs.checkpoints import CheckpointStore

def tree(step):
    return {"step": step, "weight": torch.full((1000,), float(step))}

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def die_half_way(tree, file, **options):
    file.write(b"x" * 100_000)
    die()

def run(where, folder):
    store = CheckpointStore(folder)
    store.save(100, tree(100)), store.save(200, tree(200)), store.save(200, tree(200), tag="final")
    if where == "writing":
        codec.dump = die_half_way
    elif where == "listing":
        CheckpointStore._write_manifest = die
    elif where in ("again", "final again"):   # before the rename
        real = Path.replace
        Path.replace = lambda self, target: die() if target.suffix == ".safetensors" else real(self, target)
    elif where == "listing again":
        real, calls = CheckpointStore._write_manifest, []
        CheckpointStore._write_manifest = lambda *a: die() if calls else (calls.append(1), real(*a))
    elif where == "pruning":
        Path.unlink = die
        store.prune(keep=1)
    elif where == "saving and pruning":
        Path.unlink = die
        store.save(200, tree(200), keep=1)
    step = 200 if "again" in where else 300
    store.save(step, tree(-step), tag="final" if "final" in where else "")

for where in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        run(where, Path(sys.argv[1]) / where)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, where
"""


def test_a_kill_at_any_moment_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    places = ["writing", "listing", "again", "final again", "listing again", "pruning", "saving and pruning"]
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), *places], check=True)
    for where in places:
        folder = tmp_path / where
        left = [path for path in folder.iterdir() if path.name.startswith(".")]
        assert bool(left) == (where not in ("listing", "listing again", "pruning", "saving and pruning")), where
        store = CheckpointStore(folder)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        step, loaded, damaged = store.latest()
        new = -200 if where == "listing again" else 200  # there the rename was done
        assert (step, loaded["step"], damaged) == (200, new, []), where
        assert store.load("final")["step"] == 200
        for other in (200, 300):  # and the same command goes on from there
            store.save(other, tree(other))
        store.prune()
        assert store.steps == (200, 300)
        assert sorted(json.loads((folder / "manifest.json").read_text())["checkpoints"]) == sorted(
            path.name for path in folder.glob("*.safetensors")
        )
