"""Peak memory of `neoscope run` with the 1.3B and 2.7B shapes, one sequence of 128 tokens.

    python tests/benchmarks/large.py [1.3B] [2.7B]

The operating system's own figure for each finished process (maximum resident set), and the part of it
that is not pages of files, seen every 0.05 s: those the system takes back when it needs them. Weights
are drawn at random, and loaded from a safetensors file of theirs in float32, as float32 and as bfloat16.
The file is made in the temporary folder, 5 or 11 GB.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import machine

SAVE = """
import sys
from neoscope import load_model
from neoscope.model import packaged_tokenizer
load_model(sys.argv[1], weights="random", device="cpu").save_pretrained(sys.argv[2])
packaged_tokenizer().save_pretrained(sys.argv[2])
"""


def peak(*command: object) -> tuple[float, float, float]:
    """GB of the process's maximum resident set, of that without pages of files, and its seconds."""
    began, own = time.perf_counter(), 0.0
    words = [sys.executable, *map(str, command)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        ended = 0
        while not ended:
            status = Path(f"/proc/{process.pid}/status").read_text()
            found = re.search(r"RssAnon:\s+(\d+) kB", status)
            own = max(own, float(found[1]) if found else 0)
            time.sleep(0.05)
            ended, code, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    seconds = time.perf_counter() - began
    return usage.ru_maxrss * 1024 / 1e9, own * 1024 / 1e9, seconds  # Linux counts in KiB


def run(label: str, folder: Path, *options: object) -> None:
    """Run once and print the peak and the seconds."""
    once = ("--dataset", "sample", "--sequences", 1, "--positions", 128)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        memory, own, seconds = peak("-m", "neoscope", "run", f"{place}/run", *once, *options)
    print(f"{label:<46}{memory:6.2f} GB{own:6.2f} GB{seconds:6.0f} s", flush=True)


def main(sizes: list[str]) -> None:
    print(f"Peak memory of neoscope run, 1 sequence of 128 tokens\n{machine()}\n")
    print(f"{'':<46}{'resident':>9}{'its own':>9}")
    for size in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            name, folder = f"gpt-neo-{size}", Path(temporary) / "model"
            run(f"{size}  random, float32", Path(temporary), "--model", name, "--weights", "random")
            peak("-c", SAVE, name, folder)
            weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9
            print(f"{size + '  the weights themselves, float32':<46}{weights:6.2f} GB")
            for precision in ("float32", "bfloat16"):
                options = ("--model", folder, "--precision", precision)
                run(f"{size}  from a file, as {precision}", Path(temporary), *options)


if __name__ == "__main__":
    main(sys.argv[1:] or ["1.3B", "2.7B"])
