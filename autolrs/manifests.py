"""Manifests of the clusters that a job may run on: KubeRay's RayJob, and Ray's own cluster launcher.

They are beginnings to edit: the image must have autolrs and the user's packages in it, and the storage must be one that
all nodes see.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final

from autolrs.errors import UnknownNameError

IMAGE: Final = "rayproject/ray:{version}"
HEAD: Final = {"cpu": 1, "memory": "4Gi"}


NOTE: Final = """\
# A beginning to edit. The image must have autolrs (pip install 'autolrs[ray]'), your script and its data in the working
# directory; what --storage names must be a volume that all of the nodes see, or an object store.
"""


def manifest(
    kind: str,
    command: str,
    *,
    workers: int,
    resources: Mapping[str, float],
    name: str,
    version: str,
    environment: Mapping[str, str] | None = None,
) -> str:
    """YAML of a cluster for `workers` workers with `resources` each (CPU, GPU), that runs `command` in `environment`.

    Raises:
        UnknownNameError: no such kind.
    """
    if kind not in _KINDS:
        raise UnknownNameError.of("manifest", kind, _KINDS)
    # A pod or node smaller than what a worker asks for would never get it.
    whole = {key: max(1, math.ceil(count)) for key, count in {"CPU": 1, **resources}.items() if count or key == "CPU"}
    return NOTE + _yaml(_KINDS[kind](command, workers, whole, _label(name), version, environment or {}))


def _yaml(tree: Mapping[str, Any]) -> str:
    import yaml

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


def _kuberay(
    command: str, workers: int, resources: Mapping[str, int], name: str, version: str, environment: Mapping[str, str]
) -> dict[str, Any]:
    """A RayJob (ray.io/v1): its cluster comes and goes with it, and it is tried again when it fails."""
    wanted = {"cpu": resources["CPU"], "memory": "8Gi"}
    if "GPU" in resources:
        wanted["nvidia.com/gpu"] = resources["GPU"]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": command,
            **({"runtimeEnvYAML": _yaml({"env_vars": dict(environment)})} if environment else {}),
            "backoffLimit": 3,  # the study goes on where the last attempt was
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": {
                "rayVersion": version,
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},  # the driver needs none of Ray's CPUs, nor do workers there
                    "template": _pod("ray-head", HEAD, version),
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


def _cluster(
    command: str, workers: int, resources: Mapping[str, int], name: str, version: str, environment: Mapping[str, str]
) -> dict[str, Any]:
    """For `ray up`: a head and workers of their own type; the command is for `ray submit` or `autolrs submit`."""
    if environment:
        command = f"{shlex.join(['env', *(f'{key}={value}' for key, value in environment.items())])} {command}"
    return {
        "cluster_name": name,
        "provider": {"type": "aws", "region": "us-west-2"},
        "auth": {"ssh_user": "ubuntu"},
        "max_workers": workers,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"node_config": {"InstanceType": "m5.large"}, "resources": {"CPU": 0}},
            "worker": {
                "node_config": {"InstanceType": "g5.xlarge" if "GPU" in resources else "c5.xlarge"},
                "resources": dict(resources),
                "min_workers": workers,
                "max_workers": workers,
            },
        },
        "setup_commands": [f"pip install 'ray[default]=={version}' autolrs"],
        "metadata": {"autolrs": command},
    }


_KINDS: Final[dict[str, Callable[[str, int, Mapping[str, int], str, str, Mapping[str, str]], dict[str, Any]]]] = {
    "kuberay": _kuberay,
    "cluster": _cluster,
}
