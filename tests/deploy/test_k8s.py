"""The manifests: every overlay builds, an API server would take what comes out, and it is locked down.

`make test-k8s` tries them on a cluster.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from minio_program import IMAGE

from neoscope import errors
from neoscope.commands.cli import cli
from neoscope.text.documents import SAMPLE_FILE
from support.command import ROOT, invoke

if shutil.which("kubectl") is None:
    pytest.skip("kubectl is not here", allow_module_level=True)

K8S = ROOT / "k8s"
BUILDS = ["base", "overlays/local", "overlays/kueue", "overlays/spot"]
SHARED_CACHE = """
resources: [../../base]
components: [../../components/shared-cache]
"""
KUSTOMIZATION = "kustomization.yaml"
PAGE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n# k8s/overlays/mine/(\S+)\n(.+?)```", PAGE, re.DOTALL)

LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|[kMGT]|[KMGT]i)?")
SCALE = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, None: 1}

Manifest = dict[str, Any]


def build(folder: Path) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()
    return list(yaml.safe_load_all(done.stdout))


def build_overlay(files: dict[str, str], folder: Path) -> list[Manifest]:
    """What comes of an overlay beside ours."""
    mine = Path(shutil.copytree(K8S, folder / "k8s")) / "overlays" / "mine"
    mine.mkdir()
    for name, text in files.items():
        (mine / name).write_text(text)
    return build(mine)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Manifest]]:
    """What comes of each overlay, ours and those that docs/kubernetes.md has."""
    built = {name: build(K8S / name) for name in BUILDS}
    others = {"shared cache": {KUSTOMIZATION: SHARED_CACHE}}
    shown: dict[str, str] = {}
    for name, text in EXAMPLES:
        shown[name] = text
        if name == KUSTOMIZATION:
            others[f"docs {len(others)}"] = dict(shown)
    for name, files in others.items():
        built[name] = build_overlay(files, tmp_path_factory.mktemp("overlay"))
    return built


def only(manifests: list[Manifest], kind: str, name: str = "") -> Manifest:
    found = [
        each
        for each in manifests
        if each["kind"] == kind and each["metadata"]["name"].startswith(name)
    ]
    assert len(found) == 1, f"{len(found)} of kind {kind}"
    return found[0]


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    """The pod specs of Jobs and Deployments."""
    for each in manifests:
        if each["kind"] in ("Job", "Deployment"):
            yield each["spec"]["template"]["spec"]


def containers(manifests: list[Manifest]) -> Iterator[Manifest]:
    for pod in pods(manifests):
        yield from pod.get("initContainers", []) + pod["containers"]


def amount(quantity: str | int) -> float:
    found = QUANTITY.fullmatch(str(quantity))
    assert found, f"{quantity} is no quantity"
    return float(found[1]) * SCALE[found[2]]


def test_the_readme_shows_sixty_four_gpus_another_kind_of_gpu_and_one_by_claim(
    manifests: dict[str, list[Manifest]],
) -> None:
    sixty_four, other, claimed = (manifests[f"docs {number}"] for number in (1, 2, 3))
    assert only(sixty_four, "Job")["spec"]["completions"] == 64
    assert [each["image"] for each in containers(sixty_four)] == ["ghcr.io/you/neoscope:0.1.0"] * 2
    (pod,) = pods(other)
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L4"}
    (pod,) = pods(claimed)
    (claim,) = pod["resourceClaims"]
    template = only(claimed, "ResourceClaimTemplate")
    assert claim["resourceClaimTemplateName"] == template["metadata"]["name"]


# What an API server would reject


def test_names_and_labels_are_such(manifests: dict[str, list[Manifest]]) -> None:
    for each in (one for built in manifests.values() for one in built):
        assert NAME.fullmatch(each["metadata"]["name"])
        template = each.get("spec", {}).get("template", {}).get("metadata", {})
        for metadata in (each["metadata"], template):
            for value in metadata.get("labels", {}).values():
                assert isinstance(value, str) and LABEL.fullmatch(value)
            assert all(isinstance(value, str) for value in metadata.get("annotations", {}).values())


def test_settings_are_strings(manifests: dict[str, list[Manifest]]) -> None:
    for built in manifests.values():
        values = [*only(built, "ConfigMap")["data"].values()]
        values += [each["value"] for one in containers(built) for each in one.get("env", [])]
        assert all(isinstance(value, str) for value in values)


def test_all_that_a_pod_refers_to_is_there(manifests: dict[str, list[Manifest]]) -> None:
    for built in manifests.values():
        there = {(each["kind"], each["metadata"]["name"]) for each in built}
        for pod in pods(built):
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            assert all(len(volume) == 2 for volume in volumes.values()), "a volume of two kinds"
            for volume in volumes.values():
                if claim := volume.get("persistentVolumeClaim"):
                    assert ("PersistentVolumeClaim", claim["claimName"]) in there
            if account := pod.get("serviceAccountName"):
                assert ("ServiceAccount", account) in there
            for container in pod.get("initContainers", []) + pod["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} == {*volumes}
                for source in container.get("envFrom", []):
                    if "configMapRef" in source:
                        assert ("ConfigMap", source["configMapRef"]["name"]) in there
                    else:
                        assert source["secretRef"]["optional"]


def test_resources_are_quantities_and_no_request_is_over_its_limit(
    manifests: dict[str, list[Manifest]],
) -> None:
    for container in (one for built in manifests.values() for one in containers(built)):
        requests, limits = (container["resources"][part] for part in ("requests", "limits"))
        assert {"cpu", "memory"} <= {*requests}
        for name, quantity in requests.items():
            assert amount(quantity) <= amount(limits.get(name, quantity))
        for name in limits:
            assert name in requests or "/" in name, "would be requested as high as its limit"


def test_the_job_is_one_that_can_be_created(manifests: dict[str, list[Manifest]]) -> None:
    for built in manifests.values():
        spec = only(built, "Job")["spec"]
        assert spec["completionMode"] == "Indexed", "backoffLimitPerIndex and partitions ask for it"
        assert isinstance(spec["completions"], int) and isinstance(spec["parallelism"], int)
        assert spec["template"]["spec"]["restartPolicy"] == "Never", "podFailurePolicy asks for it"
        assert spec["podReplacementPolicy"] == "Failed", "podFailurePolicy asks for it"
        assert "selector" not in spec and "suspend" not in spec


# What the restricted profile of Pod Security, and more than it, asks for


def test_pods_are_restricted(manifests: dict[str, list[Manifest]]) -> None:
    for pod in (one for built in manifests.values() for one in pods(built)):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & {*pod}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "persistentVolumeClaim"}
    for container in (one for built in manifests.values() for one in containers(built)):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not container["image"].endswith(":latest")


def test_no_keys_are_in_the_base(manifests: dict[str, list[Manifest]]) -> None:
    for name, built in manifests.items():
        kinds = {each["kind"] for each in built}
        assert ("Secret" in kinds) is (name == "overlays/local")
        assert not re.search(r"KEY|TOKEN|PASSWORD", " ".join(only(built, "ConfigMap")["data"]))


def test_the_job_may_reach_names_and_stores_and_nothing_reaches_it(
    manifests: dict[str, list[Manifest]],
) -> None:
    for name, built in manifests.items():
        job = only(built, "Job")
        spec = only(built, "NetworkPolicy")["spec"]
        chosen = spec["podSelector"]["matchLabels"].items()
        assert chosen <= job["spec"]["template"]["metadata"]["labels"].items()
        assert spec["policyTypes"] == ["Ingress", "Egress"] and spec["ingress"] == []
        anywhere = [rule["ports"] for rule in spec["egress"] if "to" not in rule]
        assert {port["port"] for ports in anywhere for port in ports} == {53, 443}
        ports = {port["port"] for rule in spec["egress"] for port in rule["ports"]}
        assert (9000 in ports) is (name == "overlays/local")


# What the job asks for


def test_the_local_text_is_where_the_image_has_it(manifests: dict[str, list[Manifest]]) -> None:
    settings = only(manifests["overlays/local"], "ConfigMap")["data"]
    texts = settings["NEOSCOPE_TEXT"].split(":")
    assert {*texts} == {f"/opt/neoscope/{SAMPLE_FILE.relative_to(ROOT / 'job')}"}
    assert len(texts) == int(settings["NEOSCOPE_PARTITIONS"]), "a text is shared out by its files"


def test_every_partition_has_its_pod(manifests: dict[str, list[Manifest]]) -> None:
    for built in manifests.values():
        job = only(built, "Job")
        partitions = int(only(built, "ConfigMap")["data"]["NEOSCOPE_PARTITIONS"])
        assert job["spec"]["completions"] == job["spec"]["parallelism"] == partitions
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["run", "--partition=auto"]


def test_all_settings_are_options(manifests: dict[str, list[Manifest]]) -> None:
    commands = [cli.commands[name] for name in ("run", "fetch")]
    known = {
        variable
        for command in commands
        for each in command.params
        for variable in each.envvar or []
    }
    # Of an argument, Click keeps a lone variable as it is.
    known |= {"NEOSCOPE_OUTPUT"}
    for built in manifests.values():
        names = {*only(built, "ConfigMap")["data"]}
        assert {name for name in names if name.startswith("NEOSCOPE_")} <= known


@pytest.mark.parametrize("command", ["status", "verify"])
def test_commands_on_the_run_take_the_settings_of_its_pods(
    manifests: dict[str, list[Manifest]], tmp_path: Path, command: str
) -> None:
    settings = only(manifests["overlays/local"], "ConfigMap")["data"]
    done = invoke(command, **settings | {"NEOSCOPE_OUTPUT": str(tmp_path / "none")})
    assert done.code == 3 and "there is no run at" in done.err


def test_what_no_retry_cures_fails_the_job_and_all_else_is_tried_again(
    manifests: dict[str, list[Manifest]],
) -> None:
    final = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and kind not in (errors.NeoscopeError, errors.UnavailableError)
    }
    for built in manifests.values():
        disruption, stopped, fail = only(built, "Job")["spec"]["podFailurePolicy"]["rules"]
        assert disruption["action"] == stopped["action"] == "Ignore"
        assert stopped["onExitCodes"]["values"] == [128 + signal.SIGTERM]
        assert disruption["onPodConditions"] == [{"type": "DisruptionTarget"}]
        assert fail["action"] == "FailJob"
        assert {*fail["onExitCodes"]["values"]} == final
        assert "containerName" not in fail["onExitCodes"], "fetch has the same exit codes"


def test_a_pod_has_the_time_that_a_stop_takes_and_waits_for_a_gpu_as_long_as_it_takes(
    manifests: dict[str, list[Manifest]],
) -> None:
    for built in manifests.values():
        spec = only(built, "Job")["spec"]
        pod = spec["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > 5
        assert "activeDeadlineSeconds" not in {*spec, *pod}
        assert spec["ttlSecondsAfterFinished"] >= 24 * 60 * 60
        for container in pod["initContainers"] + pod["containers"]:
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_all_but_the_local_overlay_ask_for_a_gpu(manifests: dict[str, list[Manifest]]) -> None:
    for name, built in manifests.items():
        pod = only(built, "Job")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        devices = {each for each in container["resources"]["limits"] if "/" in each}
        claims = container["resources"].get("claims", [])
        device = only(built, "ConfigMap")["data"]["NEOSCOPE_DEVICE"]
        assert bool(devices or claims) is (name != "overlays/local") is (device == "cuda")
        assert {each["name"] for each in claims} == {
            each["name"] for each in pod.get("resourceClaims", [])
        }


def test_a_shared_cache_is_mounted_by_all_pods(manifests: dict[str, list[Manifest]]) -> None:
    built = manifests["shared cache"]
    assert only(built, "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]
    (pod,) = pods(built)
    (cache,) = [volume for volume in pod["volumes"] if volume["name"] == "cache"]
    assert "persistentVolumeClaim" in cache


def test_preemptible_nodes_are_asked_for_and_tolerated(
    manifests: dict[str, list[Manifest]],
) -> None:
    (pod,) = pods(manifests["overlays/spot"])
    tolerated = {each["key"] for each in pod["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= tolerated
    affinity = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert len(affinity["nodeSelectorTerms"]) == 4


def test_kueue_s_queue_has_room_for_the_base(manifests: dict[str, list[Manifest]]) -> None:
    job = only(manifests["overlays/kueue"], "Job")
    queues = list(yaml.safe_load_all((K8S / "overlays" / "kueue" / "queues.yaml").read_text()))
    local, cluster = only(queues, "LocalQueue"), only(queues, "ClusterQueue")
    flavor = only(queues, "ResourceFlavor")["metadata"]["name"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
    assert local["spec"]["clusterQueue"] == cluster["metadata"]["name"]
    (group,) = cluster["spec"]["resourceGroups"]
    (quotas,) = group["flavors"]
    assert quotas["name"] == flavor
    room = {each["name"]: amount(each["nominalQuota"]) for each in quotas["resources"]}
    assert {*room} == {*group["coveredResources"]}
    (container,) = job["spec"]["template"]["spec"]["containers"]
    asked = container["resources"]["limits"] | container["resources"]["requests"]
    assert {name: amount(one) * job["spec"]["parallelism"] for name, one in asked.items()} == room


def test_the_local_store_is_the_minio_of_the_tests(manifests: dict[str, list[Manifest]]) -> None:
    built = manifests["overlays/local"]
    (container,) = only(built, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == IMAGE
    settings = only(built, "ConfigMap")["data"]
    service = only(built, "Service")
    port = service["spec"]["ports"][0]["port"]
    assert settings["AWS_ENDPOINT_URL"] == f"http://{service['metadata']['name']}:{port}"
    assert (
        service["spec"]["selector"].items()
        <= only(built, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    )
