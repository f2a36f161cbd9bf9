"""The manifest for KubeRay: every field is one that its definition has, and what belongs together agrees.

``KUBERAY_CRD``: a file of KubeRay's definition of a RayJob (``ray-operator/config/crd/bases/ray.io_rayjobs.yaml``),
against whose whole schema the manifest is checked, too; unknown fields count as errors.
"""

from __future__ import annotations

import copy
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.test_cluster_yaml import assert_known

FILE = Path(__file__).parents[2] / "rayjob.yaml"
#: The definition of the fields that we use, ``kind`` or ``[kind]`` of a list; ``map`` is of names to texts.
PLACE = {"name": str, "mountPath": str}
AMOUNTS = {"requests": "map", "limits": "map"}
CONTAINER = {
    "name": str, "image": str, "env": [{"name": str, "value": str}], "resources": AMOUNTS, "volumeMounts": [PLACE],
}  # fmt: skip
POD = {
    "securityContext": {"fsGroup": int}, "containers": [CONTAINER],
    "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
    "tolerations": [{"key": str, "operator": str, "effect": str}],
}  # fmt: skip
GROUP = {"rayStartParams": "map", "template": {"spec": POD}}
WORKERS = {**GROUP, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}
RAYJOB = {
    "apiVersion": str, "kind": str, "metadata": {"name": str},
    "spec": {
        "entrypoint": str, "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int, "backoffLimit": int,
        "rayClusterSpec": {
            "rayVersion": str, "authOptions": {"mode": str}, "enableInTreeAutoscaling": bool,
            "autoscalerOptions": {"version": str, "idleTimeoutSeconds": int},
            "headGroupSpec": GROUP, "workerGroupSpecs": [WORKERS],
        },
    },
}  # fmt: skip


def problems(value: Any, kind: Any, place: str = "") -> list[str]:
    """Where a value is not of its kind."""
    if kind == "map":
        right = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
        return [] if right else [f"{place} is no mapping of texts"]
    if isinstance(kind, type):
        return [] if type(value) is kind else [f"{place} is no {kind.__name__}"]
    if isinstance(kind, list):
        if not isinstance(value, list):
            return [f"{place} is no list"]
        return [wrong for number, each in enumerate(value) for wrong in problems(each, kind[0], f"{place}[{number}]")]
    if not isinstance(value, dict):
        return [f"{place} is no mapping"]
    found = [f"there is no {place}.{name}" for name in value.keys() - kind.keys()]
    return found + [
        w for name in value.keys() & kind.keys() for w in problems(value[name], kind[name], f"{place}.{name}")
    ]


@pytest.fixture
def documents() -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in yaml.safe_load_all(FILE.read_text())}


@pytest.fixture
def job(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return documents["RayJob"]


def test_every_field_exists(job: dict[str, Any]) -> None:
    assert problems(job, RAYJOB) == []
    assert job["apiVersion"] == "ray.io/v1"


def test_mistakes_are_seen(job: dict[str, Any]) -> None:
    """The check can fail."""

    def spec(job: dict[str, Any]) -> dict[str, Any]:
        return job["spec"]["rayClusterSpec"]  # type: ignore[no-any-return]

    mistakes: list[Callable[[dict[str, Any]], Any]] = [
        lambda job: job["spec"].update(entryPoint="x"),
        lambda job: spec(job).update(rayVersion=2.6),
        lambda job: spec(job)["workerGroupSpecs"][0].update(maxReplica=1),
        lambda job: spec(job)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda job: spec(job)["headGroupSpec"]["template"]["spec"]["containers"][0].update(volumeMount=[]),
    ]
    for mistake in mistakes:
        wrong = copy.deepcopy(job)
        mistake(wrong)
        assert len(problems(wrong, RAYJOB)) == 1


@pytest.mark.skipif("KUBERAY_CRD" not in os.environ, reason="KUBERAY_CRD names no file")
def test_the_whole_definition_is_met(job: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    definition = next(yaml.safe_load_all(Path(os.environ["KUBERAY_CRD"]).read_text()))
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == "v1"]
    metadata = schema["properties"].pop("metadata")
    close(schema)
    schema["properties"]["metadata"] = metadata
    assert [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(job)] == []


def close(schema: Any) -> None:
    """Makes fields that a schema does not know errors; Kubernetes drops them."""
    if isinstance(schema, list):
        for each in schema:
            close(each)
    elif isinstance(schema, dict):
        free = {"additionalProperties", "x-kubernetes-preserve-unknown-fields"}
        if "properties" in schema and not free & schema.keys():
            schema["additionalProperties"] = False
        for each in schema.values():
            close(each)


def test_its_parts_agree(documents: dict[str, dict[str, Any]], job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"]
    (volume,) = head["volumes"]
    claim = documents["PersistentVolumeClaim"]["metadata"]["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim
    (mount,) = head["containers"][0]["volumeMounts"]
    assert mount["name"] == volume["name"]
    program, *words = shlex.split(job["spec"]["entrypoint"])
    assert program == "surgery" and words[words.index("--out") + 1].startswith(mount["mountPath"])
    assert_known(words)
    images = {pod["containers"][0]["image"] for pod in (head, workers["template"]["spec"])}
    assert len(images) == 1
    assert f"FROM rayproject/ray:{cluster['rayVersion']}-py311" in (FILE.parent / "Dockerfile").read_text()
    assert 1 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
