"""Programs that tests and benchmarks use and that no Python package has, built with Go once for a user.

    python tests/support/programs.py [NAME ...]    builds those that are not there yet

In: a name. Out: the path of a program. It knows no server's options.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

MODULES = {
    "toxiproxy": ("github.com/Shopify/toxiproxy/v2/cmd/server", "v2.12.0"),  # 11 s
    "versitygw": ("github.com/versity/versitygw/cmd/versitygw", "v1.8.0"),  # 70 s
    "rclone": ("github.com/rclone/rclone", "v1.73.5"),  # 140 s
    "seaweedfs": (
        "github.com/seaweedfs/seaweedfs/weed",
        "v0.0.0-20261109003541-7506e5f91cd6",
    ),  # 9 minutes
    "kueue": ("sigs.k8s.io/kueue/cmd/kueue", "v0.17.0"),  # 3 minutes
}
# What a module replaces in its go.mod, which `go install` refuses to do for another's.
REPLACED = {
    "seaweedfs": "replace github.com/tyler-smith/go-bip39 => github.com/cosmos/go-bip39 v1.0.0"
}


def kept(name: str) -> Path:
    """Where a program lies once it is built: in the user's cache, so that one is enough for all clones."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neoscope"
    return cache / f"{name}-{MODULES[name][1]}"


def program(name: str) -> Path:
    """The program; to build it takes a minute or two, on one core."""
    path, (module, version) = kept(name), MODULES[name]
    if path.exists():
        return path
    print(f"Building {name} {version} with Go, once on this machine.", file=sys.stderr, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        (Path(folder) / "go.mod").write_text(f"module programs\n{REPLACED.get(name, '')}\n")
        settings = {"GOFLAGS": "-p=1", "CGO_ENABLED": "0"}
        for words in (["get", f"{module}@{version}"], ["build", "-o", "built", module]):
            subprocess.run(["go", *words], cwd=folder, env={**os.environ, **settings}, check=True)
        (Path(folder) / "built").replace(path)  # whole or absent, also when two do it at once
    return path


if __name__ == "__main__":
    for each in sys.argv[1:] or MODULES:
        print(program(each))
