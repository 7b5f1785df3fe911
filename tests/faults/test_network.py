"""Between the command and the store stands a proxy that spoils a fifth of all requests: the run finishes
all the same, and is the undisturbed one. What arrives shortened is never taken for whole."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults.conftest import NewUrl, Tell, Undisturbed, times
from faults.content import content, differences, objects
from faults.forks import Forks
from faults.proxy import FAULTS, Plan, Request, proxied, spoil

CODES_OF_A_FIND = (5, 75)


def told(faults: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(faults.items()))


def test_a_run_through_a_network_that_spoils_a_fifth_of_all_requests_is_the_undisturbed_one(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    endpoint: str,
    new_url: NewUrl,
    chance: random.Random,
    tell: Tell,
) -> None:
    faults, requests, smooth, starts, runs = Counter[str](), 0, 0, 0, times(1, 20)
    with proxied(endpoint) as proxy:
        through = ["--endpoint-url", proxy.endpoint]
        assert forks.run("run", new_url(), *arguments, *through).code == 0
        smooth = len(proxy.requests) * runs
        for _ in range(runs):
            place = new_url()
            proxy.requests.clear()
            proxy.plan = spoil(chance.randrange(10**6))
            code = 75
            while code == 75:  # one start in some hundred meets four faults in a row at the bucket
                starts += 1
                ended = forks.run("run", place, *arguments, *through)
                code = ended.code
                assert code == 0 or "does not answer" in ended.err, ended.err
            assert differences(content(place), undisturbed.content) == []
            faults += proxy.faults
            requests += len(proxy.requests)
    tell(
        "a fifth of all requests spoiled",
        faults.total(),
        f"{runs} runs identical in {starts} starts; {told(faults)}; "
        f"{requests} requests instead of {smooth}",
    )


class EachOnce:
    """A plan that spoils every request when it is made for the first time."""

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._seen: set[tuple[str, str, str]] = set()

    def __call__(self, request: Request) -> str | None:
        what = (request.method, request.key, request.query)
        again = what in self._seen
        self._seen.add(what)
        return None if again else self._fault


def test_a_run_whose_every_request_is_spoiled_once_is_the_undisturbed_one(
    forks: Forks, arguments: list[str], endpoint: str, new_url: NewUrl, tmp_path: Path, tell: Tell
) -> None:
    brief = [*arguments, "--batches", "1"]
    undisturbed = Undisturbed(forks, str(tmp_path / "run"), brief)
    faults = Counter[str]()

    def run(fault: str) -> None:
        place = new_url()
        with proxied(endpoint, EachOnce(fault)) as proxy:
            ended = forks.run("run", place, *brief, "--endpoint-url", proxy.endpoint)
            assert ended.code == 0, ended.err
            assert differences(content(place), undisturbed.content) == [], fault
            faults.update(proxy.faults)

    with ThreadPoolExecutor(len(FAULTS)) as pool:  # they wait most of the time
        list(pool.map(run, [fault for fault in FAULTS if fault != "stall"]))
    tell("every request spoiled once", faults.total(), f"5 runs identical; {told(faults)}")


def shortening(share: float, seed: int, keys: tuple[str, ...] = ("",)) -> Plan:
    """Cut some bodies that the store sends, and say that they are as long as they are."""
    chance = random.Random(seed)

    def plan(request: Request) -> str | None:
        hit = request.method == "GET" and request.key.endswith(keys) and chance.random() < share
        return "short" if hit else None

    return plan


def test_a_body_that_is_cut_and_looks_whole_is_never_taken_for_whole_by_verify(
    forks: Forks,
    endpoint: str,
    stored: str,
    chance: random.Random,
    tell: Tell,
) -> None:
    count, cut, again = times(8, 100), 0, 0
    keys = sorted(objects(stored))
    with proxied(endpoint) as proxy:
        for number in range(count):
            # each object alone, and now and then a listing or a tenth of all
            key = chance.choice(keys)
            if number % 4:
                proxy.plan = shortening(1, 0, (key,))
            else:
                proxy.plan = shortening(0.1, chance.randrange(10**6))
            proxy.requests.clear()
            ended = forks.run("verify", stored, "--endpoint-url", proxy.endpoint)
            if ended.code == 0:  # what was cut was asked for again, and then came whole
                asked = {
                    request.key: request.fault for request in proxy.requests if not request.query
                }
                assert "short" not in asked.values()
                assert not [r for r in proxy.requests if r.query and r.fault]
                again += proxy.faults["short"] > 0
            else:
                assert proxy.faults["short"] and ended.code in CODES_OF_A_FIND, (key, ended.out)
                cut += 1
    tell("verify got shortened bodies", cut, f"{cut} found (exit 5 or 75)")
    tell("verify got shortened bodies, and then whole ones", again, "exit 0")


def test_a_run_that_gets_shortened_bodies_never_commits_anything_else(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    endpoint: str,
    new_url: NewUrl,
    chance: random.Random,
    tell: Tell,
) -> None:
    """It finds them, or needs none of what was lost; the same command then finishes."""
    codes, cut = Counter[int](), 0
    with proxied(endpoint) as proxy:
        through = ["--endpoint-url", proxy.endpoint]
        for _ in range(times(3, 30)):
            place = new_url()
            proxy.requests.clear()
            proxy.plan = shortening(0.1, chance.randrange(10**6))
            for _ in range(3):
                ended = forks.run("run", place, *arguments, *through)
                codes[ended.code] += 1
                if ended.code == 0:
                    break
                assert ended.code in CODES_OF_A_FIND, ended.err
            cut += proxy.faults["short"]
            proxy.plan = lambda _: None
            ended = forks.run("run", place, *arguments, *through)
            assert ended.code == 0, ended.err
            assert differences(content(place), undisturbed.content) == []
    outcome = ", ".join(f"{count} starts ended {code}" for code, count in sorted(codes.items()))
    tell("run got a shortened body", cut, f"{outcome}; all identical in the end")
