"""The loop, verify, status and a restart over a network: 15 ms each way and 80 MB/s a connection.

    python tests/benchmarks/network.py [--batches 4] [--sequences 4] [--rate 80] [--connections 32]
                                       [--only loop|runs]

toxiproxy stands before a MinIO on this machine. A stand-in for a GPU gives the layers of 4 x 512 tokens of a
model of GPT-Neo 125M's shape, and brings them to the host, at no cost, so that the rate is that of storing:
from the first layer to the end of the loop, when all is stored, read back and recorded, and to the end of the
run. It is compared with puts of objects of the same sizes by obstore, at the number of connections that is
best: plain ones, and ones with S3's CRC-64, which the loop sends with every body and MinIO computes too, on
the same processors. `verify` is compared with plain gets. Beside each rate stands how idle the machine was,
which client, link and server share: where that is nearly nothing its processors are the limit and not the
link; a lower --rate makes it the link. Then `status` and a restart of a finished run of 64 partitions, and a
whole run of 125M weights over the link, through its proxy alone, and over loopback, in turn.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import click
import numpy as np
import obstore
import torch
from measure import machine
from obstore.store import S3Store
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from neoscope.commands.verify import verify
from neoscope.pipeline import layer_writer, loop, partition
from neoscope.pipeline.layer_writer import Slot
from neoscope.pipeline.run import start
from neoscope.progress import Progress
from neoscope.storage.integrity import ALGORITHM
from neoscope.storage.s3 import sibling
from neoscope.storage.store import open_store
from neoscope.text.documents import SAMPLE_FILE
from neoscope.text.tokenizer import packaged_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "job" / "local"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import minio

from support import programs

LATENCY_MS, RATE_KB = 15, 80_000
CONNECTIONS = (4, 8, 16, 32)
LAYERS, NEURONS, POSITIONS = 12, 3072, 512
PARTITIONS = 64
LEFT_OUT = {"sign_payload": False, "connections": None}


@contextmanager
def link(endpoint: str, rate_kb: int = RATE_KB, latency_ms: int = LATENCY_MS) -> Iterator[str]:
    """The address of a link to `endpoint`."""
    control, listen = (f"127.0.0.1:{minio._free_port()}" for _ in range(2))
    host, port = control.split(":")
    command = [programs.program("toxiproxy"), "-host", host, "-port", port]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "LOG_LEVEL": "error"},
    ) as process:
        try:
            while not answers(control):
                time.sleep(0.05)
            upstream = endpoint.removeprefix("http://")
            ask(control, "/proxies", {"name": "link", "listen": listen, "upstream": upstream})
            for stream, (kind, key, value) in itertools.product(
                ("upstream", "downstream"),
                (("latency", "latency", latency_ms), ("bandwidth", "rate", rate_kb)),
            ):
                toxic = {"type": kind, "stream": stream, "attributes": {key: value}}
                ask(control, "/proxies/link/toxics", toxic)
            yield f"http://{listen}"
        finally:
            process.terminate()


def ask(control: str, path: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(f"http://{control}{path}", json.dumps(body).encode())
    urllib.request.urlopen(request, timeout=10).close()


def answers(control: str) -> bool:
    return answers_at(f"http://{control}/version")


def answers_at(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except OSError:
        return False
    return True


class Idle:
    """How idle all processors have been since it was made."""

    def __init__(self) -> None:
        self._then = self._spent()

    def share(self) -> float:
        idle, total = (now - then for now, then in zip(self._spent(), self._then, strict=True))
        return idle / max(1, total)

    @staticmethod
    def _spent() -> tuple[int, int]:
        with Path("/proc/stat").open() as file:
            ticks = [int(word) for word in file.readline().split()[1:]]
        return ticks[3] + ticks[4], sum(ticks)


class Device:
    """A stand-in for a GPU: it has every layer ready, chunk by chunk, brings it to the host without the
    processor's help, and says when it was first asked."""

    def __init__(self, sequences: int) -> None:
        self.layer = torch.randn(sequences, POSITIONS, NEURONS)
        self.began = 0.0
        self.idle = Idle()

    def stream(self, _model: Any, _ids: Any, consumers: list[Any], **_: Any) -> None:
        if not self.began:
            self.began, self.idle = time.perf_counter(), Idle()
        for number in range(LAYERS):
            for take in consumers:
                take(f"MLP_{number}", self.layer)


