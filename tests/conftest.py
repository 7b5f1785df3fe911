"""What the tests share: a real MinIO, a small GPT-Neo in a local folder, and the command as a process."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import hypothesis
import pytest

from support.command import BUCKET, FAULTS, ROOT, invoke

sys.path.insert(0, str(ROOT / "job" / "local"))
import minio

# A loaded machine is no fault of a test.
hypothesis.settings.register_profile("neoscope", deadline=None)
hypothesis.settings.load_profile("neoscope")


def pytest_configure(config: pytest.Config) -> None:
    """A worker of pytest-xdist makes the choices of the process that started it."""
    FAULTS.update(getattr(config, "workerinput", {}).get("faults", {}))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["faults"] = FAULTS


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of the faults made, and what came of them."""
    rows: dict[tuple[str, str], int] = {}
    refused = ("bad inputs", "refused in one line with the exit code that is documented")
    for report in [each for some in terminalreporter.stats.values() for each in some]:
        if getattr(report, "when", None) != "call":
            continue
        for name, told in report.user_properties:
            if name == "fault":
                fault, count, outcome = told
                rows[fault, outcome] = rows.get((fault, outcome), 0) + count
        if report.passed and "test_bad_input_is_one_line" in report.nodeid:
            rows[refused] = rows.get(refused, 0) + 1
    if rows:
        width = max(len(fault) for fault, _ in rows)
        terminalreporter.section(f"faults made (NEOSCOPE_FAULTS_SEED={FAULTS['seed']})")
        for (fault, outcome), count in sorted(rows.items()):
            terminalreporter.write_line(f"{fault:<{width}}  {count:>5}  {outcome}")


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
            boto3.Session().client("s3").create_bucket(Bucket=BUCKET)
            yield server.endpoint


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """boto3's chain with nothing in it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


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

    from neoscope.text.tokenizer import packaged_tokenizer

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


@pytest.fixture
def tiny_run(tiny_model: Path) -> list[str]:
    """The arguments, but for the place, of a run that takes a second of computing."""
    return [
        *("--model", str(tiny_model), "--dataset", "sample"),
        *("--sequences", "8", "--positions", "32"),
    ]


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-Neo of 3 layers with 64 neurons, a window of 8 positions and a vocabulary of 512 learnt
    from the packaged sample, in a folder as from the Hub: a run of it takes a tenth of a second."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast

    from neoscope.text.documents import SAMPLE_FILE

    folder = tmp_path_factory.mktemp("small-gpt-neo")
    learnt = ByteLevelBPETokenizer()
    text = [json.loads(line)["text"] for line in SAMPLE_FILE.read_text("utf-8").splitlines()]
    learnt.train_from_iterator(
        text, vocab_size=512, special_tokens=["<|endoftext|>"], show_progress=False
    )
    PreTrainedTokenizerFast(
        tokenizer_object=learnt._tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    ).save_pretrained(folder)
    config = GPTNeoConfig(
        vocab_size=512,
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        window_size=8,
        attention_types=[[["global"], 1], [["local"], 1], [["global"], 1]],
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    GPTNeoForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def small_run(small_model: Path) -> list[str]:
    """The arguments, but for the place, of a run that takes a tenth of a second of computing."""
    return [
        *("--model", str(small_model), "--dataset", "sample"),
        *("--sequences", "8", "--positions", "24"),
    ]


@pytest.fixture(scope="session")
def partitioned(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of three partitions of two batches, from text files that give each its share."""
    from neoscope.text.documents import SAMPLE_FILE

    folder = tmp_path_factory.mktemp("partitioned")
    lines = SAMPLE_FILE.read_text("utf-8").splitlines()
    texts = []
    for number in range(3):
        path = folder / f"{number}.jsonl"
        path.write_text("\n".join(lines[number * 11 : number * 11 + 11]) + "\n")
        texts += ["--text", path]
    shape = ["--sequences", 4, "--positions", 16, "--partitions", 3, "--batches", 2]
    for partition in (1, 0, 2):
        words = ["--model", small_model, *texts, *shape, "--partition", partition]
        done = invoke("run", folder / "run", *words)
        assert done.code == 0, done.err
    return str(folder / "run")
