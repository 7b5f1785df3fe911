"""Between the command and the store stands a proxy that changes bits of bodies, and one that says that it has
stored what it has not: a run is never committed wrong, and ends all the same, by putting again."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from faults.conftest import NewUrl, Tell, Undisturbed, times
from faults.content import content, differences
from faults.forks import Forks
from faults.proxy import Plan, Request, proxied
from neoscope.storage.store import READS

# A store that does not know the checksum takes a wrong one: MinIO, asked by a header of another name.
UNKNOWN_HEADER = """
from neoscope.storage import integrity
integrity.HEADER = "x-neoscope-unknown"
"""
# And one whose ETag is no MD5, as with KMS: only reading back is left.
NO_MD5 = f"""{UNKNOWN_HEADER}
from neoscope.storage import store
store.is_md5 = lambda tag, body: False
"""
WAYS = {"checksum": "", "ETag": UNKNOWN_HEADER, "read back": NO_MD5}


def altering(share: float, seed: int, faults: dict[str, str], suffixes: tuple[str, ...]) -> Plan:
    """One of the faults of its method for a share of all requests of objects with these endings.

    What is read is not spoiled as often as it is read before it is believed.
    """
    chance, read = random.Random(seed), Counter[str]()

    def plan(request: Request) -> str | None:
        fault = faults.get(request.method)
        named = request.query == "" and request.key.endswith(suffixes)
        if not (fault and named and chance.random() < share):
            return None
        if request.method == "GET":
            read[request.key] += 1
            return fault if read[request.key] < READS else None
        return fault

    return plan


ANY = ("",)
DOCUMENTS = (".json", ".safetensors")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "faults", [{"PUT": "flip"}, {"PUT": "swallow"}, {"GET": "flip back"}], ids=str
)
def test_a_run_is_never_committed_wrong(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    endpoint: str,
    new_url: NewUrl,
    chance: random.Random,
    tell: Tell,
    way: str,
    faults: dict[str, str],
) -> None:
    runs, made = times(1, 100), Counter[str]()
    with proxied(endpoint) as proxy:
        number = 0
        while number < runs or not made:
            place, number = new_url(), number + 1
            proxy.requests.clear()
            proxy.plan = altering(
                0.1, chance.randrange(10**6), faults, ANY if number % 2 else DOCUMENTS
            )
            through = ["--endpoint-url", proxy.endpoint]
            ended = forks.run("run", place, *arguments, *through, disturb=WAYS[way])
            assert ended.code == 0, ended.err
            made += proxy.faults
            altered = bool(proxy.faults) and "PUT" in faults
            assert ended.err.count(", and is put again") == altered
            assert differences(content(place), undisturbed.content) == []
    ((fault, count),) = made.items()
    tell(f"{fault}, of all bodies or of documents, {way}", count, f"{number} runs, all identical")


def test_a_second_claim_that_is_answered_and_not_kept_is_not_one_put_over(
    forks: Forks, arguments: list[str], undisturbed: Undisturbed, endpoint: str, new_url: NewUrl
) -> None:
    puts = Counter[str]()

    def plan(request: Request) -> str | None:
        claim = request.method == "PUT" and request.key.endswith("run.json")
        puts["claim"] += claim
        # The first has a wrong checksum and is refused, the second is kept.
        return "swallow" if claim and puts["claim"] == 3 else None

    place = new_url()
    with proxied(endpoint, plan) as proxy:
        ended = forks.run("run", place, *arguments, "--endpoint-url", proxy.endpoint)
        assert proxy.faults["swallow"] == 1
    assert ended.code == 0, ended.err
    assert differences(content(place), undisturbed.content) == []


def test_what_is_altered_every_time_ends_the_run_and_commits_nothing(
    forks: Forks, arguments: list[str], endpoint: str, new_url: NewUrl, tell: Tell
) -> None:
    for fault in ("flip", "swallow"):
        place = new_url()
        with proxied(endpoint, altering(1, 0, {"PUT": fault}, ("/c/0/0/0",))) as proxy:
            ended = forks.run("run", place, *arguments, "--endpoint-url", proxy.endpoint)
        assert ended.code == 75
        (line,) = [line for line in ended.err.splitlines() if "neoscope: error:" in line]
        assert "8 times: the storage or the way to it is faulty" in line
        assert not [key for key in content(place) if key.endswith(("zarr.json", "manifest.json"))]
    tell("every put of one chunk altered or swallowed", 2, "exit 75, one line, nothing committed")