class FilledSlot(Slot):
    """Host memory that the device has written."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.host.normal_()

    def take(self, *_: Any) -> Callable[[], None]:
        return lambda: None


def make_model(folder: Path) -> None:
    config = GPTNeoConfig(
        hidden_size=16,
        intermediate_size=NEURONS,
        num_layers=LAYERS,
        num_heads=2,
        attention_types=[[["global", "local"], LAYERS // 2]],
        max_position_embeddings=POSITIONS,
    )
    GPTNeoForCausalLM(config).save_pretrained(folder)
    packaged_tokenizer().save_pretrained(folder)


def job(url: str, endpoint: str, texts: list[Path], partition: int = 0, **options: Any) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        start(
            url,
            options,
            partition=str(partition),
            text_paths=texts,
            device="cpu",
            endpoint_url=endpoint,
            progress=Progress(quiet=True),
            **LEFT_OUT,  # type: ignore[arg-type]
        )


def put(backend: S3Store, body: bytes, item: tuple[str, int]) -> None:
    obstore.put(backend, item[0], memoryview(body)[: item[1]], use_multipart=False)


def get(backend: S3Store, item: tuple[str, int]) -> None:
    obstore.get(backend, item[0]).bytes()


def at_once(count: int, work: Callable[[tuple[str, int]], object], sizes: dict[str, int]) -> float:
    """Seconds of work on every object, so many at a time."""
    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        for _ in pool.map(work, sizes.items()):
            pass
    return time.perf_counter() - began


def rates(
    folder: Path,
    endpoint: str,
    batches: int,
    sequences: int,
    rounds: int,
    connections: tuple[int, ...],
) -> None:
    model, text, device = folder / "model", folder / "text.jsonl", Device(sequences)
    make_model(model)
    text.write_bytes(SAMPLE_FILE.read_bytes() * (batches * sequences // 8 + 1))
    body = np.random.default_rng(0).bytes(8_000_000)
    rows: dict[str, list[tuple[float, float]]] = {}
    ended: dict[str, float] = {}

    def store_batches(*arguments: Any, **options: Any) -> None:
        loop.store_batches(*arguments, **options)
        ended.update(at=time.perf_counter(), idle=device.idle.share())

    originals = loop.stream, partition.store_batches
    loop.stream, partition.store_batches = device.stream, store_batches
    layer_writer.Slot = FilledSlot  # type: ignore[misc]
    for number in range(rounds):
        url, device.began = f"s3://bench/loop-{number}", 0.0
        options = {
            "model": str(model),
            "batches": batches,
            "sequences": sequences,
            "statistics": False,
            "neurons": False,
        }
        job(url, endpoint, [text], **options)
        to_end = time.perf_counter() - device.began
        store = open_store(url, endpoint_url=endpoint)
        sizes = {item.key: item.size for item in store.objects()}
        megabytes = sum(sizes.values()) / 1e6

        def tell(name: str, seconds: float, idle: float, size: float = megabytes) -> None:
            rows.setdefault(name, []).append((size / seconds, idle))

        tell("the loop", ended["at"] - device.began, ended["idle"])
        tell("the loop and the commit", to_end, ended["idle"])
        raw, summed = (
            open_store(f"s3://bench/{name}-{number}", endpoint_url=endpoint).backend
            for name in ("raw", "summed")
        )
        summed = sibling(summed, checksum_algorithm=ALGORITHM)
        for name, work in (
            ("plain puts", functools.partial(put, raw, body)),
            ("checked puts", functools.partial(put, summed, body)),
            ("plain gets", functools.partial(get, store.backend)),
        ):
            for count in connections:
                idle = Idle()
                tell(f"{name}, {count} connections", at_once(count, work, sizes), idle.share())
        began, idle = time.perf_counter(), Idle()
        assert verify(open_store(url, endpoint_url=endpoint), Progress(quiet=True)).problems == []
        tell("verify", time.perf_counter() - began, idle.share())
        for each in (store.backend, raw, summed):
            obstore.delete(each, list(sizes))
    loop.stream, partition.store_batches = originals
    layer_writer.Slot = Slot  # type: ignore[misc]
    median = {name: float(np.median([rate for rate, _ in row])) for name, row in rows.items()}
    total = f"{len(sizes)} objects of {sum(sizes.values()) / 1e9:.2f} GB"
    print(f"{batches} batches of {sequences} x {POSITIONS}, {total}")
    for name, row in rows.items():
        spread = f"{min(row)[0]:.0f}..{max(row)[0]:.0f}"
        idle_share = float(np.median([idle for _, idle in row]))
        print(f"{name:<32}{median[name]:>8.0f} MB/s   {spread:<10}  {idle_share:.0%} idle")
    for ours, theirs in (
        ("the loop", "plain puts"),
        ("the loop", "checked puts"),
        ("verify", "plain gets"),
    ):
        best = max(rate for name, rate in median.items() if name.startswith(theirs))
        print(f"{ours}: {median[ours] / best:.2f} of the best of {theirs}")


def whole_runs(folder: Path, far: str, proxy: str, direct: str, rounds: int) -> None:
    """A run of four batches of 16 x 512 tokens of GPT-Neo 125M's shape on the CPU, each a process of its
    own: over the link, through the same proxy without delay or limit, whose processor time is the
    benchmark's and not the link's, and over loopback."""
    text = folder / "whole.jsonl"
    text.write_bytes(SAMPLE_FILE.read_bytes() * 8)
    places = {"over the link": far, "through its proxy alone": proxy, "over loopback": direct}
    spent: dict[str, list[float]] = {name: [] for name in places}
    for number in range(rounds):
        for name, address in places.items():
            url = f"s3://bench/whole-{number}-{name.split()[-1]}"
            command = ["run", url, "--text", str(text), "--weights", "random", "--batches", "4"]
            environment = {**os.environ, "AWS_ENDPOINT_URL": address}
            run = functools.partial(
                subprocess.run, env=environment, capture_output=True, check=True
            )
            began = time.perf_counter()
            run([sys.executable, "-m", "neoscope", *command])
            spent[name].append(time.perf_counter() - began)
            run([sys.executable, "-m", "neoscope", "delete", url, "--yes"])
    print(
        "\na whole run of 4 batches of 16 x 512 tokens, 125M random weights, on this CPU, in turn"
    )
    for name, row in spent.items():
        print(f"{name:<32}{np.median(row):>8.1f} s   {min(row):.1f}..{max(row):.1f}")
    for name in list(spent)[1:]:
        ratios = [one / two for one, two in zip(spent["over the link"], spent[name], strict=True)]
        print(
            f"over the link: {np.median(ratios):.2f} of {name}, {min(ratios):.2f}..{max(ratios):.2f}"
        )


def many_partitions(folder: Path, direct: str, endpoint: str) -> None:
    """Seconds of `status` and of a restart of a finished run, each a process of its own."""
    texts = []
    for number in range(PARTITIONS):
        texts.append(folder / f"{number}.jsonl")
        texts[-1].write_bytes(SAMPLE_FILE.read_bytes().splitlines(keepends=True)[number % 33])
    shape = {"sequences": 1, "positions": 16, "partitions": PARTITIONS, "arrays": False}
    model = str(folder / "model")
    for number in range(PARTITIONS):
        job("s3://bench/parts", direct, texts, number, model=model, **shape)
    words = ["--model", model, "--sequences", "1", "--positions", "16", "--no-arrays"]
    words += [
        "--partitions",
        str(PARTITIONS),
        *(w for text in texts for w in ("--text", str(text))),
    ]
    print(
        f"\na finished run of {PARTITIONS} partitions, whole process, over the link and over loopback"
    )
    for name, command in (
        ("--help", ["--help"]),
        ("status", ["status", "s3://bench/parts"]),
        ("run, again", ["run", "s3://bench/parts", *words]),
    ):
        spent = []
        for address in (endpoint, direct):
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "neoscope", *command],
                env={**os.environ, "AWS_ENDPOINT_URL": address},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            spent.append(time.perf_counter() - began)
        print(f"{name:<32}{spent[0]:>8.2f} s, {spent[1]:.2f} s")


@click.command()
@click.option("--batches", default=4)
@click.option("--sequences", default=4)
@click.option("--rate", default=80, help="MB/s of a connection.")
@click.option("--rounds", default=3)
@click.option("--connections", multiple=True, default=CONNECTIONS, help="Of the plain requests.")
@click.option("--only", type=click.Choice(["loop", "runs"]))
def main(
    batches: int,
    sequences: int,
    rate: int,
    rounds: int,
    connections: tuple[int, ...],
    only: str | None,
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        with minio.server(place / "minio") as server:
            os.environ.update(server.environment, AWS_DEFAULT_REGION="us-east-1")
            boto3.Session().client("s3").create_bucket(Bucket="bench")
            with link(server.endpoint, rate * 1000) as far:
                print(f"{LATENCY_MS} ms each way, {rate} MB/s a connection\n{machine()}\n")
                if only != "runs":
                    rates(place, far, batches, sequences, rounds, connections)
                if only is None:
                    many_partitions(place, server.endpoint, far)
                if only != "loop":
                    with link(server.endpoint, 10**7, latency_ms=0) as proxy:
                        whole_runs(place, far, proxy, server.endpoint, rounds)


if __name__ == "__main__":
    main()
