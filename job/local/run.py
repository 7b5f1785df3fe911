"""What `make run-local` does once MinIO is up: makes the bucket and calls `neoscope run`.

The arguments are passed on to `neoscope run`. FRESH=1 makes a new run in place of the one that is there,
which goes once the new one is whole. Where the Hugging Face Hub does not answer, the run
is made of what the package brings along. Only here: `neoscope run` itself never falls back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import boto3
import httpx2
import minio
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from huggingface_hub import constants, get_session

from neoscope.format.layout import belongs

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "neoscope"
PROBED = "EleutherAI/gpt-neo-125m/resolve/main/config.json"
NEOSCOPE = Path(sysconfig.get_path("scripts")) / "neoscope"
REFUSED = 4  # exit code of `neoscope run` where the output holds another run

NO_HUB = """\
The Hugging Face Hub does not answer. Where you ask for nothing else, this local run therefore uses
the sample text that comes with neoscope, GPT-2's vocabulary (it is GPT-Neo's too), and RANDOM
WEIGHTS in the shape of GPT-Neo 125M: all works as with the real model, but the numbers mean nothing
about GPT-Neo.
"""


def main(arguments: list[str]) -> int:
    given = minio.given_endpoint(minio.DIRECTORY, os.environ)
    if not given:
        for name in minio.SHADOWING:
            os.environ.pop(name, None)
        os.environ.update(minio.read_environment(minio.DIRECTORY))
    store = boto3.Session().client(
        "s3",
        endpoint_url=given or os.environ["AWS_ENDPOINT_URL"],
        config=Config(connect_timeout=5),
    )
    make_bucket(store)
    # Two places, so that a run with the Hub and one without never meet.
    place = "local"
    if not hub_answers():
        print(NO_HUB, file=sys.stderr, flush=True)
        place = "local-sample"
        if not any(each.startswith(("--dataset", "--text")) for each in arguments):
            arguments = ["--dataset", "sample", *arguments]
        if not any(each.startswith("--weights") for each in arguments):
            arguments = ["--weights", "random", *arguments]
    output = f"s3://{BUCKET}/{place}"
    if os.environ.get("FRESH") and keys(store, f"{place}/"):
        code = replace(store, place, arguments)
        if code:
            return code
    code = neoscope("run", output, *arguments)
    if code == REFUSED:
        print("To make it anew: make run-local FRESH=1", file=sys.stderr)
    if code == 0:
        (minio.DIRECTORY / "run").write_text(f"{output}\n")  # for `make report`
        environment = "" if given else " && source .minio/env"
        print(f"In a new shell, first: source .venv/bin/activate{environment}")
    return code


def replace(store: S3Client, place: str, arguments: list[str]) -> int:
    """Makes a run anew beside the one at a place, and puts it there; an exit code. A run that cannot be
    made, for whatever reason, takes nothing from the one that is there."""
    old, new = f"s3://{BUCKET}/{place}", f"s3://{BUCKET}/{place}-fresh"
    others = [key for key in keys(store, f"{place}/") if not belongs(key)]
    if others:
        print(f"{old} holds what is no run's: {others[0]}; take it away first", file=sys.stderr)
        return REFUSED
    discard(store, f"{place}-fresh")  # what a start that was broken off has left
    if code := neoscope("run", new, *arguments, quiet=True):
        discard(store, f"{place}-fresh")
        print(f"The run at {old} stays as it was.", file=sys.stderr)
        return code
    for words in (("delete", old, "--yes"), ("pull", new, old)):
        if code := neoscope(*words, quiet=True):
            print(f"The new run is whole, at {new}.", file=sys.stderr)
            return code
    discard(store, f"{place}-fresh")
    return 0


def discard(store: S3Client, place: str) -> None:
    if keys(store, f"{place}/"):
        neoscope("delete", f"s3://{BUCKET}/{place}", "--yes", quiet=True)


def make_bucket(store: S3Client) -> None:
    try:
        store.head_bucket(Bucket=BUCKET)
    except ClientError as error:
        if error.response["Error"]["Code"] != "404":
            raise
        store.create_bucket(Bucket=BUCKET)


def keys(store: S3Client, prefix: str) -> list[str]:
    """The keys under a prefix, without it."""
    pages = store.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [each["Key"].removeprefix(prefix) for page in pages for each in page.get("Contents", [])]


def hub_answers() -> bool:
    """Whether a file of the model can be had; known in seconds, not after minutes of retries."""
    try:
        url = f"{constants.ENDPOINT}/{PROBED}"
        return get_session().head(url, timeout=3, follow_redirects=True).is_success
    except (httpx2.TransportError, OSError):  # OSError: HF_HUB_OFFLINE is set
        return False


def neoscope(*arguments: str, quiet: bool = False) -> int:
    """Runs the command to its end, which it chooses itself when told to stop; its exit code. With
    `quiet` it says on stderr what it does, and nothing of what came out."""
    process = subprocess.Popen([NEOSCOPE, *arguments], stdout=subprocess.DEVNULL if quiet else None)

    def pass_on(number: int, frame: FrameType | None) -> None:
        # Ctrl-C reaches the command without us.
        if number == signal.SIGTERM:
            process.terminate()

    signal.signal(signal.SIGINT, pass_on)
    signal.signal(signal.SIGTERM, pass_on)
    code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (BotoCoreError, ClientError) as error:
        sys.exit(f"run.py: the store: {error} (unset AWS_ENDPOINT_URL to use a MinIO of its own)")
