"""The NetworkPolicy of the local overlay, where the cluster enforces such: part of `make test-k8s`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from support.command import ROOT
from support.kubernetes import Cluster, namespaced, store_is_up, unreachable

IMAGE = "localhost/neoscope:dev"
ALLOWED, PORT = 443, 8000  # to anything; neither to nor from our pods
PODS = {"ours": {"app.kubernetes.io/name": "neoscope"}, "one": {}, "another": {}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := unreachable():
        pytest.skip(reason)
    overlay = ROOT / "k8s" / "overlays" / "local"
    built = subprocess.check_output(["kubectl", "kustomize", str(overlay)], text=True)
    with namespaced() as cluster:
        parts = list(yaml.safe_load_all(built))
        cluster.apply(
            *(each for each in parts if each["kind"] == "NetworkPolicy" or is_minio(each)),
            *(pod(name, labels) for name, labels in PODS.items()),
        )
        store_is_up(cluster)
        cluster.kubectl(
            "wait", "--for=condition=Ready", "--timeout=300s", *(f"pod/{name}" for name in PODS)
        )
        yield cluster


def is_minio(manifest: dict[str, Any]) -> bool:
    return bool(manifest["metadata"]["name"] == "minio")


def pod(name: str, labels: dict[str, str]) -> dict[str, Any]:
    """A pod that serves HTTP at both ports, as the restricted profile allows it."""
    serve = "python -m http.server --directory /tmp"
    served = {
        "name": "serves",
        "image": IMAGE,
        "command": ["sh", "-c", f"{serve} {ALLOWED} & exec {serve} {PORT}"],
        "readinessProbe": {"exec": {"command": ["python", "-c", connecting("localhost", PORT)]}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "containers": [served],
            "securityContext": {
                "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]
            },
            "terminationGracePeriodSeconds": 0,
        },
    }


def connecting(host: str, port: int) -> str:
    return f"import socket; socket.create_connection(({host!r}, {port}), 5)"


def reaches(cluster: Cluster, name: str, host: str, port: int) -> bool:
    command = ["kubectl", "--namespace", cluster.namespace, "exec", name, "--"]
    command += ["python", "-c", connecting(host, port)]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_our_pods_reach_the_store_and_names_and_nothing_else_nor_are_they_reached(
    cluster: Cluster,
) -> None:
    address = {name: cluster.get(f"pod/{name}")["status"]["podIP"] for name in PODS}
    assert reaches(cluster, "one", address["another"], PORT), (
        "pods reach each other, but for a policy"
    )

    def refused() -> list[str]:
        """Of what the policy does not allow, what is refused."""
        ways = {"out": ("ours", "another"), "in": ("one", "ours")}
        return [
            way
            for way, (begins, ends) in ways.items()
            if not reaches(cluster, begins, address[ends], PORT)
        ]

    if not refused():
        pytest.skip("this cluster enforces no NetworkPolicy")
    assert refused() == ["out", "in"]
    assert reaches(cluster, "ours", "minio", 9000)
    assert reaches(cluster, "ours", address["another"], ALLOWED), "as S3 and the Hub are"
