"""Manifests and Serve's configuration fit their schemas, each other and the service.

Kubernetes' own kinds, the pods inside of others too, are held against its strict schemas, and
Serve's configuration against Ray's. Of the kinds of KubeRay, KEDA and the Prometheus operator only
what matters is looked at here.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.main import _LAST_BYTES_SECONDS
from app.settings import Settings
from tests.test_deployment import series, used_series

DOCKER = Path(__file__).parent.parent / "docker"


def manifests(name: str) -> dict[str, dict[str, Any]]:
    """By kind, of which there is one each."""
    documents = list(yaml.safe_load_all((DOCKER / "kubernetes" / name).read_text()))
    found = {document["kind"]: document for document in documents}
    assert len(found) == len(documents)
    return found


PLAIN = manifests("posemux.yaml")
SCALING = manifests("scaling.yaml")
RAY = manifests("rayservice.yaml")["RayService"]
WORKERS = RAY["spec"]["rayClusterConfig"]["workerGroupSpecs"]
PODS = {
    "plain": PLAIN["Deployment"]["spec"]["template"],
    "head": RAY["spec"]["rayClusterConfig"]["headGroupSpec"]["template"],
    **{group["groupName"]: group["template"] for group in WORKERS},
}
SERVE = {
    "ray-serve.yaml": yaml.safe_load((DOCKER / "ray-serve.yaml").read_text()),
    "rayservice.yaml": yaml.safe_load(RAY["spec"]["serveConfigV2"]),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_manifests_fit_the_schemas_of_kubernetes(kind: str) -> None:
    kubernetes_validate.validate(PLAIN[kind], "1.37", strict=True)


@pytest.mark.parametrize("name", PODS)
def test_pods_fit_their_schema_and_take_no_variables_of_services(name: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **PODS[name]}
    kubernetes_validate.validate(pod, "1.37", strict=True)
    assert pod["spec"]["enableServiceLinks"] is False
    known = {f"POSE_{field.upper()}" for field in Settings.model_fields}
    [container] = pod["spec"]["containers"]
    variables = {variable["name"] for variable in container["env"]}
    assert {name for name in variables if name.startswith("POSE_")} <= known


def test_a_pod_has_the_time_to_finish_what_it_let_in() -> None:
    spec = PODS["plain"]["spec"]
    [container] = spec["containers"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = Settings.model_fields["drain_seconds"].default
    assert spec["terminationGracePeriodSeconds"] >= pause + drain + _LAST_BYTES_SECONDS
    for group in WORKERS:
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= 2 * drain


def test_services_probes_and_scrapes_find_the_pods() -> None:
    labels = PODS["plain"]["metadata"]["labels"]
    [container] = PODS["plain"]["spec"]["containers"]
    [port] = container["ports"]
    service = PLAIN["Service"]
    assert service["metadata"]["name"] != "pose"
    for selector in (
        PLAIN["Deployment"]["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        PLAIN["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    [served] = service["spec"]["ports"]
    assert served["targetPort"] == port["name"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]

    monitor = SCALING["ServiceMonitor"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    [endpoint] = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == (served["name"], "/metrics")


def test_keda_scales_the_deployment_by_a_series_that_exists() -> None:
    scaled = SCALING["ScaledObject"]
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    spec = scaled["spec"]
    target = {key: PLAIN["Deployment"][key] for key in ("kind",)}
    target["name"] = PLAIN["Deployment"]["metadata"]["name"]
    assert spec["scaleTargetRef"] == target
    assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
    [trigger] = spec["triggers"]
    assert trigger["type"] == "prometheus"
    query = trigger["metadata"]["query"]
    assert used_series(query) == {"pose_queue_depth"} <= series().keys()
    # KEDA takes texts.
    assert trigger["metadata"]["threshold"] == str(Settings().max_batch_images)


@pytest.mark.parametrize("name", SERVE)
def test_what_serve_is_told_fits_its_schema_and_the_code(name: str) -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="Ray is in the extra `ray`")
    from app import cluster

    config = SERVE[name]
    schema.ServeDeploySchema.model_validate(config)
    settings = Settings()
    assert config["http_options"]["request_timeout_s"] >= (
        settings.deadline_seconds + settings.transfer_seconds
    )
    [application] = config["applications"]
    module, _, attribute = application["import_path"].partition(":")
    assert getattr(import_module(module), attribute) is cluster.application
    [deployment] = application["deployments"]
    assert application["name"] == deployment["name"] == cluster.NAME
    target = deployment["autoscaling_config"]["target_ongoing_requests"]
    assert target == 2 * settings.max_batch_images


def test_kuberay_starts_the_ray_that_the_image_holds() -> None:
    spec = RAY["spec"]["rayClusterConfig"]
    pins = (DOCKER.parent / "constraints.txt").read_text().splitlines()
    assert f"ray=={spec['rayVersion']}" in pins
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in WORKERS:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    most = SERVE["rayservice.yaml"]["applications"][0]["deployments"][0]["autoscaling_config"]
    # A GPU each.
    assert sum(group["maxReplicas"] for group in WORKERS) == most["max_replicas"]
