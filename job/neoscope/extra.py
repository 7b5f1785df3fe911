"""What `pip install neoscope` leaves out, and `pip install "neoscope[run]"` brings: all that makes a run.

In: what is asked for. Out: nothing, or the line that says how to install it. It imports none of it.
"""

from __future__ import annotations

from importlib.util import find_spec

from neoscope.errors import UsageError

# Of each package that the extra `run` of pyproject.toml asks for, what is imported.
MODULES = (
    *("torch", "transformers", "datasets", "accelerate", "tokenizers"),
    *("huggingface_hub", "httpx2", "numba"),
)


class NotInstalledError(UsageError, ImportError):
    """What was asked for needs what makes runs, and only what reads them is installed."""


def require_run(what: str) -> None:
    """Raise NotInstalledError where `what`, which makes or computes something, lacks its packages."""
    missing = [name for name in MODULES if find_spec(name) is None]
    if missing:
        raise NotInstalledError(
            f"{what} needs {', '.join(missing)}, and this installation only reads runs: "
            "pip install 'neoscope[run]'"
        )
