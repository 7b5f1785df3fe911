"""AWS by its own names: `aws/names.py` in a namespace, where these names are this machine's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.command import ROOT

# Of a network of its own, which has no way out, and a file of names of its own. For whom it is not, `unshare`
# makes the user root in there, which port 443 needs.
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
INSIDE = """
set -e
ip link set lo up
mount --bind "$1" /etc/hosts
shift
exec "$@"
"""


def test_aws_by_its_own_names(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    inside = [*UNSHARE, "sh", "-c", INSIDE, "sh", str(hosts)]
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare, which makes namespaces (util-linux)")
    probe = subprocess.run([*inside, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no namespace with names of its own can be made: {probe.stderr.strip()}")
    tests = ["-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "tests/aws/names.py"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "PYTEST_"))}
    environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        [*inside, sys.executable, *tests, "--basetemp", str(tmp_path / "inside")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
