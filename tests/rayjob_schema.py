"""KubeRay's RayJob (ray.io/v1) as JSON Schemas, and what its operator refuses besides.

Its CRD (ray-project/kuberay, ray-operator/config/crd/bases/ray.io_rayjobs.yaml) is in no package, and a megabyte, most
of it Kubernetes' own pods. So its own level is written down here, from the Go types that the CRD is generated from
(ray-operator/apis/ray/v1: rayjob_types.go, raycluster_types.go), and the rest is kubernetes-validate's. The rules that
tie fields together are the operator's (ray-operator/controllers/ray/utils/validation.go). Two generations:

    old    commits f6ef3f7 and 3275ee0, before release 1.4: rayStartParams must be there; deletionPolicy
    new    the main branch after release 1.6: deletionStrategy, a group's resources and labels, authOptions, ...

A field that is not known is refused, as `kubectl apply` does. Left out are a manifest's `status`, and what an operator
refuses unless a feature is switched on: networkPolicy, tlsOptions, historyServerOptions, GCS on RocksDB.
"""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any, Final

import kubernetes_validate
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

Schema = dict[str, Any]

STRING: Final[Schema] = {"type": "string"}
BOOL: Final[Schema] = {"type": "boolean"}
NUMBER: Final[Schema] = {"type": "number"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
POSITIVE: Final[Schema] = COUNT | {"minimum": 1}
TEXTS: Final[Schema] = {"type": "object", "additionalProperties": STRING}
MANAGER: Final[Schema] = {"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]}
DELETED: Final[Schema] = {"enum": ["DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"]}


def record(*required: str, **fields: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": fields, "additionalProperties": False}


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def kubernetes(name: str, kind: str = "object", **more: Any) -> Schema:
    return {"$ref": f"https://kubernetes.io/api/_definitions.json#/$defs/io.k8s.{name}", "type": kind, **more}


def when(condition: Schema, *required: str, **fields: Schema | bool) -> Schema:
    """If the fields of `condition` are there and as it says, `fields` must be as they say, and `required` there."""
    present = {"properties": condition, "required": list(condition)}
    return {"if": present, "then": {"properties": fields, "required": list(required)}}


# A pod without containers is valid to Kubernetes' schema, but not to KubeRay.
POD: Final = kubernetes(
    "api.core.v1.PodTemplateSpec",
    required=["spec"],
    properties={"spec": {"required": ["containers"], "properties": {"containers": {"type": "array", "minItems": 1}}}},
)


def group(new: bool, *required: str, **fields: Schema) -> Schema:
    fields |= {"rayStartParams": TEXTS, "template": POD}
    if not new:
        return record("rayStartParams", "template", *required, **fields)
    schema = record("template", *required, **fields, resources=TEXTS, labels=TEXTS)
    sizes = [{"required": [name]} for name in ("num-cpus", "num-gpus", "memory", "resources")]
    twice = when({"resources": {"minProperties": 1}}, rayStartParams={"not": {"anyOf": sizes}})
    return schema | {"allOf": [twice, {"properties": {"rayStartParams": {"not": {"required": ["labels"]}}}}]}


def cluster(new: bool) -> Schema:
    secret = record(value=STRING, valueFrom=kubernetes("api.core.v1.EnvVarSource"))
    autoscaler = {
        "resources": kubernetes("api.core.v1.ResourceRequirements"),
        "image": STRING,
        "imagePullPolicy": STRING,
        "securityContext": kubernetes("api.core.v1.SecurityContext"),
        "idleTimeoutSeconds": COUNT,
        "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
        "env": listed(kubernetes("api.core.v1.EnvVar")),
        "envFrom": listed(kubernetes("api.core.v1.EnvFromSource")),
        "volumeMounts": listed(kubernetes("api.core.v1.VolumeMount")),
    }
    head = {"headService": kubernetes("api.core.v1.Service"), "enableIngress": BOOL, "serviceType": STRING}
    worker = {
        "groupName": STRING,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "numOfHosts": COUNT,
        "idleTimeoutSeconds": COUNT,
        "suspend": BOOL,
        "scaleStrategy": record(workersToDelete=listed(STRING)),
    }
    redis = {
        "redisUsername": secret,
        "redisPassword": secret,
        "externalStorageNamespace": STRING,
        "redisAddress": STRING,
    }
    fields: dict[str, Schema] = {
        "rayVersion": STRING,
        "suspend": BOOL,
        "managedBy": MANAGER,
        "enableInTreeAutoscaling": BOOL,
        "headServiceAnnotations": TEXTS,
        "gcsFaultToleranceOptions": record(*(() if new else ("redisAddress",)), **redis),
    }
    if new:
        autoscaler |= {"version": {"enum": ["v1", "v2"]}, "command": listed(STRING), "args": listed(STRING)}
        tls = listed(kubernetes("api.networking.v1.IngressTLS"))
        kind: Schema = {"enum": ["Exact", "Prefix", "ImplementationSpecific"]}
        head["ingressOptions"] = record(host=STRING, path=STRING, pathType=kind, tls=tls)
        worker["priority"] = {"type": "integer"}
        fields["upgradeStrategy"] = record(type={"enum": ["Recreate", "None"]})
        fields["authOptions"] = record(secretName=STRING, mode={"enum": ["disabled", "token"]})
    return record(
        "headGroupSpec",
        **fields,
        autoscalerOptions=record(**autoscaler),
        headGroupSpec=group(new, **head),
        workerGroupSpecs=listed(group(new, "groupName", "minReplicas", "maxReplicas", **worker)),
    )


def deletion() -> Schema:
    once = record(policy=DELETED)
    statuses = {"jobStatus": {"enum": ["SUCCEEDED", "FAILED"]}, "jobDeploymentStatus": {"enum": ["Failed"]}}
    condition = record(**statuses, ttlSeconds=COUNT) | {"oneOf": [{"required": [name]} for name in statuses]}
    rules = listed(record("policy", "condition", policy=DELETED, condition=condition)) | {"minItems": 1}
    either = [{"required": ["onSuccess", "onFailure"]}, {"required": ["deletionRules"]}]
    return record(onSuccess=once, onFailure=once, deletionRules=rules) | {"oneOf": either}


def rayjob(new: bool) -> Schema:
    modes = ["K8sJobMode", "HTTPMode", "InteractiveMode"] + ["SidecarMode"] * new
    on: Schema = {"const": True}
    none: Schema = {"maximum": 0}
    spec = record(
        entrypoint=STRING,
        runtimeEnvYAML=STRING,
        jobId=STRING,
        metadata=TEXTS,
        entrypointNumCpus=NUMBER,
        entrypointNumGpus=NUMBER,
        entrypointResources=STRING,
        submissionMode={"enum": modes},
        submitterPodTemplate=POD,
        submitterConfig=record(backoffLimit=COUNT),
        backoffLimit=COUNT,
        activeDeadlineSeconds=POSITIVE,
        ttlSecondsAfterFinished=COUNT,
        shutdownAfterJobFinishes=BOOL,
        suspend=BOOL,
        managedBy=MANAGER,
        clusterSelector=TEXTS,
        rayClusterSpec=cluster(new),
        **(
            {"deletionStrategy": deletion(), "preRunningDeadlineSeconds": POSITIVE}
            if new
            else {"deletionPolicy": DELETED}
        ),
    )
    spec["anyOf"] = [{"required": ["rayClusterSpec"]}, {"required": ["clusterSelector"]}]
    spec["allOf"] = [
        when({"ttlSecondsAfterFinished": {"minimum": 1}}, "shutdownAfterJobFinishes", shutdownAfterJobFinishes=on),
        when({"suspend": on}, "shutdownAfterJobFinishes", shutdownAfterJobFinishes=on, clusterSelector={"const": {}}),
        when({"submissionMode": {"const": "InteractiveMode"}}, backoffLimit=none),
        when({"submissionMode": {"const": "SidecarMode"}}, submitterPodTemplate=False, submitterConfig=False),
        when({"clusterSelector": {"minProperties": 1}}, backoffLimit=none),
    ]
    # Its cluster is called that and six characters more, 53 at most.
    name: Schema = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
    return record(
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": "RayJob"},
        metadata=kubernetes("apimachinery.pkg.apis.meta.v1.ObjectMeta", required=["name"], properties={"name": name}),
        spec=spec,
    )


@functools.cache
def validators() -> list[Draft202012Validator]:
    folder = f"kubernetes-json-schema/v{kubernetes_validate.latest_version()}-local-strict"
    text = files(kubernetes_validate).joinpath(folder, "_definitions.json").read_text(encoding="utf-8")
    registry = Resource.from_contents(json.loads(text)) @ Registry()
    for schema in (rayjob(False), rayjob(True)):
        Draft202012Validator.check_schema(schema)
    return [Draft202012Validator(rayjob(new), registry=registry) for new in (False, True)]


def check_rayjob(job: Any) -> None:
    """Raises jsonschema.ValidationError or ValueError: Kubernetes, or KubeRay, old or new, would not take it."""
    for validator in validators():
        validator.validate(job)
    for worker in job["spec"].get("rayClusterSpec", {}).get("workerGroupSpecs", ()):
        if worker["minReplicas"] > worker["maxReplicas"]:
            raise ValueError(f"{worker['groupName']} has more minReplicas than maxReplicas")
