"""SIGTERM ends the command within five seconds at any moment, with 143 and one line, and leaves everything
whole; and a command that has done its work ends with 0, whatever it leaves unread."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.conftest import NewUrl, Tell, Undisturbed, times
from faults.content import content, differences, objects
from faults.forks import Ended, Forks, Process
from faults.proxy import Request, proxied

SECONDS = 5.0  # the contract
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def stop(process: Process, number: signal.Signals = signal.SIGTERM) -> Ended:
    """Stop it; within five seconds it ends with the code of the signal and one line."""
    process.send(number)
    ended = process.wait(SECONDS)
    if ended.code != 0:  # it may have been done
        assert ended.code == CODES[number]
        check_one_line(ended.err, number)
    return ended


def check_one_line(err: str, number: signal.Signals = signal.SIGTERM) -> None:
    lines = [line for line in err.splitlines() if f"stopped by {number.name}" in line]
    assert len(lines) == 1
    assert "Rerun the same command" in lines[0]
    assert "Traceback" not in err


def check_finishes(forks: Forks, place: str, arguments: list[str], expected: Undisturbed) -> None:
    ended = forks.run("run", place, *arguments)
    assert ended.code == 0, ended.err
    assert differences(content(place), expected.content) == []


def test_stopped_at_any_moment(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    tmp_path: Path,
    chance: random.Random,
    tell: Tell,
) -> None:
    count, stopped, attempts = times(6, 60), 0, 0
    while stopped < count:
        attempts += 1
        place = str(tmp_path / str(attempts))
        process = forks.start("run", place, *arguments)
        process.until(lambda process=process: "preparing" in process.err)
        time.sleep(chance.uniform(0, 0.4))
        number = chance.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGINT])
        if stop(process, number).code != 0:
            stopped += 1
        check_finishes(forks, place, arguments, undisturbed)
    tell(
        "SIGTERM or SIGINT at a random moment", count, "143 or 130 in 5 s; then finished, identical"
    )


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has taken charge of a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (number - 1) & 1)


@contextmanager
def fresh(*arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a user starts it, from the moment that it takes charge of SIGTERM."""
    with subprocess.Popen(
        [sys.executable, "-m", "neoscope", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            while not catches(process.pid, signal.SIGTERM):
                assert process.poll() is None
                time.sleep(0.005)
            yield process
        finally:
            process.kill()


def stop_fresh(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 143
    check_one_line(err)


linux = pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="only Linux tells which signals a process catches",
)


@linux
def test_stopped_among_its_imports(
    arguments: list[str], tmp_path: Path, chance: random.Random, tell: Tell
) -> None:
    count = times(2, 20)
    for _ in range(count):
        with fresh("run", tmp_path / "run", *arguments) as process:
            time.sleep(chance.uniform(0, 2))
            assert "run.json" not in objects(str(tmp_path / "run"))
            stop_fresh(process)
    tell("SIGTERM during imports, fresh process", count, "143 in 5 s")


@linux
def test_stopped_while_the_hub_stalls(tmp_path: Path, text: Path, tell: Tell) -> None:
    count = times(1, 5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for _ in range(count):
            hub = f"http://127.0.0.1:{silent.getsockname()[1]}"
            arguments = ["--model", "nobody/gpt-neo", "--text", text]
            with fresh("run", tmp_path / "run", *arguments, HF_ENDPOINT=hub) as process:
                silent.accept()
                stop_fresh(process)
    assert objects(str(tmp_path / "run")) == {}
    tell("SIGTERM while the Hub stalls, fresh process", count, "143 in 5 s")


@pytest.mark.parametrize(
    ("what", "method", "end"),
    [
        ("the bucket", "HEAD", ""),
        ("the claim", "PUT", "run.json"),
        ("a chunk", "PUT", "/MLP_1/c/5/0/0"),
        ("the read-back", "GET", "/c/0/0/0"),
        ("a record", "PUT", "00000-00000002.json"),
        ("the manifest", "PUT", "manifest.json"),
    ],
)
def test_stopped_while_the_store_stalls(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    endpoint: str,
    new_url: NewUrl,
    what: str,
    method: str,
    end: str,
    tell: Tell,
) -> None:
    place = new_url()

    def hold(request: Request) -> str | None:
        return "hold" if request.method == method and request.key.endswith(end) else None

    with proxied(endpoint, hold) as proxy:
        process = forks.start("run", place, *arguments, "--endpoint-url", proxy.endpoint)
        process.until(lambda: proxy.faults["hold"] > 0)
        assert stop(process).code == 143
    assert "manifest.json" not in objects(place)
    check_finishes(forks, place, arguments, undisturbed)
    tell("SIGTERM while the store stalls", 1, "143 in 5 s; then finished, identical")


@linux
def test_stopped_by_a_signal_that_another_thread_takes(
    forks: Forks, arguments: list[str], endpoint: str, new_url: NewUrl, tell: Tell
) -> None:
    """The kernel may give a signal to any thread, and does where one starts another at that moment."""

    def hold(request: Request) -> str | None:
        return "hold" if request.method == "PUT" and request.key.endswith("/c/1/0/0") else None

    with proxied(endpoint, hold) as proxy:
        process = forks.start("run", new_url(), *arguments, "--endpoint-url", proxy.endpoint)
        process.until(lambda: proxy.faults["hold"] > 0)
        threads = [int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir()]
        other = max(thread for thread in threads if thread != process.pid)
        assert ctypes.CDLL(None).tgkill(process.pid, other, signal.SIGTERM) == 0
        ended = process.wait(SECONDS)
    assert ended.code == 143
    check_one_line(ended.err)
    tell("SIGTERM taken by another thread", 1, "143 in 5 s")


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of a GPT-Neo whose forward pass takes many seconds of one thread and stores little."""
    from transformers import GPTNeoConfig

    folder = tmp_path_factory.mktemp("slow-gpt-neo")
    GPTNeoConfig(
        vocab_size=512,
        hidden_size=768,
        intermediate_size=64,
        num_layers=8,
        num_heads=12,
        attention_types=[[["global", "local"], 4]],
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    ).save_pretrained(folder)
    return folder


def test_stopped_in_a_forward_pass(
    forks: Forks,
    slow_model: Path,
    small_model: Path,
    tmp_path: Path,
    chance: random.Random,
    tell: Tell,
) -> None:
    count = times(2, 10)
    arguments = [
        *("--model", str(slow_model), "--weights", "random", "--tokenizer", str(small_model)),
        *("--dataset", "sample", "--sequences", "16", "--positions", "512"),
    ]
    for number in range(count):
        place = tmp_path / str(number)
        process = forks.start("run", place, *arguments)
        process.until(lambda place=place: any(place.rglob("MLP_0/c/*/*/0")))
        time.sleep(chance.uniform(0, 1))
        ended = stop(process)
        assert ended.code == 143
        assert not any(key.startswith("records/") for key in objects(str(place)))
    tell("SIGTERM in a forward pass", count, "143 in 5 s, nothing recorded")


def test_a_parquet_file_that_is_read_in_part_spoils_no_exit_code(
    forks: Forks, arguments: list[str], text: Path, tmp_path: Path, tell: Tell
) -> None:
    """Its destructors can abort Python at exit, in about half of all tries."""
    count, whole = times(28, 190), times(2, 10)
    brief = [*arguments, "--batches", "1"]

    def run(number: int) -> None:
        ended = forks.run("run", tmp_path / str(number), *brief)
        assert ended.code == 0, ended.err
        if number % 10 == 0:
            ended = forks.run("verify", tmp_path / str(number), "--text", "--text-file", text)
            assert ended.code == 0, ended.err

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(count)))
    for number in range(whole):
        command = [
            sys.executable,
            "-m",
            "neoscope",
            "run",
            str(tmp_path / f"whole-{number}"),
            *brief,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
    tell(
        "a Parquet file read in part", count + whole, f"exit 0 each time ({whole} fresh processes)"
    )
