"""Peak memory of `neoscope run` with 1 and with 8 batches of 16 x 512 tokens, 125M shape.

    python tests/benchmarks/memory.py

The operating system's own figure for each finished process (maximum resident set). The text is the
packaged sample, six times over.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import machine

from neoscope.text.documents import SAMPLE_FILE


def peak(text: Path, output: Path, batches: int) -> float:
    """GB of the process's maximum resident set."""
    command = [sys.executable, "-m", "neoscope", "run", str(output), "--weights", "random"]
    command += ["--text", str(text), "--batches", str(batches)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss * 1024 / 1e9  # Linux counts in KiB


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.jsonl"
        text.write_bytes(SAMPLE_FILE.read_bytes() * 6)
        one, eight = (peak(text, Path(folder) / f"run-{n}", n) for n in (1, 8))
    print(f"Peak memory of neoscope run, 16 x 512 tokens a batch, 125M shape\n{machine()}\n")
    print(f"1 batch    {one:.2f} GB\n8 batches  {eight:.2f} GB, {eight / one:.3f} times that")


if __name__ == "__main__":
    main()
