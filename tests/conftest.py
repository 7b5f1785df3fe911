"""What the tests share: a real MinIO, a small GPT-Neo in a local folder, and the command as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "job" / "local"))
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import minio

BUCKET = "neoscope-test"


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A MinIO of this test run's own, its keys in the environment, with one bucket."""
    with minio.server(tmp_path_factory.mktemp("minio")) as server:
        settings = {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield server.endpoint


@pytest.fixture
def s3_url(endpoint: str) -> str:
    """A place in MinIO that nothing else uses."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["folder", "minio"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a run, once in a local folder and once in MinIO."""
    if request.param == "folder":
        return str(tmp_path / "run")
    return str(request.getfixturevalue("s3_url"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-Neo of 4 layers (global, local, ...), 64 neurons a layer and a window of 16 positions,
    with GPT-2's tokenizer, in the folder that a download from the Hub would leave."""
    import torch
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    from neoscope.model import packaged_tokenizer

    folder = tmp_path_factory.mktemp("tiny-gpt-neo")
    config = GPTNeoConfig(
        hidden_size=16,
        num_layers=4,
        num_heads=2,
        window_size=16,
        attention_types=[[["global", "local"], 2]],
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    GPTNeoForCausalLM(config).save_pretrained(folder)
    packaged_tokenizer().save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


def neoscope(*arguments: object, seconds: float = 120, **environment: str) -> Finished:
    """Run the command as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "neoscope", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def tiny_run(tiny_model: Path) -> list[str]:
    """The arguments, but for the place, of a run that takes a second of computing."""
    return [
        *("--model", str(tiny_model), "--dataset", "sample"),
        *("--sequences", "8", "--positions", "32"),
    ]
