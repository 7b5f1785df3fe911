"""The cluster that kubectl points at, to the tests of `make test-k8s`.

In: overlays, written beside copies of ours. Out: what the cluster says of them. All that is made is in a
namespace of its own, which enforces the restricted profile of Pod Security and is deleted again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.command import ROOT, Finished, invoke

KEYS = {
    "AWS_ACCESS_KEY_ID": "minioadmin",
    "AWS_SECRET_ACCESS_KEY": "minioadmin",
    "AWS_REGION": "us-east-1",
}
LEVELS = ("enforce", "warn", "audit")
GPU = "nvidia.com/gpu"
PRESENT = "nvidia.com/gpu.present"  # the label by which NVIDIA's operator marks a node with GPUs

# An overlay of those with GPUs, on CPUs: the local overlay's image, store and settings. Fewer processors are
# asked for, so that several pods fit a machine that has few; memory and the GPU are asked for as they are.
ON_CPUS = """
resources: [../../{base}, minio.yaml]
components: [../../components/partitions]
configMapGenerator:
  - name: neoscope-run
    behavior: merge
    envs: [run.env]
secretGenerator:
  - name: neoscope-s3
    literals: [AWS_ACCESS_KEY_ID=minioadmin, AWS_SECRET_ACCESS_KEY=minioadmin]
images:
  - name: registry.example.com/neoscope
    newName: localhost/neoscope
    newTag: dev
patches:
  - target: {{kind: Job, name: neoscope}}
    patch: |
      - op: replace
        path: /spec/template/spec/initContainers/0/resources/requests/cpu
        value: 100m
      - op: replace
        path: /spec/template/spec/containers/0/resources/requests/cpu
        value: 100m
  - target: {{kind: NetworkPolicy, name: neoscope}}
    patch: |
      - op: add
        path: /spec/egress/-
        value:
          to: [{{podSelector: {{matchLabels: {{app.kubernetes.io/name: minio}}}}}}]
          ports: [{{protocol: TCP, port: 9000}}]
"""


@dataclass(frozen=True)
class Cluster:
    """kubectl and make, in the namespace of these tests."""

    namespace: str

    def kubectl(self, *arguments: object, given: str | None = None) -> str:
        command = ["kubectl", "--namespace", self.namespace, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, input=given)
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

    def apply(self, *manifests: dict[str, Any]) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": manifests}
        self.kubectl("apply", "--filename", "-", given=json.dumps(listed))

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

    def wait(self, condition: Callable[[], Any], seconds: float = 600) -> Any:
        """What the condition is, once that is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(1)
        raise AssertionError(f"not so in {seconds} s:\n{self.make('k8s-status')}")

    def ended(self, seconds: float = 600) -> dict[str, Any]:
        """The condition with which the Job ended."""

        def condition() -> dict[str, Any] | None:
            for each in self.get("job/neoscope").get("status", {}).get("conditions", []):
                if each["type"] in ("Complete", "Failed") and each["status"] == "True":
                    return dict(each)
            return None

        return dict(self.wait(condition, seconds))

    def launch(self, files: dict[str, str], folder: Path) -> None:
        """Launch an overlay beside ours, in the place of the Job that was there."""
        variant = Path(shutil.copytree(ROOT / "k8s", folder / "k8s")) / "overlays" / "variant"
        variant.mkdir()
        for name, text in files.items():
            (variant / name).write_text(text)
        self.kubectl("delete", "job/neoscope", "--ignore-not-found", "--cascade=foreground")
        self.kubectl("apply", "--kustomize", variant)

    def launch_on_cpus(self, base: str, folder: Path, **settings: object) -> None:
        """Launch a folder of k8s/ that asks for GPUs, to run on the CPUs that are behind them here."""
        local = ROOT / "k8s" / "overlays" / "local"
        lines = [line for line in (local / "run.env").read_text().splitlines() if "=" in line]
        merged = dict(line.split("=", 1) for line in lines if line[0] != "#") | settings
        files = {
            "kustomization.yaml": ON_CPUS.format(base=base),
            "minio.yaml": (local / "minio.yaml").read_text(),
            "run.env": "".join(f"{name}={value}\n" for name, value in merged.items()),
        }
        self.launch(files, folder)


