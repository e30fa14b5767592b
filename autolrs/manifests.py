"""Manifests of the clusters that a job may run on: KubeRay's RayJob, and Ray's own cluster launcher.

They are beginnings to edit: the image must have autolrs and the user's packages in it, and the storage must be one that
all nodes see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from autolrs.errors import UnknownNameError

IMAGE: Final = "rayproject/ray:{version}"
HEAD: Final = {"cpu": 1, "memory": "4Gi"}


def manifest(kind: str, command: str, *, workers: int, resources: Mapping[str, float], name: str, version: str) -> str:
    """YAML of a cluster for `workers` workers with `resources` each (CPU, GPU), that runs `command`.

    Raises:
        UnknownNameError: no such kind.
    """
    import yaml

    if kind not in _KINDS:
        raise UnknownNameError.of("manifest", kind, _KINDS)
    tree = _KINDS[kind](command, workers, resources, _label(name), version)
    text: str = yaml.safe_dump(tree, sort_keys=False, width=10**6)
    return text


def _label(name: str) -> str:
    """`name` as KubeRay takes it, a DNS label of RFC 1035: it begins with a letter and does not end with a hyphen.

    >>> _label("2024_Run")
    'autolrs-2024-run'
    """
    label = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if not label[:1].isalpha():
        label = f"autolrs-{label}"
    return label[:40].rstrip("-")


def _kuberay(command: str, workers: int, resources: Mapping[str, float], name: str, version: str) -> dict[str, Any]:
    """A RayJob (ray.io/v1): its cluster comes and goes with it, and it is tried again when it fails."""
    wanted = {"cpu": max(1, round(resources.get("CPU", 1))), "memory": "8Gi"}
    if resources.get("GPU"):
        wanted["nvidia.com/gpu"] = max(1, round(resources["GPU"]))
    head = {"cpu": HEAD["cpu"], "memory": HEAD["memory"]}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": command,
            "backoffLimit": 3,  # the study goes on where the last attempt was
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": {
                "rayVersion": version,
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},  # the driver needs none of Ray's CPUs, nor do workers there
                    "template": _pod("ray-head", head, version),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": workers,
                        "minReplicas": workers,
                        "maxReplicas": workers,
                        "rayStartParams": {},
                        "template": _pod("ray-worker", wanted, version),
                    }
                ],
            },
        },
    }


def _pod(name: str, resources: Mapping[str, Any], version: str) -> dict[str, Any]:
    limits = {key: str(value) for key, value in resources.items()}
    container = {
        "name": name,
        "image": IMAGE.format(version=version),
        "resources": {"limits": limits, "requests": dict(limits)},
    }
    return {"spec": {"containers": [container]}}


def _cluster(command: str, workers: int, resources: Mapping[str, float], name: str, version: str) -> dict[str, Any]:
    """For `ray up`: a head and workers of their own type; the command is for `ray submit` or `autolrs submit`."""
    own = {key: max(1, round(count)) for key, count in {"CPU": 1.0, **resources}.items() if count}
    return {
        "cluster_name": name,
        "provider": {"type": "aws", "region": "us-west-2"},
        "auth": {"ssh_user": "ubuntu"},
        "max_workers": workers,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"node_config": {"InstanceType": "m5.large"}, "resources": {"CPU": 0}},
            "worker": {
                "node_config": {"InstanceType": "g5.xlarge" if own.get("GPU") else "c5.xlarge"},
                "resources": own,
                "min_workers": workers,
                "max_workers": workers,
            },
        },
        "setup_commands": [f"pip install 'ray[default]=={version}' autolrs"],
        "metadata": {"autolrs": command},
    }


_KINDS: Final[dict[str, Callable[[str, int, Mapping[str, float], str, str], dict[str, Any]]]] = {
    "kuberay": _kuberay,
    "cluster": _cluster,
}
