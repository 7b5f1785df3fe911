"""The local overlay on the cluster that kubectl points at: `make test-k8s`, not part of `make test`.

The cluster needs the image, a default StorageClass and 2 free processors; all that is made is in a
namespace of its own, which enforces the restricted profile of Pod Security and is deleted again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_k8s import manifests  # noqa: F401

from neoscope.errors import UnavailableError
from neoscope.text.documents import SAMPLE_FILE
from support.command import Finished
from support.kubernetes import (
    Cluster,
    forwarded,
    index,
    namespaced,
    stored,
    succeeded,
    unreachable,
)

PARTITIONS = 3
VARIANT = """
resources: [../local]
components: [../../components/partitions]
configMapGenerator:
  - name: neoscope-run
    behavior: merge
    literals: {literals}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := unreachable():
        pytest.skip(reason)
    with namespaced() as cluster:
        yield cluster


@pytest.fixture
def launch(cluster: Cluster, tmp_path: Path) -> Callable[..., None]:
    """Launches the local overlay with other settings, in the place of the Job that was there."""

    def launch(*literals: str) -> None:
        text = VARIANT.format(literals=json.dumps(literals))
        cluster.launch({"kustomization.yaml": text}, tmp_path)

    return launch


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


def batches_of_all(
    cluster: Cluster, command: Callable[..., Finished], url: str, batches: int
) -> dict[str, int]:
    """The stored batches of each partition, once each has some and none has all."""

    def some_of_all() -> dict[str, int]:
        counts = stored(command("status", url).out)
        return counts if len(counts) == PARTITIONS and min(counts.values()) else {}

    counts = dict(cluster.wait(some_of_all))
    assert max(counts.values()) < batches, "it was over before it could be stopped"
    return counts


def test_a_run_goes_on_after_a_deleted_and_an_evicted_pod_and_is_whole(
    cluster: Cluster, launch: Callable[..., None], tmp_path: Path
) -> None:
    batches = 12
    url = "s3://neoscope/killed"
    launch(f"NEOSCOPE_OUTPUT={url}", f"NEOSCOPE_BATCHES={batches}")
    with forwarded(cluster) as command:
        before = batches_of_all(cluster, command, url, batches)
        first = {index(pod): pod["metadata"]["name"] for pod in cluster.pods()}
        cluster.evict(first["2"], tmp_path)
        cluster.kubectl("delete", "pod", first["1"])
        assert cluster.ended()["type"] == "Complete", cluster.make("k8s-logs")
        assert not cluster.get("job/neoscope")["status"].get("failed"), "neither of them is a try"
        second = {index(pod): pod["metadata"]["name"] for pod in cluster.pods() if succeeded(pod)}
        for partition in ("1", "2"):
            assert second[partition] != first[partition]
            log = cluster.kubectl("logs", second[partition])
            went_on = re.search(rf"going on after batch (\d+) of {batches}", log)
            assert went_on and int(went_on[1]) >= before[partition], log
        assert "36 of 36 batches, 3 of 3 partitions whole" in command("status", url).out
        done = command("verify", url)
        assert done.code == 0, done.err + done.out


def test_a_run_begun_on_kubernetes_is_finished_by_hand(
    cluster: Cluster, launch: Callable[..., None]
) -> None:
    batches = 12
    url = "s3://neoscope/begun"
    launch(f"NEOSCOPE_OUTPUT={url}", f"NEOSCOPE_BATCHES={batches}")
    with forwarded(cluster) as command:
        before = batches_of_all(cluster, command, url, batches)
        cluster.kubectl("delete", "job/neoscope", "--cascade=foreground")
        words = ["--weights", "random", "--sequences", 4, "--positions", 64, "--batches", batches]
        texts = [word for _ in range(PARTITIONS) for word in ("--text", SAMPLE_FILE)]
        words += [*texts, "--partitions", PARTITIONS, "--device", "cpu"]
        said = ""
        for _ in range(5):
            done = command("run", url, *words, "--partition", f"0-{PARTITIONS - 1}")
            said += done.err
            # A forwarded port may lose its connections: the same command again.
            if done.code != UnavailableError.exit_code:
                break
        assert done.code == 0, said
        went_on = re.findall(
            rf"partition (\d) of .*\n.*going on after batch (\d+) of {batches}", said
        )
        assert {partition for partition, _ in went_on} == before.keys(), said
        assert all(int(batch) >= before[partition] for partition, batch in went_on)
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
