"""deploy/rayjob.yaml and the lines of docs/cluster.md about images and Kubernetes, by their text: there is no cluster here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.label.config import read_command

ROOT = Path(__file__).parent.parent
_PAGE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    """The schema of an object that has these fields and no others."""
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


_TEXT, _WHOLE = {"type": "string"}, {"type": "integer", "minimum": 0}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_CONTAINER = _object(
    "name image envFrom resources",
    name=_TEXT,
    image=_TEXT,
    envFrom={"type": "array", "items": _object("secretRef", secretRef=_object("name", name=_TEXT))},
    resources=_object("requests limits", requests=_TEXTS, limits=_TEXTS),
    volumeMounts={"type": "array", "items": _object("name mountPath", name=_TEXT, mountPath=_TEXT)},
)
_TOLERATION = _object("key operator effect", key=_TEXT, operator={"enum": ["Equal", "Exists"]}, value=_TEXT, effect=_TEXT)
_TEMPLATE = _object(
    "spec",
    spec=_object(
        "containers",
        containers={"type": "array", "items": _CONTAINER, "minItems": 1},
        tolerations={"type": "array", "items": _TOLERATION},
        securityContext=_object("fsGroup", fsGroup=_WHOLE),
        volumes={"type": "array", "items": _object("name emptyDir", name=_TEXT, emptyDir=_object())},
    ),
)
_GROUP = _object(
    "groupName replicas minReplicas maxReplicas rayStartParams template",
    groupName=_TEXT,
    replicas=_WHOLE,
    minReplicas=_WHOLE,
    maxReplicas=_WHOLE,
    rayStartParams=_TEXTS,
    template=_TEMPLATE,
)
_CLUSTER = _object(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion=_TEXT,
    authOptions=_object("mode", mode={"enum": ["token"]}),
    headGroupSpec=_object("rayStartParams template", rayStartParams=_TEXTS, template=_TEMPLATE),
    workerGroupSpecs={"type": "array", "items": _GROUP},
)
_RAY_JOB = _object(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_object("name", name=_TEXT),
    spec=_object(
        "entrypoint rayClusterSpec",
        entrypoint=_TEXT,
        backoffLimit=_WHOLE,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=_WHOLE,
        rayClusterSpec=_CLUSTER,
    ),
)
"""Those fields of the CRD rayjobs.ray.io, v1, of KubeRay 1.6.0 that we use, with their types; no field is left open."""


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy/rayjob.yaml").read_text(encoding="utf-8"))


def test_the_job_has_the_fields_of_kuberay(job: dict[str, Any]):
    jsonschema.Draft202012Validator(_RAY_JOB).validate(job)
    for harm in ("entrypiont", "env"):
        with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
            jsonschema.Draft202012Validator(_RAY_JOB).validate(job | {harm: ""})


def test_its_command_is_one_and_its_versions_and_names_are_ours(job: dict[str, Any]):
    cluster = job["spec"]["rayClusterSpec"]
    python, dash_m, module, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (python, dash_m, module) == ("python", "-m", "pipeline.label")
    assert read_command([*arguments, "--preset", "demo"]).address == "auto"  # of the others the newest commits are looked up
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    containers = [container for pod in pods for container in pod["containers"]]
    assert (
        {container["image"] for container in containers} == set(_after("docker build", "--tag")) == set(_after("docker push"))
    )
    secrets = {source["secretRef"]["name"] for container in containers for source in container["envFrom"]}
    assert secrets == set(_after("kubectl create secret generic")) == {"bucket"}
    assert _after("kubectl get rayjob") == [job["metadata"]["name"]]
    assert all((ROOT / path).is_file() for path in _after("kubectl apply", "-f"))
    assert not any(word in (ROOT / "deploy/rayjob.yaml").read_text(encoding="utf-8") for word in ("AWS_", "value: s3"))


def test_the_image_is_built_with_extras_and_a_stage_that_are_there():
    dockerfile, project = ((ROOT / name).read_text(encoding="utf-8") for name in ("Dockerfile", "pyproject.toml"))
    (build,) = _lines("docker build")
    (extras,) = re.findall(r"--build-arg EXTRAS=(\S+)", build)
    assert all(f"\n{extra} = [" in project for extra in extras.split(","))
    for stage in ("cpu", "cuda"):
        own = dockerfile.split(f"AS {stage}\n")[1].split("\nFROM")[0]
        assert "\nARG EXTRAS=\n" in f"\n{own}"
        assert '".${EXTRAS:+[$EXTRAS]}"' in own
    assert "--target cuda " in build
    (install,) = _lines(".venv/bin/pip install")
    assert f'".[{extras}]"' in install


def _lines(start: str) -> list[str]:
    return [line for line in re.findall(r"^    (.+)$", _PAGE, flags=re.M) if line.startswith(start)]


def _after(start: str, option: str | None = None) -> list[str]:
    """The word after an option, or after the start itself, in each such line of the page."""
    words = [(shlex.split(line), len(start.split())) for line in _lines(start)]
    return [line[line.index(option) + 1 if option else first] for line, first in words]
