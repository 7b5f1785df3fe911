"""No key that the environment holds is ever printed or stored: not when all goes well, not by a refusal
that quotes the request, not by a defect's traceback."""

from __future__ import annotations

import secrets

import pytest

from faults.conftest import NewUrl, Tell
from faults.content import objects
from faults.forks import Ended, Forks
from faults.proxy import proxied
from faults.test_store import allowed

CRASH = """
from neoscope.pipeline import {module}
def crash(*_, **__):
    raise RuntimeError("a defect")
{module}.{name} = crash
"""
NO_HUB = "import huggingface_hub; huggingface_hub.constants.ENDPOINT = 'http://127.0.0.1:1'"


@pytest.fixture
def keys(endpoint: str) -> dict[str, str]:
    """Working keys, with a token, and one for the Hub; each is unlike anything else."""
    found = allowed("s3:*")
    return {**found, "HF_TOKEN": f"hf_{secrets.token_hex(16)}"}


def test_no_key_is_ever_told(
    forks: Forks,
    arguments: list[str],
    endpoint: str,
    new_url: NewUrl,
    keys: dict[str, str],
    tell: Tell,
) -> None:
    place = new_url()
    wrong = {"AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
    hidden = [*keys.values(), *wrong.values()]
    printed: list[Ended] = []

    def run(*command: object, code: int, disturb: str = "", **other: str) -> None:
        ended = forks.run(*command, environment={**keys, **other}, disturb=disturb)
        assert ended.code == code, ended.err
        printed.append(ended)

    run("run", place, *arguments, code=0)
    run("run", place, *arguments, code=0)
    run("run", place, *arguments, "--batches", "2", code=4)
    for command in ("verify", "status"):
        run(command, place, code=0)
    run("run", place, *arguments, code=3, **wrong)
    for module, name in (("loop", "stream"), ("inputs", "load_tokenizer")):
        crash = CRASH.format(module=module, name=name)
        run("run", new_url(), *arguments, code=1, disturb=crash)
    run("run", new_url(), "--dataset", "nobody/nothing", code=75, disturb=NO_HUB)
    run("run", new_url(), *arguments, "--endpoint-url", "http://127.0.0.1:1", code=75)
    with_keys = f"http://{keys['AWS_ACCESS_KEY_ID']}:{keys['AWS_SECRET_ACCESS_KEY']}@127.0.0.1:1"
    run("run", new_url(), *arguments, code=2, AWS_ENDPOINT_URL=with_keys)
    for fault in ("quoting 403", "quoting 400"):
        with proxied(
            endpoint, lambda it, fault=fault: fault if it.method == "PUT" else None
        ) as proxy:
            run(
                "run",
                new_url(),
                *arguments,
                "--endpoint-url",
                proxy.endpoint,
                code=3 if "403" in fault else 75,
            )
    stored = objects(place)
    run("delete", place, "--yes", code=0)
    for key in hidden:
        assert not [ended for ended in printed if key in ended.out + ended.err]
        assert not [name for name, body in stored.items() if key.encode() in body]
    tell(
        "keys in the environment",
        len(hidden),
        f"in none of {len(printed)} outputs, {len(stored)} objects",
    )
