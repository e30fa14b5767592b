"""`autolrs submit --print-manifest`: what is printed is valid, whatever is asked for, and a slip would be seen."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import ValidationError, validate
from rayjob_schema import check_rayjob, rayjob

from autolrs.cli import main
from autolrs.errors import UnknownNameError
from autolrs.manifests import manifest

OPTIONS = {
    "none": [],
    "workers": ["--workers", "3", "--cpus-per-worker", "2", "--gpus-per-worker", "1"],
    "parts": ["--workers=2", "--cpus-per-worker=2.5", "--gpus-per-worker=0.25"],
    "no-cpu": ["--cpus-per-worker", "0", "--gpus-per-worker", "0"],
    "environment": ["--env", "TOKEN=a b: 'c'", "--env", "N=1", "--python", "/opt/my env/bin/python"],
    "store": ["--checkpoint-dir", "s3://bucket/runs?region=x", "--set", "stop=chance", "--name", "2024 Run: no, # 1"],
}


def printed(kind: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    with pytest.raises(SystemExit) as exit_:
        main(["submit", "pkg/My_train.py:Train_it", "--print-manifest", kind, "--storage", "/s", *options])
    assert exit_.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_rayjob_is_valid(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    job = printed("kuberay", options, capsys)
    check_rayjob(job)
    assert job["metadata"]["name"] == "train-it"
    assert "-m autolrs.cli tune pkg/My_train.py:Train_it --storage /s" in job["spec"]["entrypoint"]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_cluster_is_valid_by_rays_own_schema(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    tree = printed("cluster", options, capsys)
    validate(tree, schema)
    for wrong in (tree | {"max_worker": 1}, tree | {"max_workers": "3"}, tree | {"provider": {}}):
        with pytest.raises(ValidationError):
            validate(wrong, schema)


def test_the_workers_get_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    (group,) = printed("kuberay", OPTIONS["workers"], capsys)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 3
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1"}
    cluster = printed("cluster", OPTIONS["workers"], capsys)
    assert cluster["available_node_types"]["worker"]["resources"] == {"CPU": 2, "GPU": 1}
    assert cluster["max_workers"] == 3


def test_a_pod_is_no_smaller_than_what_its_worker_asks_ray_for(capsys: pytest.CaptureFixture[str]) -> None:
    (group,) = printed("kuberay", OPTIONS["parts"], capsys)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["requests"] == {"cpu": "3", "memory": "8Gi", "nvidia.com/gpu": "1"}
    node = printed("cluster", OPTIONS["parts"], capsys)["available_node_types"]["worker"]
    assert node["resources"] == {"CPU": 3, "GPU": 1}


def test_the_jobs_environment_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    spec = printed("kuberay", OPTIONS["environment"], capsys)["spec"]
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": {"TOKEN": "a b: 'c'", "N": "1"}}
    assert spec["entrypoint"].startswith("'/opt/my env/bin/python' -m autolrs.cli tune")
    command = printed("cluster", OPTIONS["environment"], capsys)["metadata"]["autolrs"]
    assert command.startswith("""env 'TOKEN=a b: '"'"'c'"'"'' N=1 '/opt/my env/bin/python' -m autolrs.cli tune""")
    assert "runtimeEnvYAML" not in printed("kuberay", [], capsys)["spec"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--workers=-2", "--workers must be a number, at least 1, but got '-2'"),
        ("--workers=inf", "--workers must be a number, at least 1, but got 'inf'"),
        ("--workers=four", "--workers must be a number, at least 1, but got 'four'"),
        ("--cpus-per-worker=nan", "--cpus-per-worker must be a number, at least 0, but got 'nan'"),
        ("--gpus-per-worker=-1", "--gpus-per-worker must be a number, at least 0, but got '-1'"),
    ],
)
def test_a_number_that_no_cluster_has_is_refused(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["submit", "t.py:f", "--print-manifest", "kuberay", "--storage", "/s", option])
    assert exit_.value.code != 0
    out, err = capsys.readouterr()
    assert out == ""
    assert message in " ".join(err.split())


@pytest.mark.parametrize("name", ["2024_run", "9", "_", "-x-", "a" * 39 + ".b", "Größe", "autolrs"])
@pytest.mark.parametrize("resources", [{}, {"CPU": 0.5, "GPU": 0.25}])
def test_whatever_a_study_is_called_its_rayjob_is_valid(name: str, resources: dict[str, float]) -> None:
    check_rayjob(yaml.safe_load(manifest("kuberay", "true", workers=1, resources=resources, name=name, version="2")))


# That the check can fail

JOB = yaml.safe_load(
    manifest("kuberay", "true", workers=2, resources={"GPU": 1}, name="a", version="2", environment={"A": "1"})
)
FREE = {"rayStartParams", "limits", "requests"}  # whose keys are anybody's
CLUSTER = ("spec", "rayClusterSpec")
HEAD = (*CLUSTER, "headGroupSpec")
WORKERS = (*CLUSTER, "workerGroupSpecs", 0)


def paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every field and item, at any depth."""
    steps = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for step, branch in steps:
        yield (*path, step)
        yield from paths(branch, (*path, step))


