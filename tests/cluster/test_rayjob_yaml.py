"""docs/rayjob.yaml against a hand-written subset of KubeRay's RayJob schema.

The custom resource definition itself (a megabyte, most of it Kubernetes' pod template) is not in the repository. The
subset below knows every field of ``ray.io/v1`` RayJob, RayCluster and group specifications of KubeRay 1.5 that the
manifest may use, and refuses every other one; of a pod it knows what the manifest uses. No Kubernetes server was asked.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tuner.cluster.autoscaling import NodeType, Prospect
from tuner.cluster.connection import fitting_slots
from tuner.request.command_line import parse

ROOT = Path(__file__).parents[2]
QUANTITY = r"^([0-9]+(\.[0-9]+)?)(m|[KMGT]i?)?$"


def record(required: list[str], **fields: Any) -> dict[str, Any]:
    """An object with these fields and no other."""
    return {"type": "object", "required": required, "properties": fields, "additionalProperties": False}


STRING, INTEGER, BOOLEAN = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
STRINGS = {"type": "object", "additionalProperties": STRING}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": QUANTITY}}
CONTAINER = record(
    ["name", "image"],
    name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
    image=STRING,
    env={"type": "array", "items": record(["name"], name=STRING, value=STRING)},
    securityContext=record(
        [],
        allowPrivilegeEscalation=BOOLEAN,
        capabilities=record([], add={"type": "array", "items": STRING}, drop={"type": "array", "items": STRING}),
    ),
    resources=record([], requests=QUANTITIES, limits=QUANTITIES),
)
POD_TEMPLATE = record(
    ["spec"],
    metadata=record([], labels=STRINGS),
    spec=record(
        ["containers"],
        securityContext=record(
            [], runAsNonRoot=BOOLEAN, runAsUser=INTEGER, seccompProfile=record(["type"], type=STRING)
        ),
        serviceAccountName=STRING,
        automountServiceAccountToken=BOOLEAN,
        terminationGracePeriodSeconds=INTEGER,
        containers={"type": "array", "minItems": 1, "items": CONTAINER},
    ),
)
HEAD = record(["template"], rayStartParams=STRINGS, template=POD_TEMPLATE, enableIngress=BOOLEAN, serviceType=STRING)
WORKERS = record(
    ["groupName", "template"],
    groupName=STRING,
    replicas=INTEGER,
    minReplicas=INTEGER,
    maxReplicas=INTEGER,
    numOfHosts=INTEGER,
    idleTimeoutSeconds=INTEGER,
    rayStartParams=STRINGS,
    template=POD_TEMPLATE,
)
RAY_CLUSTER = record(
    ["headGroupSpec"],
    rayVersion=STRING,
    authOptions=record([], mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=BOOLEAN,
    autoscalerOptions=record(
        [],
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=INTEGER,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    ),
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
RAY_JOB = record(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=record(["name"], name={"type": "string", "maxLength": 47}, namespace=STRING, labels=STRINGS),
    spec=record(
        [],
        entrypoint=STRING,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        entrypointResources=STRING,
        runtimeEnvYAML=STRING,
        jobId=STRING,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        shutdownAfterJobFinishes=BOOLEAN,
        ttlSecondsAfterFinished=INTEGER,
        activeDeadlineSeconds=INTEGER,
        backoffLimit=INTEGER,
        suspend=BOOLEAN,
        metadata=STRINGS,
        clusterSelector=STRINGS,
        rayClusterSpec=RAY_CLUSTER,
    ),
)


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "docs/rayjob.yaml").read_text()))


@pytest.fixture
def job() -> dict[str, Any]:
    return manifests()[0]


def test_it_follows_the_schema(job: dict[str, Any]) -> None:
    jsonschema.validate(job, RAY_JOB)


def test_the_schema_refuses_a_field_that_kuberay_does_not_have(job: dict[str, Any]) -> None:
    job["spec"]["rayClusterSpec"]["authOption"] = {"mode": "token"}
    with pytest.raises(jsonschema.ValidationError, match="authOption"):
        jsonschema.validate(job, RAY_JOB)


def test_every_ray_process_asks_for_the_token(job: dict[str, Any]) -> None:
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_pods_run_as_nobody_special(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(not each["securityContext"]["allowPrivilegeEscalation"] for each in pod["containers"])


def test_only_pods_of_the_cluster_reach_ports_that_ask_for_no_token(job: dict[str, Any]) -> None:
    cluster, policy = job["spec"]["rayClusterSpec"], manifests()[1]
    assert (policy["kind"], policy["spec"]["policyTypes"]) == ("NetworkPolicy", ["Ingress"])
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert chosen.items() <= group["template"]["metadata"]["labels"].items()
    among, dashboard = policy["spec"]["ingress"]
    assert among == {"from": [{"podSelector": {"matchLabels": chosen}}]}
    assert dashboard == {"ports": [{"protocol": "TCP", "port": 8265}]}


def test_the_driver_stays_on_the_head(job: dict[str, Any]) -> None:
    assert json.loads(job["spec"]["entrypointResources"]) == {"node:__internal_head__": 0.001}


def test_the_entrypoint_is_the_search_with_its_run_directory_outside_the_pods(job: dict[str, Any]) -> None:
    command = shlex.split(job["spec"]["entrypoint"])
    assert command[:3] == ["python", "-m", "tuner.search"]
    assert command[command.index("--run_dir") + 1].startswith("s3://")


def test_as_many_trials_run_as_there_are_workers(job: dict[str, Any]) -> None:
    config = parse(shlex.split(job["spec"]["entrypoint"])[3:])
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert config.concurrent_trials == group["maxReplicas"]
    assert config.gpus_per_trial == 1


def test_only_workers_have_a_gpu_and_all_pods_one_image(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    (worker,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert head["image"] == worker["image"]


def test_there_are_as_many_trials_at_a_time_as_gpus_and_each_has_its_pod_s_cpus(job: dict[str, Any]) -> None:
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    command = shlex.split(job["spec"]["entrypoint"])
    config = parse(command[3:])
    assert config.concurrent_trials == workers["maxReplicas"] == 8

    pod = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    worker = NodeType(resources={"CPU": float(pod["cpu"]), "GPU": float(pod["nvidia.com/gpu"])})
    at_start = Prospect(machines=[NodeType(resources={"CPU": 4.0}), *[worker] * workers["replicas"]], unknown=True)
    assert workers["replicas"] == workers["minReplicas"]
    assert fitting_slots(config, Path("/ray"), at_start).cpus == 3


def test_the_image_gets_what_cluster_yaml_copies_and_nothing_else() -> None:
    """Each source by name, into the place that pip installs from: no data, run directory or environment goes along."""
    lines = re.findall(r"^COPY --chown=1000 (.+) (\S+)$", (ROOT / "docs/Dockerfile").read_text(), re.MULTILINE)
    copied = {
        f"{target}{source}" if target.endswith("/") else target: source
        for sources, target in lines
        for source in sources.split()
    }
    mounts = yaml.safe_load((ROOT / "cluster.yaml").read_text())["file_mounts"]
    assert copied == {
        target.removeprefix("~/"): source for target, source in mounts.items() if target.startswith("~/m3-tuner/")
    }
