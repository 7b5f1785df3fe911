"""neoscope: what every MLP neuron of a language model does on real text.

`capture(load_model(name), token_ids)` gives the activations of one pass; `open_run(url)` and
`open_statistics(url)` open what `neoscope run` left. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neoscope.hooks import capture
    from neoscope.model import load_model
    from neoscope.reading import open_run, open_statistics

__all__ = ["capture", "load_model", "open_run", "open_statistics"]
_HOMES = {
    "capture": "hooks",
    "load_model": "model",
    "open_run": "reading",
    "open_statistics": "reading",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'neoscope' has no attribute {name!r}")
    return getattr(importlib.import_module(f"neoscope.{_HOMES[name]}"), name)
