"""neoscope: what every MLP neuron of a language model does on real text.

`capture(load_model(name), token_ids)` gives the activations of one pass; `run(output)` makes a run, as
the command does; `open_run(url)`, `open_statistics(url)` and `open_neurons(url)` open what it left,
`by_length` and `by_neuron` say what follows from it, `contexts` gives the passages at which a neuron
is strongest, and `by_token` what goes with a property of tokens. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neoscope.errors import NeoscopeError

if TYPE_CHECKING:
    from neoscope.model.hooks import capture
    from neoscope.model.loading import load_model
    from neoscope.pipeline.run import run
    from neoscope.reading import by_token
    from neoscope.reading.dataset import open_neurons, open_run, open_statistics
    from neoscope.reading.passages import contexts
    from neoscope.statistics import by_length, by_neuron
    from neoscope.text.token_ids import load_tokenizer, tokenize

    __version__: str

__all__ = [
    "NeoscopeError",
    "__version__",
    "by_length",
    "by_neuron",
    "by_token",
    "capture",
    "contexts",
    "load_model",
    "load_tokenizer",
    "open_neurons",
    "open_run",
    "open_statistics",
    "run",
    "tokenize",
]
# No module of the package has the name of a function here: importing it would put it in its place.
_HOMES = {
    "capture": "model.hooks",
    "contexts": "reading.passages",
    "load_model": "model.loading",
    "load_tokenizer": "text.token_ids",
    "open_neurons": "reading.dataset",
    "open_run": "reading.dataset",
    "open_statistics": "reading.dataset",
    "run": "pipeline.run",
    "tokenize": "text.token_ids",
}
_MODULES = {
    "by_length": "neoscope.statistics.by_length",
    "by_neuron": "neoscope.statistics.by_neuron",
    "by_token": "neoscope.reading.by_token",
}
# What computes something: torch and transformers, which reading a run does not need.
_MAKING = {"capture", "load_model", "load_tokenizer", "tokenize"}


def __getattr__(name: str) -> Any:
    import importlib
    from importlib import metadata

    if name == "__version__":
        return metadata.version("neoscope")
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'neoscope' has no attribute {name!r}")
    if name in _MAKING:
        importlib.import_module("neoscope.extra").require_run(f"neoscope.{name}")
    return getattr(importlib.import_module(f"neoscope.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING", "Any", "annotations"})
