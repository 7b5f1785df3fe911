"""The whole process: `neoscope run` against the straightforward script, to MinIO and to a folder.

    python tests/benchmarks/process.py [ROUNDS]

Each is a process of its own, started in turn, from the start of Python to its end. The script keeps no
statistics.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import boto3
from measure import in_turn, table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "job" / "local"))

import minio  # noqa: E402


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, minio.server(Path(folder) / "minio") as server:
        environment = {
            **os.environ,
            **server.environment,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        os.environ.update(environment)
        s3 = boto3.Session().client("s3")
        s3.create_bucket(Bucket="bench")

        def start(*command: str) -> None:
            subprocess.run([sys.executable, *command], check=True, capture_output=True)

        def emptied(output: str, work: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                work()
                if output.startswith("s3://"):
                    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="bench"):
                        for item in page.get("Contents", []):
                            s3.delete_object(Bucket="bench", Key=item["Key"])
                else:
                    shutil.rmtree(output)

            return run

        rows = {}
        for where, output in (("MinIO", "s3://bench/run"), ("a folder", f"{folder}/run")):
            ours = ["-m", "neoscope", "run", output, "--dataset", "sample", "--weights", "random"]
            script = [str(HERE / "straightforward.py"), output]
            rows[f"neoscope run, to {where}"] = emptied(output, lambda c=ours: start(*c))
            bare = [*ours, "--no-statistics", "--no-neurons"]
            rows[f"the same without statistics, to {where}"] = emptied(
                output, lambda c=bare: start(*c)
            )
            rows[f"the straightforward script, to {where}"] = emptied(
                output, lambda c=script: start(*c)
            )
        seconds = in_turn(rows, rounds)
    for where in ("MinIO", "a folder"):
        some = {name: row for name, row in seconds.items() if name.endswith(where)}
        title = "The whole process, 16 x 512 tokens, GPT-Neo 125M shape, random weights"
        print(table(title, some, f"neoscope run, to {where}"), end="\n\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