def store_is_up(cluster: Cluster) -> None:
    """Return when the store in the cluster answers."""
    cluster.kubectl("wait", "deployment/minio", "--for=condition=Available", "--timeout=300s")


def unreachable() -> str | None:
    """Why these tests cannot be made here, None where they can."""
    if shutil.which("kubectl") is None:
        return "kubectl is not here"
    command = ["kubectl", "version", "--request-timeout=10s"]
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode == 0 else f"no cluster: {done.stderr.strip()}"


@contextmanager
def namespaced() -> Iterator[Cluster]:
    """The cluster, with a namespace that goes when the block ends."""
    cluster = Cluster(f"neoscope-test-{uuid.uuid4().hex[:6]}")
    labels = [f"pod-security.kubernetes.io/{level}=restricted" for level in LEVELS]
    cluster.kubectl("create", "namespace", cluster.namespace)
    try:
        cluster.kubectl("label", "namespace", cluster.namespace, *labels)
        yield cluster
    finally:
        # Before the namespace: there it would replace the pods that are taken away first, and fail, for long.
        cluster.kubectl("delete", "jobs", "--all", "--cascade=foreground")
        cluster.kubectl("delete", "namespace", cluster.namespace)


@contextmanager
def forwarded(cluster: Cluster) -> Iterator[Callable[..., Finished]]:
    """The command of this machine, on the store in the cluster."""
    store_is_up(cluster)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    forward = f"kubectl --namespace {cluster.namespace} port-forward service/minio {port}:9000"
    # It ends when a connection through it does so in the middle: the command tries again, and so does this.
    again = ["sh", "-c", f"while :; do {forward}; sleep 0.2; done"]
    silent = subprocess.DEVNULL
    process = subprocess.Popen(again, stdout=silent, stderr=silent, start_new_session=True)
    try:
        cluster.wait(lambda: answers(port), seconds=60)
        store = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", **KEYS}
        yield lambda *arguments: invoke(*arguments, **store)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def gpus(node: dict[str, Any]) -> int:
    """How many GPUs a node says that it has for pods."""
    return int(node["status"]["allocatable"].get(GPU, 0))


def real_gpus() -> str | None:
    """Why no GPUs can be pretended on this cluster, None where they can."""
    nodes = json.loads(subprocess.check_output(["kubectl", "get", "nodes", "--output", "json"]))
    having = [node["metadata"]["name"] for node in nodes["items"] if gpus(node)]
    return f"node {having[0]} has GPUs of its own: none are pretended" if having else None


@contextmanager
def pretended_gpus(cluster: Cluster, count: int) -> Iterator[str]:
    """A node that says that it has GPUs; its name. The scheduler counts them, and nothing is behind them."""
    node = cluster.get("nodes")["items"][0]["metadata"]["name"]
    path = f"/status/capacity/{GPU.replace('/', '~1')}"

    def patch(**operation: str) -> None:
        words = ("--subresource=status", "--type=json", f"--patch={json.dumps([operation])}")
        cluster.kubectl("patch", "node", node, *words)

    patch(op="add", path=path, value=str(count))
    cluster.kubectl("label", "node", node, f"{PRESENT}=true")
    try:
        # The kubelet, which keeps what it does not know, takes it over within seconds.
        cluster.wait(lambda: gpus(cluster.get(f"node/{node}")) == count, seconds=120)
        yield node
    finally:
        patch(op="remove", path=path)
        cluster.kubectl("label", "node", node, f"{PRESENT}-")


def index(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"])


def succeeded(pod: dict[str, Any]) -> bool:
    return bool(pod["status"]["phase"] == "Succeeded")


def stored(told: str) -> dict[str, int]:
    """The stored batches of each partition, from what `neoscope status` told."""
    return {name: int(count) for name, count in re.findall(r"partition (\d): (\d+) of", told)}
