"""The local overlay on the cluster that kubectl points at: `make test-k8s`, not part of `make test`.

The cluster needs the image, a default StorageClass and 2 free processors; all that is made is in a
namespace of its own, which enforces the restricted profile of Pod Security and is deleted again.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_k8s import manifests  # noqa: F401

from support.command import ROOT, Finished, invoke

PARTITIONS = 3
KEYS = {
    "AWS_ACCESS_KEY_ID": "minioadmin",
    "AWS_SECRET_ACCESS_KEY": "minioadmin",
    "AWS_REGION": "us-east-1",
}
LEVELS = ("enforce", "warn", "audit")
VARIANT = """
resources: [../local]
components: [../../components/partitions]
configMapGenerator:
  - name: neoscope-run
    behavior: merge
    literals: {literals}
"""


@dataclass(frozen=True)
class Cluster:
    """kubectl and make, in the namespace of these tests."""

    namespace: str

    def kubectl(self, *arguments: object) -> str:
        command = ["kubectl", "--namespace", self.namespace, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def make(self, target: str) -> str:
        # ARGS would else be those of the make that runs these tests.
        command = ["make", target, "OVERLAY=local", f"NAMESPACE={self.namespace}", "ARGS="]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, what: str, *arguments: str) -> dict[str, Any]:
        return dict(json.loads(self.kubectl("get", what, "--output", "json", *arguments)))

    def pods(self) -> list[dict[str, Any]]:
        selector = "batch.kubernetes.io/job-name=neoscope"
        return list(self.get("pods", "--selector", selector)["items"])

    def evict(self, pod: str, folder: Path) -> None:
        """As a drained node does."""
        about = {"name": pod, "namespace": self.namespace}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": about}
        (folder / "eviction.json").write_text(json.dumps(eviction))
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        self.kubectl("create", "--raw", path, "--filename", folder / "eviction.json")

    def ended(self, seconds: float = 600) -> dict[str, Any]:
        """The condition with which the Job ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for condition in self.get("job/neoscope").get("status", {}).get("conditions", []):
                if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
                    return dict(condition)
            time.sleep(1)
        raise AssertionError(f"the Job has not ended in {seconds} s:\n{self.make('k8s-status')}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(f"neoscope-test-{uuid.uuid4().hex[:6]}")
    labels = [f"pod-security.kubernetes.io/{level}=restricted" for level in LEVELS]
    cluster.kubectl("create", "namespace", cluster.namespace)
    try:
        cluster.kubectl("label", "namespace", cluster.namespace, *labels)
        yield cluster
    finally:
        cluster.kubectl("delete", "namespace", cluster.namespace)


@pytest.fixture
def launch(cluster: Cluster, tmp_path: Path) -> Callable[..., None]:
    """Launches the local overlay with other settings, in the place of the Job that was there."""

    def launch(*literals: str) -> None:
        copy = Path(shutil.copytree(ROOT / "k8s", tmp_path / "k8s"))
        (copy / "overlays" / "variant").mkdir()
        (copy / "overlays" / "variant" / "kustomization.yaml").write_text(
            VARIANT.format(literals=json.dumps(literals))
        )
        cluster.kubectl("delete", "job/neoscope", "--ignore-not-found", "--cascade=foreground")
        cluster.kubectl("apply", "--kustomize", copy / "overlays" / "variant")

    return launch


@contextmanager
def forwarded(cluster: Cluster) -> Iterator[Callable[..., Finished]]:
    """The command of this machine, on the store in the cluster."""
    cluster.kubectl("wait", "deployment/minio", "--for=condition=Available", "--timeout=300s")
    command = [
        "kubectl",
        "--namespace",
        cluster.namespace,
        "port-forward",
        "service/minio",
        ":9000",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert found
            store = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{found[1]}", **KEYS}
            yield lambda *arguments: invoke(*arguments, **store)
        finally:
            process.terminate()


def index(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"])


def succeeded(pod: dict[str, Any]) -> bool:
    return bool(pod["status"]["phase"] == "Succeeded")


def test_the_api_server_takes_all_overlays_those_of_the_readme_too(
    cluster: Cluster,
    manifests: dict[str, list[dict[str, Any]]],  # noqa: F811
    tmp_path: Path,
) -> None:
    for name, built in manifests.items():
        (tmp_path / "built.yaml").write_text(yaml.safe_dump_all(built))
        trying = ("--filename", tmp_path / "built.yaml", "--dry-run=server", "--validate=strict")
        said = cluster.kubectl("apply", *trying)
        assert "job.batch/neoscope created" in said, name
        assert "Warning" not in said, f"{name}: Pod Security, or something deprecated"


def test_the_local_overlay_makes_a_run(cluster: Cluster) -> None:
    cluster.make("k8s-run")
    assert cluster.ended()["type"] == "Complete", cluster.make("k8s-logs")
    assert cluster.make("k8s-status").count("Succeeded") == PARTITIONS
    assert "checked: 12 layers of one shape" in cluster.make("k8s-logs")
    with forwarded(cluster) as command:
        done = command("verify", "s3://neoscope/local")
    assert done.code == 0, done.err + done.out


def test_a_finished_job_makes_way_for_the_same_again(cluster: Cluster) -> None:
    before = {pod["metadata"]["uid"] for pod in cluster.pods()}
    cluster.make("k8s-run")
    assert cluster.ended()["type"] == "Complete"
    assert not before & {pod["metadata"]["uid"] for pod in cluster.pods()}
    assert cluster.make("k8s-logs").count("already holds this run, whole") == PARTITIONS


def test_a_run_goes_on_after_a_deleted_and_an_evicted_pod_and_is_whole(
    cluster: Cluster, launch: Callable[..., None], tmp_path: Path
) -> None:
    batches = 12
    url = "s3://neoscope/killed"
    launch(f"NEOSCOPE_OUTPUT={url}", f"NEOSCOPE_BATCHES={batches}")
    with forwarded(cluster) as command:
        stored = {"0": 0, "1": 0, "2": 0}
        while not (stored["1"] and stored["2"]):
            found = re.findall(r"partition (\d): (\d+) of", command("status", url).out)
            stored |= {partition: int(count) for partition, count in found}
        assert max(stored.values()) < batches, "it was over before it could be stopped"
        first = {index(pod): pod["metadata"]["name"] for pod in cluster.pods()}
        cluster.evict(first["2"], tmp_path)
        cluster.kubectl("delete", "pod", first["1"])
        assert cluster.ended()["type"] == "Complete", cluster.make("k8s-logs")
        assert cluster.get("job/neoscope")["status"]["failed"] == 1, "an evicted pod is no try"
        second = {index(pod): pod["metadata"]["name"] for pod in cluster.pods() if succeeded(pod)}
        for partition in ("1", "2"):
            assert second[partition] != first[partition]
            log = cluster.kubectl("logs", second[partition])
            went_on = re.search(rf"going on after batch (\d+) of {batches}", log)
            assert went_on and int(went_on[1]) >= stored[partition], log
        assert "36 of 36 batches, 3 of 3 partitions whole" in command("status", url).out
        done = command("verify", url)
        assert done.code == 0, done.err + done.out


@pytest.mark.parametrize(
    ("setting", "container", "message"),
    [
        ("NEOSCOPE_STORE_DTYPE=float64", "containerStatuses", "'float64' is not one of"),
        ("NEOSCOPE_MODEL=./nowhere", "initContainerStatuses", "./nowhere is no folder here"),
    ],
)
def test_what_no_retry_cures_fails_the_job_at_once_and_says_why(
    cluster: Cluster, launch: Callable[..., None], setting: str, container: str, message: str
) -> None:
    launch("NEOSCOPE_OUTPUT=s3://neoscope/wrong", setting)
    condition = cluster.ended(seconds=120)
    assert (condition["type"], condition["reason"]) == ("Failed", "PodFailurePolicy")
    failed = [pod for pod in cluster.pods() if pod["status"]["phase"] == "Failed"]
    assert len(failed) <= PARTITIONS, "something was tried again"
    said = [each["state"]["terminated"] for pod in failed for each in pod["status"][container]]
    assert any(message in each.get("message", "") for each in said), said
    assert message in cluster.make("k8s-status")
