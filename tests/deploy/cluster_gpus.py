"""k8s/base on a node that says that it has GPUs, and runs it on its CPU: part of `make test-k8s`.

What GPUs there are is patched into the node's capacity, which the scheduler believes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.kubernetes import (
    Cluster,
    forwarded,
    namespaced,
    pretended_gpus,
    real_gpus,
    succeeded,
    unreachable,
)

GPUS = 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := unreachable() or real_gpus():
        pytest.skip(reason)
    with namespaced() as cluster, pretended_gpus(cluster, GPUS):
        yield cluster


def placed(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pods that hold a GPU."""
    return [
        pod
        for pod in pods
        if pod["spec"].get("nodeName") and pod["status"]["phase"] in ("Pending", "Running")
    ]


def test_the_base_is_scheduled_a_pod_for_each_gpu_and_the_others_wait(
    cluster: Cluster, tmp_path: Path
) -> None:
    url = "s3://neoscope/gpus"
    cluster.launch_on_cpus("base", tmp_path, NEOSCOPE_OUTPUT=url, NEOSCOPE_BATCHES=4)

    def two_are_placed_and_one_waits() -> bool:
        pods = cluster.pods()
        told = [
            each.get("message", "") for pod in pods for each in pod["status"].get("conditions", [])
        ]
        return len(placed(pods)) == GPUS and any(
            "Insufficient nvidia.com/gpu" in one for one in told
        )

    cluster.wait(two_are_placed_and_one_waits)
    # The third waits for a GPU and for nothing else, and gets the first that is free.
    at_most = 0

    def third_is_placed() -> bool:
        nonlocal at_most
        pods = cluster.pods()
        at_most = max(at_most, len(placed(pods)))
        return any(map(succeeded, pods)) and all(pod["spec"].get("nodeName") for pod in pods)

    cluster.wait(third_is_placed)
    assert at_most == GPUS
    assert cluster.ended()["type"] == "Complete", cluster.make("k8s-logs")
    with forwarded(cluster) as command:
        done = command("verify", url)
    assert done.code == 0, done.err + done.out
