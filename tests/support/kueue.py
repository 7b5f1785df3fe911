"""Kueue for a test cluster, built from its Go module, which has its manifests too: no registry is needed.

    python tests/support/kueue.py image      makes its image with Docker, to be loaded as neoscope's own is
    python tests/support/kueue.py install    puts it on the cluster that kubectl points at, and waits for it
    python tests/support/kueue.py remove     takes it off again, with all queues

On a cluster that reaches registries, Kueue's own way does as well.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from programs import MODULES, program

MODULE, VERSION = "sigs.k8s.io/kueue", MODULES["kueue"][1]
IMAGE = f"localhost/kueue:{VERSION}"
DOCKERFILE = """
FROM scratch
COPY manager /manager
USER 65532:65532
ENTRYPOINT ["/manager"]
"""


def image() -> None:
    """Make the image, which is one program and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(program("kueue"), Path(folder) / "manager")
        (Path(folder) / "Dockerfile").write_text(DOCKERFILE)
        subprocess.run(["docker", "build", "--quiet", "--tag", IMAGE, folder], check=True)


def manifests() -> list[dict[str, Any]]:
    """Kueue's default, with the image made here.

    Without its aggregated API, by which pending workloads are listed: a cluster whose API server has no
    certificate for such would tell no API group whole any more, and end no namespace.
    """
    module = json.loads(_output("go", "mod", "download", "-json", f"{MODULE}@{VERSION}"))["Dir"]
    built = _output("kubectl", "kustomize", f"{module}/config/default")
    kept = [each for each in yaml.safe_load_all(built) if each["kind"] != "APIService"]
    (deployment,) = (each for each in kept if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container |= {"image": IMAGE, "imagePullPolicy": "IfNotPresent"}
    return kept


def install() -> None:
    """Apply the manifests; return when the webhooks answer."""
    # On the server's side: a client's annotation has no room for definitions as long as these.
    _kubectl("apply", "--server-side", "--force-conflicts", "--filename", "-")
    name = "deployment/kueue-controller-manager"
    waiting = ["rollout", "status", name, "--namespace", "kueue-system", "--timeout", "300s"]
    subprocess.run(["kubectl", *waiting], check=True)
    flavor = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor"}
    trial = json.dumps({**flavor, "metadata": {"name": "trial"}})
    command = ["kubectl", "create", "--dry-run=server", "--filename", "-"]
    deadline = time.monotonic() + 120
    while subprocess.run(command, input=trial, text=True, capture_output=True).returncode != 0:
        if time.monotonic() > deadline:
            sys.exit(f"{name} does not answer: kubectl logs --namespace kueue-system {name}")
        time.sleep(1)


def remove() -> None:
    _kubectl("delete", "--ignore-not-found", "--filename", "-")


def _kubectl(*arguments: str) -> None:
    given = yaml.safe_dump_all(manifests())
    subprocess.run(["kubectl", *arguments], input=given, text=True, check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    ways = {"image": image, "install": install, "remove": remove}
    if sys.argv[1:2] == [] or sys.argv[1] not in ways:
        sys.exit(f"give one of {', '.join(ways)}")
    ways[sys.argv[1]]()
