"""The kueue overlay, as Kueue really queues, admits and preempts it: part of `make test-k8s`.

Needs Kueue on the cluster (tests/support/kueue.py puts it there). The GPUs of its queue, which is the
example's, are pretended, as in cluster_gpus.py.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.command import ROOT
from support.kubernetes import (
    GPU,
    PRESENT,
    Cluster,
    forwarded,
    index,
    namespaced,
    pretended_gpus,
    real_gpus,
    store_is_up,
    stored,
    succeeded,
    unreachable,
)

QUEUES = ROOT / "k8s" / "overlays" / "kueue" / "queues.yaml"
GPUS = 8  # of that queue
URGENT = "neoscope-test-urgent"
PRIORITY = {
    "apiVersion": "kueue.x-k8s.io/v1beta2",
    "kind": "WorkloadPriorityClass",
    "metadata": {"name": URGENT},
    "value": 1000,
}
BATCHES = 24


def lacking() -> str | None:
    """Why these tests cannot be made here, None where they can."""
    if reason := unreachable():
        return reason
    there = ["kubectl", "get", "clusterqueues.kueue.x-k8s.io", "--output", "name"]
    done = subprocess.run(there, capture_output=True, text=True)
    if done.returncode != 0:
        return "no Kueue on this cluster: python tests/support/kueue.py says how"
    if "clusterqueue.kueue.x-k8s.io/gpu\n" in done.stdout:
        return "this cluster has a queue called gpu, which is the example's name"
    return real_gpus()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := lacking():
        pytest.skip(reason)
    with namespaced() as cluster, pretended_gpus(cluster, GPUS):
        cluster.apply(PRIORITY)
        cluster.kubectl("apply", "--filename", QUEUES)
        try:
            yield cluster
        finally:
            cluster.kubectl("delete", "jobs", "--all", "--cascade=foreground")
            cluster.kubectl("delete", "--filename", QUEUES)
            cluster.kubectl("delete", "workloadpriorityclass", URGENT)


def hold(cluster: Cluster, name: str, gpus: int) -> None:
    """Queue somebody else's Job of one pod, which is more urgent than ours and only sleeps."""
    container = {
        "name": "sleep",
        "image": "localhost/neoscope:dev",
        "command": ["sleep", "infinity"],
        "resources": {
            "requests": {"cpu": "10m", "memory": "16Mi"},
            "limits": {"memory": "16Mi", GPU: str(gpus)},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    labels = {"kueue.x-k8s.io/queue-name": "neoscope", "kueue.x-k8s.io/priority-class": URGENT}
    cluster.apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "labels": labels},
            "spec": {"template": {"spec": pod}},
        }
    )


def running(cluster: Cluster, job: str) -> bool:
    return bool(cluster.get(f"job/{job}")["status"].get("active"))


def release(cluster: Cluster, *jobs: str) -> None:
    cluster.kubectl("delete", "jobs", *jobs, "--cascade=foreground")


def conditions(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """What Kueue says of our Job's workload, by the condition's type; nothing until it has made one."""
    ours = [
        each
        for each in cluster.get("workloads.kueue.x-k8s.io")["items"]
        if each["metadata"]["ownerReferences"][0]["name"] == "neoscope"
    ]
    assert len(ours) <= 1, ours
    return {each["type"]: each for one in ours for each in one["status"].get("conditions", [])}


def test_it_waits_for_quota_takes_part_of_it_is_preempted_and_goes_on_to_its_end(
    cluster: Cluster, tmp_path: Path
) -> None:
    hold(cluster, "six", 6)
    hold(cluster, "two", 2)
    cluster.wait(lambda: running(cluster, "six") and running(cluster, "two"))
    url = "s3://neoscope/queued"
    settings = {"NEOSCOPE_OUTPUT": url, "NEOSCOPE_BATCHES": BATCHES}
    cluster.launch_on_cpus("overlays/kueue", tmp_path, **settings)

    # All GPUs are taken: the Job is there, suspended, without a pod.
    waiting = cluster.wait(lambda: conditions(cluster).get("QuotaReserved"))
    assert waiting["status"] == "False" and GPU in waiting["message"], waiting
    assert cluster.get("job/neoscope")["spec"]["suspend"] is True
    assert cluster.pods() == []

    # Two are free: two of the three pods run, on nodes of the queue's kind.
    store_is_up(cluster)  # or they would try in vain, and be tried again
    release(cluster, "two")
    cluster.wait(lambda: len(cluster.pods()) == 2)
    spec = cluster.get("job/neoscope")["spec"]
    assert (spec["suspend"], spec["parallelism"], spec["completions"]) == (False, 2, 3)
    assert spec["template"]["spec"]["nodeSelector"] == {PRESENT: "true"}
    with forwarded(cluster) as command:

        def two_have_begun() -> dict[str, int]:
            counts = stored(command("status", url).out)
            return counts if min(counts.get("0", 0), counts.get("1", 0)) else {}

        before = cluster.wait(two_have_begun)
        assert max(before.values()) < BATCHES, "it was over before it could be preempted"

        # What is more urgent takes their GPUs: no pod is left, and what they stored stays.
        hold(cluster, "two", 2)
        cluster.wait(lambda: running(cluster, "two"))
        preempted = conditions(cluster)["Preempted"]
        assert (preempted["status"], preempted["reason"]) == ("True", "InClusterQueue"), preempted
        job = cluster.get("job/neoscope")
        assert job["spec"]["suspend"] is True and job["spec"]["parallelism"] == 3
        cluster.wait(lambda: not cluster.pods())

        # All are free again: it goes on after its records, and that was no try of the Job's.
        release(cluster, "six", "two")
        assert cluster.ended()["type"] == "Complete", cluster.make("k8s-logs")
        ended = cluster.get("job/neoscope")
        assert ended["spec"]["parallelism"] == 3
        assert not ended["status"].get("failed") and not ended["status"].get("failedIndexes")
        logs = {
            index(pod): cluster.kubectl("logs", pod["metadata"]["name"])
            for pod in cluster.pods()
            if succeeded(pod)
        }
        for partition in ("0", "1"):
            went_on = re.search(rf"going on after batch (\d+) of {BATCHES}", logs[partition])
            assert went_on and int(went_on[1]) >= before[partition], logs[partition]
        done = command("verify", url)
        assert done.code == 0, done.err + done.out
