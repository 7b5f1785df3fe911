"""Memory, open files and time a batch of 1000 small batches in one process, statistics of a million tokens,
and the memory of `verify`.

    python tests/benchmarks/many.py [BATCHES]

A GPT-Neo of 4 layers with 256 neurons. The process is watched from outside, at every tenth of its
records. Then the same model over 128 batches of 8192 tokens with --no-arrays, and `verify` of two runs of
many batches of 8 tokens.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import machine
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from neoscope.text.documents import SAMPLE_FILE
from neoscope.text.tokenizer import packaged_tokenizer

# In a process of its own; ru_maxrss would begin with what the process that starts it has.
VERIFY = """
import re, sys
from pathlib import Path
from neoscope.commands.cli import cli
cli(["verify", sys.argv[1]], standalone_mode=False)
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def make_model(folder: Path) -> None:
    config = GPTNeoConfig(
        hidden_size=64,
        num_layers=4,
        num_heads=2,
        attention_types=[[["global", "local"], 2]],
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    GPTNeoForCausalLM(config).save_pretrained(folder)
    packaged_tokenizer().save_pretrained(folder)


def start(output: Path, model: Path, text: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "neoscope", "run", str(output), "--model", str(model)]
    return subprocess.Popen(
        [*command, "--text", str(text), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def resident(pid: int) -> float:
    """MB of the process in memory now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def curve(output: Path, model: Path, text: Path, batches: int) -> list[str]:
    """A line for every tenth of the batches."""
    shape = ["--sequences", "4", "--positions", "32", "--batches", str(batches)]
    process = start(output, model, text, *shape)
    lines = [f"{'batches':>9}{'resident MB':>13}{'open files':>12}{'ms a batch':>12}"]
    step, began, last = batches // 10, 0.0, 0
    for count in (1, *range(step, batches + 1, step)):
        record = output / "records" / f"00000-{count:08d}.json"
        while not record.exists():
            if process.poll() is not None:
                raise SystemExit(f"the run ended with {process.returncode} before batch {count}")
            time.sleep(0.001)
        now = time.perf_counter()
        spent = f"{1000 * (now - began) / (count - last):>12.1f}" if last else ""
        if count < batches:
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
            lines.append(f"{count:>9}{resident(process.pid):>13.0f}{files:>12}{spent}")
        else:
            lines.append(f"{count:>9}{'':>25}{spent}")
        began, last = now, count
    if process.wait():
        raise SystemExit(f"the run ended with {process.returncode}")
    return lines


def million(output: Path, model: Path, text: Path) -> str:
    process = start(output, model, text, "--no-arrays", "--batches", "128")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}")
    manifest = json.loads((output / "manifest.json").read_text())
    stored = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return (
        f"{manifest['tokens']['count']:,} tokens with --no-arrays: {stored / 1e6:.1f} MB stored, "
        f"peak memory {usage.ru_maxrss * 1024 / 1e9:.2f} GB"
    )


def verified(output: Path, model: Path, text: Path, batches: int) -> str:
    shape = ["--sequences", "1", "--positions", "8", "--batches", str(batches)]
    if start(output, model, text, "--no-arrays", "--no-statistics", *shape).wait():
        raise SystemExit("the run failed")
    told = subprocess.check_output([sys.executable, "-c", VERIFY, str(output)], text=True)
    return f"verify of {batches:,} batches: peak memory {int(told.split()[-1]) / 1e3:.0f} MB"


def main(batches: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, text = folder / "model", folder / "text.jsonl"
        make_model(model)
        text.write_bytes(SAMPLE_FILE.read_bytes() * 84)
        print(f"{batches} batches of 4 x 32 tokens in one process, 4 layers of 256 neurons")
        print(f"{machine()}\n")
        print("\n".join(curve(folder / "many", model, text, batches)), end="\n\n")
        print(million(folder / "million", model, text))
        for count in (1000, 10_000):
            print(verified(folder / str(count), model, text, count))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