def at(path: tuple[Any, ...]) -> Any:
    return functools.reduce(lambda tree, step: tree[step], path, JOB)


def changed(path: tuple[Any, ...], value: Any = None, *, name: str = "", drop: bool = False) -> Any:
    job = copy.deepcopy(JOB)
    tree = job
    for step in path[:-1]:
        tree = tree[step]
    if name:
        tree[name] = tree.pop(path[-1])
    elif drop:
        del tree[path[-1]]
    else:
        tree[path[-1]] = value
    return job


def refused(job: Any, why: Any) -> None:
    try:
        check_rayjob(job)
    except (ValidationError, ValueError):
        return
    pytest.fail(f"was taken: {why}")


def test_any_misspelt_field_and_any_value_of_another_type_is_seen() -> None:
    check_rayjob(JOB)
    seen = 0
    for path in paths(JOB):
        if isinstance(path[-1], str) and not FREE & {path[-2] if len(path) > 1 else ""}:
            refused(changed(path, name=f"{path[-1]}s"), path)
            seen += 1
        refused(changed(path, "x" if isinstance(at(path), list) else []), path)
    assert seen > 30


@pytest.mark.parametrize(
    "path",
    [
        ("apiVersion",),
        ("kind",),
        ("metadata", "name"),
        ("spec",),
        CLUSTER,
        HEAD,
        (*HEAD, "rayStartParams"),
        (*HEAD, "template"),
        (*HEAD, "template", "spec"),
        (*HEAD, "template", "spec", "containers"),
        (*HEAD, "template", "spec", "containers", 0),
        (*HEAD, "template", "spec", "containers", 0, "name"),
        (*WORKERS, "groupName"),
        (*WORKERS, "minReplicas"),
        (*WORKERS, "maxReplicas"),
        (*WORKERS, "rayStartParams"),
        (*WORKERS, "template"),
        ("spec", "shutdownAfterJobFinishes"),
    ],
)
def test_a_missing_field_is_seen(path: tuple[Any, ...]) -> None:
    refused(changed(path, drop=True), path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("apiVersion",), "ray.io/v1alpha1"),
        (("metadata", "name"), "1a"),
        (("metadata", "name"), "a" * 48),
        (("spec", "shutdownAfterJobFinishes"), False),
        (("spec", "shutdownAfterJobFinishes"), "true"),
        (("spec", "ttlSecondsAfterFinished"), -1),
        (("spec", "ttlSecondsAfterFinished"), 600.5),
        (("spec", "backoffLimit"), 2**31),
        (("spec", "backoffLimit"), None),
        (("spec", "submissionMode"), "InteractiveMode"),  # with a backoffLimit
        (("spec", "submissionMode"), "SidecarMode"),  # which an older operator does not know
        (("spec", "runtimeEnvYAML"), {"env_vars": {}}),
        (("spec", "clusterSelector"), {"ray.io/cluster": "a"}),  # with a backoffLimit
        ((*HEAD, "rayStartParams", "num-cpus"), 0),
        ((*HEAD, "resources"), {"CPU": "1"}),  # twice, and an older operator does not know it
        ((*HEAD, "template", "spec", "containers"), []),
        ((*WORKERS, "replicas"), -1),
        ((*WORKERS, "maxReplicas"), "2"),
        ((*WORKERS, "maxReplicas"), 1),  # less than minReplicas
    ],
)
def test_a_value_that_is_not_taken_is_seen(path: tuple[Any, ...], value: Any) -> None:
    refused(changed(path, value), (path, value))


def test_what_else_a_rayjob_may_have_is_not_refused() -> None:
    """So that the schema is KubeRay's, not a mirror of what we print."""
    job = copy.deepcopy(JOB)
    job["metadata"] |= {"namespace": "ml", "labels": {"kueue.x-k8s.io/queue-name": "q"}}
    job["spec"] |= {
        "submissionMode": "K8sJobMode",
        "submitterPodTemplate": {"spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}},
        "submitterConfig": {"backoffLimit": 1},
        "activeDeadlineSeconds": 3600,
        "entrypointNumCpus": 0.5,
        "suspend": True,
    }
    cluster = job["spec"]["rayClusterSpec"]
    cluster |= {"enableInTreeAutoscaling": True, "autoscalerOptions": {"upscalingMode": "Default", "resources": {}}}
    cluster["headGroupSpec"] |= {"serviceType": "ClusterIP", "headService": {"spec": {"ports": [{"port": 8265}]}}}
    cluster["workerGroupSpecs"][0] |= {"minReplicas": 0, "numOfHosts": 1, "scaleStrategy": {"workersToDelete": ["p"]}}
    check_rayjob(job)


def test_old_operators_and_new_ones_are_told_apart() -> None:
    old, new = (rayjob(is_new)["properties"]["spec"]["properties"] for is_new in (False, True))
    assert old.keys() - new.keys() == {"deletionPolicy"}
    assert new.keys() - old.keys() == {"deletionStrategy", "preRunningDeadlineSeconds"}


def test_a_manifest_that_is_not_known() -> None:
    with pytest.raises(UnknownNameError, match="unknown manifest 'slurm'; known: cluster, kuberay"):
        manifest("slurm", "true", workers=1, resources={}, name="a", version="2")
